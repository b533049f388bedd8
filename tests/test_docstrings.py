"""Every public module, class and function of ``vqa_core`` says in a docstring what it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vqa_core"
MODULES = sorted(PACKAGE.rglob("*.py"))


def without_docstring(tree: ast.Module) -> Iterator[str]:
    """Public names of a module that have no docstring; ``(module)`` is the module itself."""
    if not ast.get_docstring(tree):
        yield "(module)"
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if public and not ast.get_docstring(node):
            yield node.name


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_names_have_docstrings(path):
    missing = list(without_docstring(ast.parse(path.read_text(encoding="utf-8"))))
    assert not missing, f"{path.relative_to(PACKAGE.parent)}: no docstring for {', '.join(missing)}"


def test_a_missing_docstring_is_found():
    assert list(without_docstring(ast.parse("class A: ...\ndef _b(): ...\ndef c(): 'C.'\ndef d(): ...\n"))) == [
        "(module)",
        "A",
        "d",
    ]
