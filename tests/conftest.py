"""Fixtures of every test: fixed seeds, and the real data sets where they are present."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest


def _find_data_root() -> Path | None:
    """``VQA_DATA``, else the data folder beside the checkout, if there is one."""
    given = os.environ.get("VQA_DATA")
    root = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    return root.resolve() if root.is_dir() else None


DATA_ROOT = _find_data_root()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs real data that are absent; ``@pytest.mark.realdata("nlvr")`` names the folders it needs."""
    for item in items:
        for mark in item.iter_markers("realdata"):
            if DATA_ROOT is None:
                item.add_marker(pytest.mark.skip(reason="no real data: set VQA_DATA to the folder that holds them"))
            elif absent := [name for name in mark.args if not (DATA_ROOT / name).is_dir()]:
                item.add_marker(pytest.mark.skip(reason=f"not in {DATA_ROOT}: {', '.join(absent)}"))


@pytest.fixture
def data_root() -> Path:
    """The folder that holds one folder per real data set; the test is skipped where there is none."""
    if DATA_ROOT is None:
        pytest.skip("no real data: set VQA_DATA to the folder that holds them")
    return DATA_ROOT


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """The same random numbers in every test, in any order of tests."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that use the global generator
    if "torch" in sys.modules:  # a test that does not use torch must not pay for importing it
        sys.modules["torch"].manual_seed(0)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say whether the real data were there: a green run without them has tested less."""
    counts = {
        outcome: sum("realdata" in getattr(report, "keywords", ()) for report in terminalreporter.getreports(outcome))
        for outcome in ("passed", "failed", "skipped")
    }
    where = DATA_ROOT if DATA_ROOT else "absent (set VQA_DATA)"
    ran = counts["passed"] + counts["failed"]
    terminalreporter.write_line(f"real data: {where}; realdata tests: {ran} ran, {counts['skipped']} skipped")
