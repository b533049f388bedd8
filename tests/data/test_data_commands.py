"""``data list | info | check | fetch``: what they print and return; downloads from a local server; hostile archives."""

import argparse
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from vqa_core import data
from vqa_core.data import catalogue, commands, easy_vqa, fetch
from vqa_core.data.root import extract


def run(*words):
    """What ``python -m vqa_core`` does with these words."""
    parser = argparse.ArgumentParser()
    commands.add_parser(parser.add_subparsers(required=True))
    arguments = parser.parse_args(["data", *map(str, words)])
    return arguments.run(arguments)


def png(value=0):
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def easy_vqa_files():
    questions = [["is it red?", "no", 0], ["what color is the shape?", "blue", 1]]
    files = {"answers.txt": b"no\nblue\n"}
    for split in ("train", "test"):
        files |= {f"{split}/questions.json": json.dumps(questions).encode()}
        files |= {f"{split}/images/{i}.png": png(i) for i in (0, 1)}
    return files


@pytest.fixture
def small_release(monkeypatch):
    """Makes the small fixture the official release of easy-VQA."""
    files = easy_vqa_files()
    monkeypatch.setattr(easy_vqa, "expected", lambda folder: {"train": (2, 2), "test": (2, 2)})
    info = catalogue.NAMES["easy_vqa"]
    sums = {name: hashlib.sha256(files[name]).hexdigest() for name in info.sha256}
    changed = type(info)(**{**info.__dict__, "expected": easy_vqa.expected, "sha256": sums})
    monkeypatch.setitem(catalogue.NAMES, "easy_vqa", changed)
    return files


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# --- list, info, check ----------------------------------------------------------------------------------------------


def test_list_says_what_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    write(tmp_path / "easy_vqa", easy_vqa_files())
    assert run("list", "--root", tmp_path) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert set(catalogue.NAMES) <= set(rows)
    assert "yes" in rows["easy_vqa"]
    assert "MIT" in rows["easy_vqa"]
    assert "data fetch nlvr" in rows["nlvr"]
    assert "generated" in rows["scenes"]


def test_info(tmp_path, capsys):
    write(tmp_path / "easy_vqa", easy_vqa_files())
    assert run("info", "easy_vqa", "--root", tmp_path) == 0
    text = capsys.readouterr().out
    assert "questions 2, pictures 2" in text
    assert "families  presence 1, colour 1" in text
    assert "kinds     closed 1, open 1" in text
    assert data.load("easy_vqa", "train", tmp_path).content_hash() in text
    assert run("info", "nlvr", "--root", tmp_path) == 1
    assert "data fetch nlvr" in capsys.readouterr().err


def test_check_passes_on_the_official_release(tmp_path, capsys, small_release):
    write(tmp_path / "easy_vqa", small_release)
    assert run("check", "easy_vqa", "--root", tmp_path) == 0
    out = capsys.readouterr().out
    assert "ok  train: 2 questions about 2 pictures" in out
    assert "ok  4 pictures open" in out
    assert "ok  train/questions.json: official SHA-256" in out


def test_check_names_every_problem(tmp_path, capsys, small_release):
    folder = tmp_path / "easy_vqa"
    write(folder, small_release)
    (folder / "train/images/0.png").write_bytes(b"broken")
    (folder / "train/images/1.png").unlink()
    (folder / "test/questions.json").write_text('[["is it red?", "no", 0]]')
    assert run("check", "easy_vqa", "--root", tmp_path) == 1
    captured = capsys.readouterr()
    assert "train/images/0.png: damaged picture" in captured.err
    assert "train/images/1.png: the picture is missing" in captured.err
    assert "test/questions.json: SHA-256 is" in captured.err
    assert "test: 1 questions, the official release has 2" in captured.err
    assert "pictures open" not in captured.out
    assert "easy_vqa: 5 problems" in captured.out  # the fifth: test has one picture less


