"""``python -m vqa_core data list | info | fetch | check``."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from vqa_core.data.catalogue import NAMES, DatasetInfo, load
from vqa_core.data.root import data_root
from vqa_core.data.types import Dataset


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``data`` sub-command; its handler is ``arguments.run(arguments)`` and returns the exit code."""
    parser = subparsers.add_parser("data", help="list, describe, get and check data sets")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="table of data sets: licence, present or not, where")
    _add_root(command)
    command.set_defaults(run=lambda a: show_list(a.root))

    command = commands.add_parser("info", help="counts, families, answers, notes and content hash of one data set")
    command.add_argument("name", choices=list(NAMES), metavar="NAME")
    _add_root(command)
    command.set_defaults(run=lambda a: show_info(a.name, a.root))

    command = commands.add_parser("fetch", help="download one data set into VQA_DATA")
    command.add_argument("name", choices=list(NAMES), metavar="NAME")
    command.add_argument("--source", help="which of several homes, for example json or parquet for vqa_rad")
    _add_root(command)
    command.set_defaults(run=lambda a: run_fetch(a.name, a.source, a.root))

    command = commands.add_parser("check", help="open every file and every picture of one data set")
    command.add_argument("name", choices=list(NAMES), metavar="NAME")
    _add_root(command)
    command.set_defaults(run=lambda a: run_check(a.name, a.root))


def _add_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", help="folder that holds one folder per data set (default: VQA_DATA)")


def show_list(root: str | None = None) -> int:
    """Print the table of data sets."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    columns = [Column(name, overflow="fold") for name in ("name", "title", "present", "where", "licence")]
    table = Table(*columns, box=box.SIMPLE, title=f"VQA_DATA: {data_root(root)}")
    for info in NAMES.values():
        if info.find is None:
            present, where = "generated", "-"
        else:
            try:
                present, where = "yes", str(info.find(root))
            except FileNotFoundError:
                present, where = "no", f"get it: python -m vqa_core data fetch {info.name}"
        table.add_row(info.name, info.title, present, where, info.licence)
    Console().print(table)
    return 0


def show_info(name: str, root: str | None = None) -> int:
    """Print what one data set is and what is in each of its splits."""
    info = NAMES[name]
    print(f"{info.title}\n  licence: {info.licence}\n  paper:   {info.paper}\n  source:  {info.source}")
    try:
        for split, dataset in _present_splits(info, root):
            print(f"\n{split}: {info.splits[split]}")
            print(f"  {info.holds:<9} {len(dataset):,}, pictures {len(dataset.picture_ids):,}")
            if info.holds == "questions":
                print(f"  families  {_counts(s.family for s in dataset)}")
                print(f"  kinds     {_counts(s.kind for s in dataset)}")
                print(f"  answers   {len({s.answer for s in dataset}):,}: {_counts((s.answer for s in dataset), 8)}")
            for note in dataset.notes:
                print(f"  note      {note}")
            print(f"  content   sha256 {dataset.content_hash()}")
    except (FileNotFoundError, ValueError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def run_fetch(name: str, source: str | None = None, root: str | None = None) -> int:
    """Download one data set."""
    from vqa_core.data.fetch import fetch

    print(f"{NAMES[name].title}, licence: {NAMES[name].licence}")
    try:
        folder = fetch(name, source, root)
    except (ValueError, FileExistsError, ConnectionError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{folder}\nnow: python -m vqa_core data check {name}")
    return 0


def run_check(name: str, root: str | None = None) -> int:
    """Print an "ok" line for what holds and the list of problems, if any; 1 if there are problems."""
    ok, problems = check(name, root)
    for line in ok:
        print(f"ok  {line}")
    for line in problems:
        print(f"problem  {line}", file=sys.stderr)
    print(f"{name}: {len(problems)} problems" if problems else f"{name}: everything is in order")
    return 1 if problems else 0


def check(name: str, root: str | None = None, progress: bool = True) -> tuple[list[str], list[str]]:
    """Open every file and every picture of a data set and compare the official counts and checksums.

    Returns
    -------
    ok, problems : list of str
        What holds, and what does not.
    """
    from tqdm import tqdm

    from vqa_core.data.fetch import verify

    info = NAMES[name]
    ok, problems, sources = [], [], {}
    official = {}
    if info.find is not None:
        try:
            folder = info.find(root)
        except (FileNotFoundError, ValueError) as error:
            return ok, [str(error)]
        official = info.expected(folder)
        for file, known in info.sha256.items():
            try:
                ok += [f"{agreed}: official SHA-256" for agreed in verify(folder, {file: known})]
            except ValueError as error:
                problems.append(str(error))

    for split in official or info.splits:
        try:
            dataset = load(name, split, root)
        except (FileNotFoundError, ValueError) as error:
            problems.append(f"{split}: {error}")
            continue
        entries, pictures = official.get(split, (None, None))
        found = len(dataset), len(dataset.picture_ids)
        wrong = [
            f"{split}: {n:,} {what}, the official release has {right:,}"
            for n, right, what in zip(found, (entries, pictures), (info.holds, "pictures"))
            if right is not None and n != right
        ]
        problems += wrong
        if not wrong:
            ok.append(f"{split}: {found[0]:,} {info.holds} about {found[1]:,} pictures")
        sources.update(dict.fromkeys(dataset.picture_ids, dataset))  # the same id is the same picture in every split

    damaged = 0
    for picture_id, dataset in tqdm(sources.items(), desc=f"{name} pictures", leave=False, disable=not progress):
        try:
            dataset.picture(picture_id)
        except (FileNotFoundError, ValueError) as error:
            damaged += 1
            problems.append(str(error))
    if not damaged and sources:
        ok.append(f"{len(sources):,} pictures open")
    return ok, problems


def _present_splits(info: DatasetInfo, root: str | None) -> list[tuple[str, Dataset]]:
    splits = info.splits if info.find is None else info.expected(info.find(root))
    return [(split, load(info.name, split, root)) for split in splits]


def _counts(values, most: int | None = None) -> str:
    return ", ".join(f"{value} {n:,}" for value, n in Counter(values).most_common(most))
