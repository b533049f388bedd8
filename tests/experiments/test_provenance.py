import ast
from pathlib import Path

import pytest

from vqa_core.experiments import provenance


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "notebook.py"
    path.write_text(text)
    return path


def test_follows_imports_inside_functions_and_through_modules(tmp_path):
    path = write(tmp_path, "def f():\n    from vqa_core.training import feed\n")
    used = provenance.modules_used([path])
    assert {"vqa_core.training.feed", "vqa_core.data.text", "vqa_core.training", "vqa_core"} <= set(used)
    assert "vqa_core.experiments.runner" not in used


def test_package_passed_through_counts_only_what_it_imports_at_once():
    used = provenance.modules_used(["vqa_core.data.text"])
    assert "vqa_core.data" in used or not (provenance.PACKAGE_ROOT / "data" / "__init__.py").exists()
    assert not any("nlvr" in m for m in used)


def test_hash_ignores_comments_and_docstrings_but_not_code(tmp_path):
    hashes = [
        provenance.code_hash([write(tmp_path, text)])
        for text in (
            'def f():\n    """One."""\n    return 1\n',
            'def f():  # why\n    """Two."""\n    return 1\n',
            "def f():\n    return 2\n",
        )
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_outline_is_the_same_text_in_every_version_of_python():
    """Fixed texts, with the fields that 3.12 added and 3.13 prints differently; and nothing that matters is lost."""
    cases = {
        "def f(): pass": "Module(body=[FunctionDef(name='f', args=arguments(), body=[Pass()])])",
        "class A: x: int = None": (
            "Module(body=[ClassDef(name='A', body=[AnnAssign(target=Name(id='x', ctx=Store()), "
            "annotation=Name(id='int', ctx=Load()), value=Constant(), simple=1)])])"
        ),
        "f'{x!r:>9} b'": (
            "Module(body=[Expr(value=JoinedStr(values=[FormattedValue(value=Name(id='x', ctx=Load()), conversion=114, "
            "format_spec=JoinedStr(values=[Constant(value='>9')])), Constant(value=' b')]))])"
        ),
    }
    for source, text in cases.items():
        assert provenance.outline(ast.parse(source)) == text
    different = ["x = 0", "x = False", "x = None", "x = []", "x = [0]", "x = 0.0", "x = ()", "x = {}", "x == 0"]
    assert len({provenance.outline(ast.parse(source)) for source in different}) == len(different)


def test_unknown_module_is_an_error():
    with pytest.raises(ValueError, match=r"no module 'vqa_core\.nonsense'"):
        provenance.modules_used(["vqa_core.nonsense"])


def test_git_state_outside_a_checkout(tmp_path):
    assert provenance.git_state(tmp_path) == {"revision": "unknown", "dirty": True}


def test_hardware_and_versions_are_filled():
    assert provenance.hardware()["cores"] >= 1
    assert provenance.versions()["torch"]


def test_script_beside_a_module_is_part_of_its_code(monkeypatch, tmp_path):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "page.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "PACKAGE_ROOT", tmp_path)
    hashes = [provenance.code_hash(["vqa_core.page"])]
    for text in ("one();\n", "two();  // changed\n"):
        (tmp_path / "page.js").write_text(text)
        hashes.append(provenance.code_hash(["vqa_core.page"]))
    assert len(set(hashes)) == 3