def test_check_of_an_unreadable_split_goes_on(tmp_path, capsys, small_release):
    write(tmp_path / "easy_vqa", small_release | {"train/questions.json": b"["})
    assert run("check", "easy_vqa", "--root", tmp_path) == 1
    captured = capsys.readouterr()
    assert "train: " in captured.err
    assert "line 1: not JSON" in captured.err
    assert "ok  test: 2 questions" in captured.out


def test_check_of_absent_data(tmp_path, capsys):
    assert run("check", "daquar", "--root", tmp_path) == 1
    assert "data fetch daquar" in capsys.readouterr().err


@pytest.mark.realdata("vqa_rad", "shapes")
@pytest.mark.parametrize("name", ["vqa_rad", "shapes"])
def test_check_real(data_root, name, capsys):
    assert run("check", name, "--root", data_root) == 0
    assert "everything is in order" in capsys.readouterr().out


# --- extraction -----------------------------------------------------------------------------------------------------


def make_zip(path, files, mode=None):
    with zipfile.ZipFile(path, "w") as z:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            if mode is not None:
                member.external_attr = mode << 16
            z.writestr(member, content)
    return path


def make_tar(path, name, kind=tarfile.REGTYPE, link=""):
    with tarfile.open(path, "w:gz") as t:
        for member_name, member_kind in (("top/good.txt", tarfile.REGTYPE), (name, kind)):
            member = tarfile.TarInfo(member_name)
            member.type = member_kind
            member.size = 4 if member_kind == tarfile.REGTYPE else 0
            member.linkname = link if member_kind != tarfile.REGTYPE else ""
            t.addfile(member, io.BytesIO(b"evil") if member.size else None)
    return path


