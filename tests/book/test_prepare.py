"""Only what changes the meaning of the code changes what the engine looks at."""

import ast
import subprocess
import sys

import nbformat
import pytest

from book import pipeline
from book.pipeline import notebooks, parameters, prepare


def edit(root, old, new):
    path = root / "notebooks/01_tiny.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    prepare.refresh(root)


def state(root):
    files = [root / "build/code/01_tiny.ipynb", root / "build/fingerprints/notebook-01_tiny.json"]
    return [(p.read_bytes(), p.stat().st_mtime_ns) for p in files]


def test_code_notebook_has_only_code(checkout):
    prepare.refresh(checkout)
    full = nbformat.read(checkout / "build/notebooks/01_tiny.ipynb", as_version=4)
    code = nbformat.read(checkout / "build/code/01_tiny.ipynb", as_version=4)
    assert [c.source for c in code.cells] == [c.source for c in full.cells if c.cell_type == "code"]
    assert sum(prepare.is_parameters(c) for c in code.cells) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# Now the figure.", "# Here is the figure, in other words."),
        ("# the one helper", "# another comment"),
        ("ax.plot(data", "ax.plot( data"),
        ('# %% tags=["hide-input"]', "# %%"),
    ],
)
def test_prose_comments_and_layout_execute_nothing(checkout, old, new):
    prepare.refresh(checkout)
    before = state(checkout)
    full = (checkout / "build/notebooks/01_tiny.ipynb").read_bytes()
    edit(checkout, old, new)
    assert state(checkout) == before
    assert (checkout / "build/notebooks/01_tiny.ipynb").read_bytes() != full


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SEEDS = 3", "SEEDS = 4"),
        ("[0.5] * SEEDS", "[0.6] * SEEDS"),
        ("# %% [markdown]\n# Now the figure.\n\n# %%\n", ""),
    ],
)
def test_code_is_executed_again(checkout, old, new):
    prepare.refresh(checkout)
    before = state(checkout)
    edit(checkout, old, new)
    assert state(checkout) != before


def test_fingerprint_follows_the_modules_used(checkout, monkeypatch):
    from vqa_core.experiments import provenance

    prepare.refresh(checkout)
    before = prepare.notebook_fingerprint("01_tiny", checkout)
    real = provenance.code_hash
    seen = []
    monkeypatch.setattr(provenance, "code_hash", lambda names: seen.extend(names) or real(names) + "changed")
    after = prepare.notebook_fingerprint("01_tiny", checkout)
    assert "vqa_core.figures" in seen
    assert after["cells"] == before["cells"]
    assert after["modules"] != before["modules"]


def test_pair_is_what_jupytext_and_nbstripout_make(checkout):
    prepare.refresh(checkout)
    alone = checkout / "notebooks/01_tiny.ipynb"
    source = checkout / "notebooks/01_tiny.py"
    assert prepare.pairs_out_of_date(checkout) == ["01_tiny"]
    subprocess.run([sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb", str(source)], check=True)
    subprocess.run([sys.executable, "-m", "nbstripout", str(alone)], check=True)
    assert prepare.pairs_out_of_date(checkout) == []
    alone.write_text(alone.read_text().replace("A chapter", "Another chapter"))
    assert prepare.pairs_out_of_date(checkout) == ["01_tiny"]
    alone.unlink()
    assert prepare.pairs_out_of_date(checkout) == ["01_tiny"]


GOOD = [("SEEDS = 3\nRATE: float = 0.1", True), ("run(SEEDS)", False), ("RATE = min(RATE, 1)", False)]


@pytest.mark.parametrize(
    ("cells", "override", "said"),
    [
        (GOOD, "SEEDS", None),
        (GOOD, "RATE", None),
        (GOOD, "EPOCHS", "not declared"),
        ([GOOD[0], ("SEEDS = 5", False), GOOD[1]], "SEEDS", "bound again before it is read"),
        ([GOOD[0], ("for SEEDS in range(3):\n    run(SEEDS)", False)], "RATE", "never read"),
        ([GOOD[0], ("%matplotlib inline", False), GOOD[1]], "SEEDS", None),
        ([GOOD[1]], "SEEDS", "0 cells are tagged"),
        ([GOOD[0], GOOD[0], GOOD[1]], "SEEDS", "2 cells are tagged"),
    ],
)
def test_overrides_must_be_declared_and_read(cells, override, said):
    problems = prepare.parameter_problems(cells, {override: 1})
    assert (problems == []) if said is None else said in problems[0]


def test_every_override_of_the_book_reaches_its_notebook():
    prepare.refresh()
    assert prepare.check_parameters() == []


def test_every_pair_of_the_book_is_up_to_date():
    prepare.refresh()
    assert prepare.pairs_out_of_date() == []


def test_overrides_are_checked_for_each_profile(checkout):
    (checkout / "book/pipeline/profiles.yml").write_text("notebooks:\n  01_tiny:\n    gpu: {EPOCHS: 2}\n")
    prepare.refresh(checkout)
    assert [p.split(":")[0] for p in prepare.check_parameters(checkout)] == ["01_tiny, profile gpu"]


def test_profiles_and_folder_must_agree(checkout):
    assert parameters(notebooks(checkout)["01_tiny"], "smoke") == {"PROFILE": "smoke", "SEEDS": 2}
    (checkout / "notebooks/02_more.py").write_text("")
    with pytest.raises(ValueError, match="only present \\['02_more'\\]"):
        notebooks(checkout)
    (checkout / "notebooks/02_more.py").unlink()
    (checkout / "book/pipeline/profiles.yml").write_text("notebooks:\n  01_tiny:\n    tpu: {}\n")
    with pytest.raises(ValueError, match="unknown fields \\['tpu'\\]"):
        notebooks(checkout)


def test_requires_is_read_without_importing():
    assert prepare._requires(ast.parse('REQUIRES = ("scene_encoders",)\nimport nowhere')) == ("scene_encoders",)
    assert prepare._requires(ast.parse("REQUIRES: tuple = ()")) == ()
    assert prepare._requires(ast.parse("x = 1")) == ()


def test_unknown_experiment_is_named():
    with pytest.raises(ValueError, match="alchemy"):
        prepare.experiment_hash("alchemy")


def test_a_record_that_is_kept_reruns_the_notebook_that_reads_it(tmp_path):
    before = pipeline.kept_state(["mevf"], "cpu", tmp_path)
    assert before == {"book/runs/mevf": "absent"}
    (tmp_path / "book/runs/cpu/mevf/ban.3064").mkdir(parents=True)
    (tmp_path / "book/runs/cpu/mevf/ban.3064/seed0.json").write_text("{}")
    pipeline._data_digest.cache_clear()
    assert pipeline.kept_state(["mevf"], "cpu", tmp_path) != before
    assert pipeline.kept_state(["mevf"], "gpu", tmp_path) == before
    assert pipeline.notebooks()["07_medical_vqa"]["kept"] == ["mevf"]
