"""A tiny checkout: one notebook, no experiment, and what the pipeline reads around it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = (
    "# ---\n# jupyter:\n#   kernelspec:\n#     display_name: Python 3\n#     language: python\n"
    "#     name: python3\n# ---\n\n"
)
NOTEBOOK = (
    HEADER
    + """# %% [markdown]
# # A chapter
#
# Its best accuracy is {val}`01_tiny.best`, see {numref}`fig-01-tiny-curve`.

# %% tags=["parameters"]
PROFILE = "auto"
SEEDS = 3

# %%
import matplotlib.pyplot as plt
import pandas as pd

from vqa_core import figures  # the one helper

chapter = figures.Chapter("01_tiny", profile=PROFILE)
data = pd.DataFrame({"seed": range(SEEDS), "accuracy": [0.5] * SEEDS})
chapter.value("best", 0.5, n=SEEDS, of="seeds")

# %% [markdown]
# Now the figure.

# %%
fig, ax = plt.subplots()
ax.plot(data["seed"], data["accuracy"])
chapter.figure(fig, "curve", caption="A curve.", alt="A line that stays level over the seeds", data=data)

# %% tags=["hide-input"]
chapter.table(data, "rows", caption="The rows, with `code`.", formats={"accuracy": ".1%"})
"""
)


def _make_checkout(folder: Path) -> Path:
    """Files of a checkout with one notebook; ``vqa_core`` is an empty folder that marks the root."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "vqa_core").mkdir()
    (folder / "figures").mkdir()
    (folder / "book/pipeline").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "notebooks/01_tiny.py").write_text(NOTEBOOK)
    (folder / "book/pipeline/profiles.yml").write_text("notebooks:\n  01_tiny:\n    smoke: {SEEDS: 2}\n")
    (folder / "book/_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nparts:\n- caption: Chapters\n  chapters:\n"
        "  - file: notebooks/01_tiny\n  - file: notebooks/02_planned\n    title: Planned\n"
        "- caption: Later\n  chapters:\n  - file: notebooks/03_planned\n"
    )
    (folder / "book/index.md").write_text("# Index\n")
    (folder / "_config.yml").write_text(
        "title: Tiny\nonly_build_toc_files: true\nexecute:\n  execute_notebooks: 'off'\n"
    )
    (folder / "book/claims.yml").write_text(
        "- id: T1\n  claim: It is level.\n  source: us\n  chapter: 1\n  experiment: ''\n"
        "  test: slope\n  unit: fraction\n  rule: supported if high < 1; refuted if low > 1\n  verdict: not yet run\n"
    )
    return folder


@pytest.fixture(scope="session")
def make_checkout():
    return _make_checkout


@pytest.fixture
def checkout(tmp_path):
    return _make_checkout(tmp_path / "book")


@pytest.fixture(scope="session")
def executed_checkout(tmp_path_factory):
    """A checkout whose notebook was executed for real, once for all tests; they copy it."""
    from book.pipeline import execute, prepare

    root = _make_checkout(tmp_path_factory.mktemp("executed") / "book")
    prepare.refresh(root)
    execute.execute("01_tiny", "cpu", root)
    return root


@pytest.fixture
def executed(executed_checkout, tmp_path):
    return Path(shutil.copytree(executed_checkout, tmp_path / "book"))
