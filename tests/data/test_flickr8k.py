"""Flickr8k: the official form, the re-distributed CSV form, splits that share nothing, every kind of damage."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vqa_core import data
from vqa_core.data import catalogue, commands, flickr8k

TOLD = ["A dog , a ball .", 'A "cat" sits', "Two men", "A red bus", "Snow on a hill"]


def names(n):
    return [f"10{i:02d}_ab.jpg" for i in range(n)]


def write_pictures(folder, pictures):
    folder.mkdir(parents=True)
    for i, name in enumerate(pictures):
        Image.fromarray(np.full((6, 8, 3), 15 * i, dtype=np.uint8)).save(folder / name, quality=95)


def lines_of(pictures):
    return [f"{name}#{k}\t{caption} {i}" for i, name in enumerate(pictures) for k, caption in enumerate(TOLD)]


def write_official(root, lines=None, lists=None):
    """Four pictures in the official form; ``lists`` replaces the lists of pictures."""
    folder, (a, b, c, d) = root / "flickr8k", names(4)
    write_pictures(folder / "Flicker8k_Dataset", (a, b, c, d))
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines_of((a, b, c, d)) if lines is None else lines) + "\n")
    for split, listed in ({"train": (c, a), "dev": (b,), "test": (d,)} | (lists or {})).items():
        (folder / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{name}\n" for name in listed))
    return folder


def write_table(root, pictures=16, rows=None):
    folder = root / "flickr8k"
    write_pictures(folder / "Images", names(pictures))
    with open(folder / "captions.txt", "w", newline="") as f:
        table = csv.writer(f, lineterminator="\n")
        table.writerow(["image", "caption"])
        table.writerows(rows or [[n, f"{caption} {i}"] for i, n in enumerate(names(pictures)) for caption in TOLD])
    return folder


def test_official_lists_give_the_splits_in_their_order(tmp_path):
    write_official(tmp_path)
    a, b, c, d = names(4)
    found = {split: data.load("flickr8k", split, tmp_path) for split in flickr8k.SPLITS}
    assert {split: part.picture_ids for split, part in found.items()} == {"train": (c, a), "dev": (b,), "test": (d,)}
    assert found["train"].captions == tuple(tuple(f"{caption} {i}" for caption in TOLD) for i in (2, 0))
    assert len(found["train"]) == 10
    assert found["train"].picture(c).shape == (6, 8, 3)
    assert abs(int(found["train"].picture(c).mean()) - 30) <= 2  # JPEG
    assert found["train"].notes == ()


def test_captions_are_put_into_the_order_of_their_numbers(tmp_path):
    write_official(tmp_path, lines=lines_of(names(4))[::-1])
    assert data.load("flickr8k", "dev", tmp_path).captions == (tuple(f"{caption} 1" for caption in TOLD),)


def test_the_entry_without_a_picture_is_left_out_and_said(tmp_path):
    absent = flickr8k.WITHOUT_PICTURE
    lines = [*lines_of(names(4)), *(f"{absent}#{k}\tpeople gather" for k in range(5))]
    folder = write_official(tmp_path, lines)
    for split in flickr8k.SPLITS:
        part = data.load("flickr8k", split, tmp_path)
        assert absent not in part.picture_ids
        assert part.notes == (f"left out, since its picture was never released: {absent}",)
    (folder / "Flickr_8k.devImages.txt").write_text(absent + "\n")
    with pytest.raises(ValueError, match=r"devImages\.txt, line 1: Flickr8k\.token\.txt has no captions of 2258277193"):
        data.load("flickr8k", "dev", tmp_path)


def test_commas_and_quotes_in_the_table(tmp_path):
    write_table(tmp_path)
    part = data.load("flickr8k", "test", tmp_path)
    i = names(16).index(part.picture_ids[0])
    assert part.captions[0] == tuple(f"{caption} {i}" for caption in TOLD)
    assert '"A dog , a ball .' in (tmp_path / "flickr8k" / "captions.txt").read_text()  # it was quoted
    assert abs(int(part.picture(part.picture_ids[0]).mean()) - 15 * i) <= 3


def test_a_drawn_split_covers_all_shares_nothing_and_does_not_depend_on_the_order(tmp_path):
    rows = [[n, c] for n in names(16) for c in TOLD]
    write_table(tmp_path / "one", rows=rows)
    write_table(tmp_path / "two", rows=rows[::-1])
    one, two = (
        {split: data.load("flickr8k", split, tmp_path / which) for split in flickr8k.SPLITS} for which in ("one", "two")
    )
    ids = {split: part.picture_ids for split, part in one.items()}
    assert ids == {split: part.picture_ids for split, part in two.items()}
    assert {split: len(i) for split, i in ids.items()} == {"train": 12, "dev": 2, "test": 2}
    assert sorted(i for part in ids.values() for i in part) == names(16)
    assert all("not the official one" in part.notes[-1] for part in one.values())


def test_a_table_with_lists_has_the_official_splits(tmp_path):
    folder = write_table(tmp_path)
    for split, listed in (("train", names(16)[2:]), ("dev", names(2)[:1]), ("test", names(2)[1:])):
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(listed) + "\n")
    assert data.load("flickr8k", "test", tmp_path).picture_ids == (names(2)[1],)
    assert data.load("flickr8k", "test", tmp_path).notes == ()
    (folder / "Flickr_8k.devImages.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"devImages\.txt is missing"):
        data.load("flickr8k", "test", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1000_ab.jpg#0 A dog", r"line 2: expected <picture>\.jpg#<number>, a tab and a caption"),
        ("1000_ab.jpg#0\tA dog", r"line 2: caption 0 of 1000_ab\.jpg occurs twice"),
        ("1000_ab.jpg#7\tA dog", r"1000_ab\.jpg has captions \[0, 7\], expected 0 to 4"),
        ("1000_ab.jpg#1\t ", r"line 2: the caption is empty"),
        ("77_ab.jpg.1#1\tA dog", r"line 2: '77_ab\.jpg\.1' is no \.jpg"),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, message):
    write_official(tmp_path, lines=["1000_ab.jpg#0\tA dog", line])
    with pytest.raises(ValueError, match=message):
        data.load("flickr8k", "train", tmp_path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["1.jpg", "a", "b"]], r"line 2: expected a \.jpg and a caption, in quotes if it has a comma"),
        ([["1.png", "a"]], r"line 2: expected a \.jpg"),
        ([["1.jpg", "a"]] * 4, r"1\.jpg has 4 captions, expected five"),
        ([["1.jpg", "a"], ["1.jpg", ""]], r"line 3: the caption is empty"),
    ],
)
def test_damaged_rows_are_named(tmp_path, rows, message):
    write_table(tmp_path, rows=rows)
    with pytest.raises(ValueError, match=message):
        data.load("flickr8k", "train", tmp_path)
    (tmp_path / "flickr8k" / "captions.txt").write_text("picture,text\n")
    with pytest.raises(ValueError, match=r"captions\.txt, line 1: the columns must be image,caption"):
        data.load("flickr8k", "train", tmp_path)


def test_lists_that_share_a_picture_are_refused(tmp_path):
    write_official(tmp_path, lists={"dev": (names(4)[0],)})
    with pytest.raises(ValueError, match=r"devImages\.txt, line 1: 1000_ab\.jpg is already in Flickr_8k\.trainImages"):
        data.load("flickr8k", "test", tmp_path)


def test_missing_and_damaged_pictures_are_named_when_read(tmp_path):
    folder = write_official(tmp_path) / "Flicker8k_Dataset"
    part = data.load("flickr8k", "train", tmp_path)
    (folder / part.picture_ids[0]).unlink()
    (folder / part.picture_ids[1]).write_bytes(b"no picture")
    with pytest.raises(FileNotFoundError, match=r"Flicker8k_Dataset.1002_ab\.jpg: the picture is missing"):
        part.picture(part.picture_ids[0])
    with pytest.raises(ValueError, match=r"1000_ab\.jpg: damaged picture"):
        part.picture(part.picture_ids[1])


def test_the_first_pictures_and_the_hash(tmp_path):
    write_official(tmp_path)
    part = data.load("flickr8k", "train", tmp_path)
    assert part.first(1).picture_ids == part.picture_ids[:1]
    assert len(part.first(1)) == 5
    assert part.first(9).content_hash() == part.content_hash() != part.first(1).content_hash()


def test_list_info_and_check(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    folder = write_official(tmp_path)
    counts = {"train": (10, 2), "dev": (5, 1), "test": (5, 1)}
    info = replace(catalogue.NAMES["flickr8k"], expected=lambda folder: counts)
    monkeypatch.setitem(catalogue.NAMES, "flickr8k", info)
    assert commands.show_list(tmp_path) == 0
    assert str(folder) in capsys.readouterr().out
    assert commands.show_info("flickr8k", tmp_path) == 0
    out = capsys.readouterr().out
    assert "captions  10, pictures 2" in out
    assert "families" not in out
    assert commands.run_check("flickr8k", tmp_path) == 0
    assert "ok  train: 10 captions about 2 pictures" in capsys.readouterr().out
    (folder / "Flicker8k_Dataset" / names(1)[0]).unlink()
    assert commands.run_check("flickr8k", tmp_path) == 1
    assert "1000_ab.jpg: the picture is missing" in capsys.readouterr().err


def test_official_numbers(tmp_path):
    folder = write_official(tmp_path)
    assert flickr8k.expected(folder) == {"train": (30000, 6000), "dev": (5000, 1000), "test": (5000, 1000)}
    drawn = flickr8k.expected(write_table(tmp_path / "table"))
    assert sum(pictures for _, pictures in drawn.values()) == 8091
    assert drawn["test"] == (5055, 1011)


def test_fetch_says_where_to_ask(tmp_path, capsys):
    assert commands.run_fetch("flickr8k", root=tmp_path) == 1
    message = capsys.readouterr().err
    assert "on request" in message
    assert "Flicker8k_Dataset/" in message
    assert list(tmp_path.iterdir()) == []
