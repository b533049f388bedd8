"""pyproject.toml, requirements.lock.txt and environment.yml ask for the same."""

import shutil
from pathlib import Path

import pytest

from book.pipeline.check import lock_problems

ROOT = Path(__file__).parents[1]
FILES = ("pyproject.toml", "requirements.lock.txt", "environment.yml")


def test_files_agree():
    assert lock_problems(ROOT) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("pyproject.toml", '"einops>=0.8,<1"', '"einops>=0.9,<1"', "einops"),
        ("pyproject.toml", '"filelock>=3.16"', '"filelock>=3.16", "nowhere-locked"', "nowhere-locked"),
        ("pyproject.toml", '"papermill>=2.7,<3"', '"papermill>=3"', "papermill"),
        ("environment.yml", "python=3.11", "python=3.10", "python 3.10"),
        ("environment.yml", "- --require-hashes\n", "", "with hashes"),
        ("requirements.lock.txt", "--hash=sha256:", "", "without hashes"),
    ],
)
def test_disagreement_is_named(tmp_path, file, old, new, said):
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    assert said in "\n".join(lock_problems(tmp_path))
