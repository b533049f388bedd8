"""The extension ``accessible``: folded cells are called by what they show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("myst_nb")
EXTENSIONS = Path(__file__).parents[2] / "book" / "_ext"


def summaries(folder: Path, extensions: list[str]) -> list[str]:
    """The ``<summary>`` elements of the page that is built with some extensions."""
    (folder / "conf.py").write_text(
        f'extensions = {extensions}\nnb_execution_mode = "off"\nhtml_theme = "basic"\n', encoding="utf-8"
    )
    folded = nbformat.v4.new_code_cell("x = 1", metadata={"tags": ["hide-input"]})
    cells = [nbformat.v4.new_markdown_cell("# Page"), folded]
    language = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=language), folder / "index.ipynb")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(folder), str(folder / "html")]
    environment = {**os.environ, "PYTHONPATH": str(EXTENSIONS), "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return re.findall(r"<summary.*?</summary>", (folder / "html/index.html").read_text(encoding="utf-8"), re.DOTALL)


def test_button_of_a_folded_cell_has_its_text_as_name(tmp_path):
    (found,) = summaries(tmp_path, ["myst_nb", "accessible"])
    assert "aria-label" not in found
    assert "Show code cell source" in found


def test_without_the_extension_the_name_is_another(tmp_path):
    """When this fails, MyST-NB has changed its label: see whether the extension is still needed."""
    (found,) = summaries(tmp_path, ["myst_nb"])
    assert 'aria-label="Toggle hidden content"' in found
