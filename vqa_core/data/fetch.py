"""Getting a data set, only when asked: download, verify, unpack inside its folder, put in place.

What is verified:

- annotation files against the SHA-256 of the official release (``DatasetInfo.sha256``), always, before anything is
  put in place;
- files of the hub by ``huggingface_hub``, at a pinned revision;
- archives, whose checksum nobody publishes, against the one recorded in ``SHA256SUMS`` when they were first fetched
  into this folder (trust on first use). They are pinned to a commit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vqa_core.data import flickr8k
from vqa_core.data.catalogue import NAMES
from vqa_core.data.root import data_root, extract

_BLOCK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A zip or tar archive with one top folder; ``keep`` maps names in the data set's folder to names below it."""

    url: str
    keep: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hub:
    """Files of a data set on the Hugging Face hub, at one revision.

    ``unpack`` maps an archive among ``files`` to the folder that it holds, which takes its place.
    """

    repository: str
    revision: str
    files: tuple[str, ...]
    endpoint: str | None = None
    unpack: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ByHand:
    """A data set that nobody may serve: ``how`` says where to ask, and what to put where."""

    how: str


def _github(repository: str, commit: str, keep: Mapping[str, str]) -> Archive:
    return Archive(f"https://codeload.github.com/{repository}/zip/{commit}", keep)


_SHAPES_FILES = [
    f"{part}.{ending}"
    for part in ("train.tiny", "train.small", "val", "test")
    for ending in ("input.npy", "query_str.txt", "query", "output")
]
_MEVF_WEIGHTS = ("pretrained_maml.weights", "pretrained_ae.pth", "glove6b_init_300d.npy", "dictionary.pkl")

# Data set → source name → where it is. The first source is the default.
SOURCES: dict[str, dict[str, Archive | Hub | ByHand]] = {
    "vqa_rad": {
        "parquet": Hub(
            "flaviagiammarino/vqa-rad",
            "bcf91e7654fb9d51c8ab6a5b82cacf3fafd2fae9",
            (
                "data/train-00000-of-00001-eb8844602202be60.parquet",
                "data/test-00000-of-00001-e5bc3d208bb4deeb.parquet",
            ),
        ),
        "json": _github(
            "Awenbocc/med-vqa",
            "0cca6811e38cf54aff6a7cce3442296d07875e64",
            {name: f"data/{name}" for name in ("trainset.json", "testset.json", "images")}
            | {f"mevf_weights/{name}": f"data/{name}" for name in _MEVF_WEIGHTS},
        ),
    },
    "nlvr": {
        "github": _github(
            "lil-lab/nlvr",
            "18924841aa96d519cfb8584f0945350f07a6d860",
            {split: f"nlvr/{split}" for split in ("train", "dev", "test", "hidden")},
        )
    },
    "easy_vqa": {
        "github": _github(
            "vzhou842/easy-VQA",
            "3b553bb7ff42a868d5f4cbe8c88255d7333c3c31",
            {name: f"easy_vqa/data/{name}" for name in ("train", "test", "answers.txt")},
        )
    },
    "daquar": {
        "github": _github(
            "tezansahu/VQA-With-Multimodal-Transformers",
            "e737e61ffa1553b6593579b7c296fbd724c782f8",
            {
                name: f"dataset/{name}"
                for name in (
                    "all_qa_pairs.txt",
                    "train_images_list.txt",
                    "test_images_list.txt",
                    "data_train.csv",
                    "data_eval.csv",
                    "images",
                )
            },
        )
    },
    "shapes": {
        "github": _github(
            "ronghanghu/n2nmn",
            "ccbca1c623f3e208e7cde8d57b00e32dfb7c3c14",
            {name: f"exp_shapes/shapes_dataset/{name}" for name in _SHAPES_FILES},
        )
    },
    "flickr8k": {
        "publisher": ByHand(
            "Flickr8k is given by its publisher on request (hockenmaier.cs.illinois.edu, Framing Image Description), "
            f"and may not be redistributed. Put into VQA_DATA/flickr8k: {flickr8k.LAYOUT}"
        )
    },
    "slake": {
        "hub": Hub(
            "BoKelvin/SLAKE",
            "a9083ce6c34ac3ffb17671a605962924d8a8f9e9",
            ("train.json", "validation.json", "test.json", "imgs.zip"),
            unpack={"imgs.zip": "imgs"},
        )
    },
    "path_vqa": {
        "hub": ByHand(
            "PathVQA is 785 MB on the hub, in files whose names are not known here. Get them, at a revision of your "
            "choice, with: hf download flaviagiammarino/path-vqa --repo-type dataset --include 'data/*.parquet' "
            "--local-dir VQA_DATA/path_vqa"
        )
    },
}


