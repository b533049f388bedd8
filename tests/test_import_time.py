"""``import vqa_core`` and the command line's help are light; how many milliseconds, ``make bench`` says."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "transformers", "pandas", "sklearn", "scipy", "datasets", "matplotlib"}


def loaded_by(program: str) -> set[str]:
    """Heavy packages that a fresh process has loaded when the program is done."""
    report = "import sys; print('loaded', *sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", f"{program}\n{report}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()) & HEAVY


@pytest.mark.parametrize(
    "module",
    ["vqa_core", "vqa_core.data", "vqa_core.data.scenes", "vqa_core.ask", "vqa_core.__main__", "vqa_core.experiments"],
)
def test_importing_loads_nothing_heavy(module):
    assert loaded_by(f"import {module}") == set()


@pytest.mark.parametrize("words", [[], ["ask"], ["run"], ["data", "check"]])
def test_help_loads_nothing_heavy(words):
    program = f"""
from vqa_core.__main__ import main
try:
    main({[*words, "--help"]!r})
except SystemExit as end:
    assert end.code == 0
"""
    assert loaded_by(program) == set()


def test_something_heavy_would_be_noticed():
    assert "torch" in loaded_by("import vqa_core.model")