BAD_NAMES = [
    "/evil.txt",
    "../evil.txt",
    "top/../../evil.txt",
    "C:/evil.txt",
    "C:evil.txt",
    "\\evil.txt",
    "top\\..\\..\\evil.txt",
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("make", ["zip", "tar"])
def test_members_outside_are_refused_before_anything_is_written(tmp_path, name, make):
    archive = tmp_path / "archive"
    if make == "zip":
        make_zip(archive, {"top/good.txt": "good", name: "evil"})
    else:
        make_tar(archive, name)
    with pytest.raises(ValueError, match="would be written outside"):
        extract(archive, tmp_path / "a" / "b")
    assert [p.name for p in tmp_path.rglob("*")] == ["archive"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_tar_are_refused(tmp_path, kind):
    archive = make_tar(tmp_path / "archive", "top/link", kind, "/etc/passwd")
    with pytest.raises(ValueError, match="'top/link' is a link or a device"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_in_zip_are_refused(tmp_path):
    archive = make_zip(tmp_path / "archive", {"top/link": "/etc/passwd"}, mode=0o120777)
    with pytest.raises(ValueError, match="is a link or a device"):
        extract(archive, tmp_path / "out")


def test_good_archives_are_extracted(tmp_path):
    extract(make_zip(tmp_path / "z", {"top/sub/a.txt": "A"}, mode=0o100644), tmp_path / "zip")
    extract(make_tar(tmp_path / "t", "top/b.txt"), tmp_path / "tar")
    assert (tmp_path / "zip/top/sub/a.txt").read_text() == "A"
    assert (tmp_path / "tar/top/b.txt").read_text() == "evil"


def test_no_archive(tmp_path):
    (tmp_path / "x").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match="neither a zip nor a tar"):
        extract(tmp_path / "x", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"archive .* is missing"):
        extract(tmp_path / "y", tmp_path / "out")


# --- fetching -------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``; answers as the hub does (ETag, commit) so that its client can be used."""

    def do_GET(self):
        content = self.server.files.get(self.path)
        self.send_response(200 if content is not None else 404)
        content = content or b""
        extra = self.server.extra if self.path in self.server.files else {}
        headers = {"Content-Length": len(content), "ETag": f'"{hashlib.sha256(content).hexdigest()}"'} | extra
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine; ``server.files`` maps paths to contents."""
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.extra = {}, {}
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def home(server, small_release, monkeypatch, tmp_path):
    """easy-VQA's public home is the local server, which serves the small release as a repository archive."""
    content = {f"repo-123/easy_vqa/data/{name}": file for name, file in small_release.items()}
    archive = make_zip(tmp_path / "a.zip", content | {"repo-123/setup.py": b"not data"})
    server.files["/a.zip"] = archive.read_bytes()
    keep = fetch.SOURCES["easy_vqa"]["github"].keep
    place = fetch.Archive(f"{server.address}/a.zip", keep)
    monkeypatch.setitem(fetch.SOURCES, "easy_vqa", {"github": place})
    return server


def test_fetch_then_check(home, tmp_path, capsys):
    root = tmp_path / "data"
    assert run("fetch", "easy_vqa", "--root", root) == 0
    assert "MIT" in capsys.readouterr().out
    assert run("check", "easy_vqa", "--root", root) == 0
    assert sorted(p.name for p in (root / "easy_vqa").iterdir()) == ["answers.txt", "test", "train"]
    assert sorted(p.name for p in root.iterdir()) == ["SHA256SUMS", "easy_vqa"]  # nothing else is left behind
    assert run("fetch", "easy_vqa", "--root", root) == 1
    assert "is already there" in capsys.readouterr().err


def test_fetch_from_a_file_address(home, tmp_path, monkeypatch):
    keep = fetch.SOURCES["easy_vqa"]["github"].keep
    place = fetch.Archive((tmp_path / "a.zip").as_uri(), keep)
    monkeypatch.setitem(fetch.SOURCES, "easy_vqa", {"file": place})
    assert len(data.load("easy_vqa", "train", fetch.fetch("easy_vqa", root=tmp_path / "data", progress=False))) == 2


def test_fetch_goes_where_load_looks(home, tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(tmp_path / "variable"))
    fetch.fetch("easy_vqa", progress=False)
    assert len(data.load("easy_vqa", "test")) == 2
    monkeypatch.delenv("VQA_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fetch.fetch("easy_vqa", progress=False) == tmp_path / "home/.cache/vqa_core/easy_vqa"
    assert len(data.load("easy_vqa", "test")) == 2


def test_changed_archive_is_refused(home, tmp_path, capsys):
    """The checksum recorded on first use guards later downloads into the same folder."""
    import shutil

    root = tmp_path / "data"
    fetch.fetch("easy_vqa", root=root, progress=False)
    shutil.rmtree(root / "easy_vqa")
    home.files["/a.zip"] += b"\0"
    assert run("fetch", "easy_vqa", "--root", root) == 1
    assert "recorded" in capsys.readouterr().err
    assert not (root / "easy_vqa").exists()


def test_content_that_is_not_the_official_release_is_refused(home, small_release, tmp_path):
    changed = small_release | {"train/questions.json": b"[]"}
    archive = make_zip(tmp_path / "b.zip", {f"repo/easy_vqa/data/{n}": c for n, c in changed.items()})
    home.files["/a.zip"] = archive.read_bytes()
    with pytest.raises(ValueError, match=r"questions\.json: SHA-256 is .*, the official release has"):
        fetch.fetch("easy_vqa", root=tmp_path / "data", progress=False)
    assert not (tmp_path / "data/easy_vqa").exists()


def test_hostile_and_incomplete_archives_leave_nothing(home, small_release, tmp_path):
    root = tmp_path / "data"
    hostile = make_zip(tmp_path / "b.zip", {"../evil": b"evil"})
    partial = make_zip(tmp_path / "c.zip", {"repo/easy_vqa/data/answers.txt": b""})
    several = make_zip(tmp_path / "d.zip", {"one/a": b"", "two/b": b""})
    for archive, message in (
        (hostile, "outside"),
        (partial, "has no easy_vqa/data/train"),
        (several, "one top folder"),
    ):
        home.files["/a.zip"] = archive.read_bytes()
        (root / "SHA256SUMS").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=message):
            fetch.fetch("easy_vqa", root=root, progress=False)
        assert [p.name for p in root.iterdir()] == ["SHA256SUMS"]
    assert not (tmp_path / "evil").exists()


def test_unreachable_and_missing_addresses(home, tmp_path, monkeypatch, capsys):
    del home.files["/a.zip"]
    assert run("fetch", "easy_vqa", "--root", tmp_path / "data") == 1
    assert "can't be reached" in capsys.readouterr().err
    place = fetch.Archive("http://127.0.0.1:9/a.zip", {"train": "train"})  # nothing listens there
    monkeypatch.setitem(fetch.SOURCES, "easy_vqa", {"github": place})
    assert run("fetch", "easy_vqa", "--root", tmp_path / "data") == 1
    message = capsys.readouterr().err
    assert "http://127.0.0.1:9/a.zip can't be reached" in message
    assert "VQA_DATA" in message


def test_a_download_that_stops_early_leaves_no_file(server, tmp_path):
    server.files["/x"] = b"12345"
    server.extra = {"Content-Length": 10}
    with pytest.raises(ConnectionError, match="got 5 of 10 bytes"):
        fetch.download(f"{server.address}/x", tmp_path / "x", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_fetch_from_the_hub(server, tmp_path, monkeypatch):
    """The real client of the hub, talking to this machine."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    official = fetch.SOURCES["vqa_rad"]["parquet"]
    for name, answer in zip(official.files, ("yes", "no")):
        stream = io.BytesIO()
        rows = {"image": [{"bytes": png(), "path": None}], "question": ["is it?"], "answer": [answer]}
        pq.write_table(pa.table(rows), stream)
        server.files[f"/datasets/{official.repository}/resolve/{official.revision}/{name}"] = stream.getvalue()
    server.extra = {"X-Repo-Commit": official.revision}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    place = fetch.Hub(official.repository, official.revision, official.files, endpoint=server.address)
    monkeypatch.setitem(fetch.SOURCES, "vqa_rad", {"parquet": place})
    folder = fetch.fetch("vqa_rad", root=tmp_path / "data", progress=False)
    assert [p.name for p in folder.iterdir()] == ["data"]
    assert [s.answer for s in data.load("vqa_rad", "train", tmp_path / "data")] == ["yes"]
    assert [s.answer for s in data.load("vqa_rad", "test", tmp_path / "data")] == ["no"]

    server.files.clear()
    with pytest.raises(ConnectionError, match=r"can't be fetched from the hub.*put it under VQA_DATA"):
        fetch.fetch("vqa_rad", root=tmp_path / "other", progress=False)
    assert list((tmp_path / "other").iterdir()) == []


def test_wrong_fetches(tmp_path, capsys):
    assert run("fetch", "scenes", "--root", tmp_path) == 1
    assert "'scenes' can't be fetched" in capsys.readouterr().err
    assert run("fetch", "vqa_rad", "--source", "moon", "--root", tmp_path) == 1
    assert "no source 'moon'; allowed are parquet, json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("fetch", "imagenet")


def test_every_data_set_on_disk_has_a_home_that_holds_its_checked_files():
    assert set(fetch.SOURCES) == {name for name, info in catalogue.NAMES.items() if info.find}
    for name, sources in fetch.SOURCES.items():
        archives = [s for s in sources.values() if isinstance(s, fetch.Archive)]
        for place in archives:
            kept = tuple(place.keep)
            assert all(any(f == k or f.startswith(k + "/") for k in kept) for f in catalogue.NAMES[name].sha256)
            assert len(place.url.rsplit("/", 1)[1]) == 40  # pinned to a commit