def fetch(name: str, source: str | None = None, root: str | Path | None = None, progress: bool = True) -> Path:
    """Download a data set into ``root/name``; nothing already there is touched.

    Parameters
    ----------
    name
        A key of :data:`SOURCES`.
    source
        One of its sources; default the first.
    root
        Default: ``VQA_DATA``, else ``~/.cache/vqa_core``.
    progress
        Show a bar.

    Returns
    -------
    Path
        The folder of the data set.

    Raises
    ------
    ValueError
        Unknown name or source, a data set that is only to be had by hand, or a checksum that does not agree.
    FileExistsError
        When a part of it is already there.
    ConnectionError
        When the source can't be reached.
    """
    if name not in SOURCES:
        raise ValueError(f"{name!r} can't be fetched; data sets with a public home are {', '.join(SOURCES)}")
    sources = SOURCES[name]
    source = source or next(iter(sources))
    if source not in sources:
        raise ValueError(f"{name} has no source {source!r}; allowed are {', '.join(sources)}")
    place = sources[source]
    if isinstance(place, ByHand):
        raise ValueError(place.how)
    base = data_root(root)
    target = base / name
    wanted = [place.unpack.get(f, f) for f in place.files] if isinstance(place, Hub) else tuple(place.keep)
    for item in wanted:
        if (target / item).exists():
            raise FileExistsError(f"{target / item} is already there; see `data check {name}`, or remove it first")
    base.mkdir(parents=True, exist_ok=True)
    # Staged on the same disk, so that putting in place is a rename.
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=base) as temporary:
        stage = Path(temporary)
        if isinstance(place, Hub):
            _from_hub(place, stage / "new", progress)
        else:
            _from_archive(place, stage, base, progress)
        verify(stage / "new", NAMES[name].sha256)
        for item in wanted:
            (target / item).parent.mkdir(parents=True, exist_ok=True)
            os.replace(stage / "new" / item, target / item)
    return target


def download(url: str, file: Path, progress: bool = True) -> str:
    """Download ``url`` into ``file``; returns its SHA-256. An incomplete download leaves no ``file``."""
    from tqdm import tqdm

    part = file.with_name(file.name + ".part")
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as reply, open(part, "wb") as out:
            length = reply.headers.get("Content-Length")
            total = int(length) if length else None
            bar = tqdm(total=total, unit="B", unit_scale=True, desc=file.name, leave=False, disable=not progress)
            with bar:
                while block := reply.read(_BLOCK):
                    out.write(block)
                    digest.update(block)
                    bar.update(len(block))
        if total is not None and part.stat().st_size != total:
            raise ConnectionError(f"{url}: got {part.stat().st_size:,} of {total:,} bytes; try again")
        os.replace(part, file)
    except (urllib.error.URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"{url} can't be reached ({reason}). Check the network, or get it on another machine and put it "
            "under VQA_DATA"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()


def verify(folder: Path, sha256: Mapping[str, str]) -> list[str]:
    """Compare files with known checksums; returns the names of those that were there and agree.

    Raises
    ------
    ValueError
        When one differs from the official release.
    """
    agreed = []
    for name, known in sha256.items():
        if (folder / name).is_file():
            found = sha256_of(folder / name)
            if found != known:
                raise ValueError(f"{folder / name}: SHA-256 is {found}, the official release has {known}")
            agreed.append(name)
    return agreed


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _from_archive(place: Archive, stage: Path, base: Path, progress: bool) -> None:
    archive = stage / "archive"
    digest = download(place.url, archive, progress)
    _compare_with_first_use(base / "SHA256SUMS", place.url, digest)
    extract(archive, stage / "unpacked")
    tops = list((stage / "unpacked").iterdir())
    if len(tops) != 1 or not tops[0].is_dir():
        raise ValueError(f"{place.url}: expected one top folder, got {sorted(t.name for t in tops)[:5]}")
    for item, inside in place.keep.items():
        if not (tops[0] / inside).exists():
            raise ValueError(f"{place.url}: the archive has no {inside}; nothing was put in place")
        (stage / "new" / item).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(tops[0] / inside, stage / "new" / item)


def _compare_with_first_use(record: Path, url: str, digest: str) -> None:
    lines = record.read_text().splitlines() if record.is_file() else []
    known = {address: seen for seen, _, address in (line.partition("  ") for line in lines)}
    if url not in known:
        with open(record, "a") as f:
            f.write(f"{digest}  {url}\n")
    elif known[url] != digest:
        raise ValueError(
            f"{url}: SHA-256 is {digest}, but {record} recorded {known[url]} when it was first fetched. "
            "If the publisher repacked the archive, remove that line and fetch again"
        )


def _from_hub(place: Hub, folder: Path, progress: bool) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    from tqdm import tqdm

    for name in tqdm(place.files, desc=place.repository, leave=False, disable=not progress):
        try:
            hf_hub_download(
                place.repository,
                name,
                repo_type="dataset",
                revision=place.revision,
                local_dir=folder,
                endpoint=place.endpoint,
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            raise ConnectionError(
                f"{name} of {place.repository} can't be fetched from the hub ({error}). Check the network and "
                "HF_HUB_OFFLINE, or get it on another machine and put it under VQA_DATA"
            ) from error
    for name, inside in place.unpack.items():
        extract(folder / name, folder)
        if not (folder / inside).is_dir():
            raise ValueError(f"{name} of {place.repository} has no {inside}/; nothing was put in place")
