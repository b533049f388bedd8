"""Measured numbers in prose are found; everything else is left alone."""

import jupytext
import nbformat
import pytest

from book.pipeline import lint


@pytest.mark.parametrize(
    "text",
    [
        "The model reaches 87 % on it.",
        "The model reaches 87.3% on it.",
        "Accuracy rises to 0.87 with fusion.",
        "It gains 3 points.",
        "It gains 2.5 percentage points.",
        "Training takes 3 seconds.",
        "It needs 12 GB.",
        "It runs 4 times faster.",
        "A loss of -0.25.",
        "- a list item with 0.5 in it",
        ":::{note}\nIt reaches 87 %.\n:::",
        "```{admonition} A title of 12 %\n:class: tip\nbody\n```",
        "> quoted, 62.6 by {cite:t}`nguyen2019`",
        "Half of 95 % of pictures.",
        "| a | 0.731 |",
    ],
)
def test_typed_numbers_are_found(text):
    assert len(list(lint.typed_numbers(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "The model reaches {val}`01.best:.1%` on it.",
        "A learning rate of `0.001` and $p = 0.05$ and\n\n$$\n0.5 \\cdot 3.2\n$$\n",
        "\\begin{align}\na &= 0.5\n\\end{align}",
        "In 2019, three seeds, 12 heads, ResNet-50, Figure 3.1, Chapter 7.2, Python 3.11, 3.12 or 3.13, torch 2.11.",
        "1. first\n2. second",
        "```python\nx = 0.5\n```",
        "```{code-block} python\nx = 0.87\n```",
        "A 95 % interval, a 95 % confidence interval, a 95 per cent {term}`confidence interval`.",
        ":::{figure} x.svg\n:width: 80%\n:::",
        "Published as {typed}`62.6` by {cite:t}`nguyen2019`.",
        "[a link](https://example.org/1.5/3.2%20x) and <span style='width: 50%'>x</span>",
        "<!-- measured once: 0.5 s -->",
        "CC BY 4.0 and version 1.2",
        "---\ntitle: 0.5 s\n---\ntext",
    ],
)
def test_other_numbers_are_left_alone(text):
    assert list(lint.typed_numbers(text)) == []


def test_line_of_the_number_is_named():
    text = "fine\n\n```python\nx = 0.5\n```\n\nIt reaches 87 %."
    assert [line for line, _ in lint.typed_numbers(text)] == [7]


def test_published_numbers_need_their_citation_in_the_paragraph():
    assert list(lint.typed_numbers("Published as {typed}`62.6`.\n\nBy {cite:t}`nguyen2019`."))


def test_captions_and_alternative_texts_are_prose():
    good = 'chapter.figure(fig, "a", caption=f"It gains {gain:.1%}.", alt="A rising line", data=data, width=0.5)'
    bad = 'chapter.figure(fig, "a", caption=f"It gains 3 points over {x}.", alt="A line that ends at 0.87", data=data)'
    assert list(lint.typed_captions(good)) == []
    assert len(list(lint.typed_captions(bad))) == 2


def test_long_cells_are_found():
    cell = lambda lines: nbformat.v4.new_code_cell("\n".join(["x = 1"] * lines))  # noqa: E731
    notebook = lambda *lengths: nbformat.v4.new_notebook(cells=[cell(n) for n in lengths])  # noqa: E731
    assert lint.cell_lengths(notebook(25, 8, 3)) == []
    assert "26 lines" in lint.cell_lengths(notebook(26, 8, 3))[0]
    assert "median" in lint.cell_lengths(notebook(9, 9, 3))[0]


def test_notebook_is_linted_by_cell(tmp_path):
    path = tmp_path / "01_x.py"
    path.write_text('# %% [markdown]\n# # Title\n#\n# It takes 3 seconds.\n\n# %%\nf(caption="87 %")\n')
    found = lint.lint_notebook(path)
    assert [x.split(":")[0] for x in found] == ["01_x.py, cell 0, line 3", "01_x.py, cell 1, line 1"]
    assert len(jupytext.read(path).cells) == 2


def test_the_book_types_no_measured_number():
    assert lint.lint() == []
