"""From executed code to pages: outputs in their cells, figures as MyST, files that change only when something did."""

import json
import shutil

import nbformat
import pandas as pd
import pytest
import yaml

from book.pipeline import check, dumps, load, prepare, publish, weave
from vqa_core import figures


@pytest.fixture(autouse=True)
def site(monkeypatch):
    monkeypatch.setattr(publish, "build_site", lambda profile, source, log, root: 2)


def run(root, profile="cpu"):
    return publish.publish(profile, ["01_tiny"], root / "build/log", root)


def page(root):
    return nbformat.read(root / "build/cpu/book_src/notebooks/01_tiny.ipynb", as_version=4)


def texts(notebook, kind="markdown"):
    return "\n\n".join(c.source for c in notebook.cells if c.cell_type == kind)


def snapshot(folder):
    return {
        p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_page_shows_the_figure_with_label_alt_and_data(executed):
    run(executed)
    text = texts(page(executed))
    assert "{figure} /figures/01_tiny/curve.svg\n:name: fig-01-tiny-curve\n:alt: A line that stays level" in text
    assert ":name: tab-01-tiny-rows" in text
    assert "| 0 | 50.0% |" in text
    assert "{download}`curve.csv </figures/01_tiny/curve.csv>`" in text
    assert "Now the figure." in text
    staged = executed / "build/cpu/book_src/figures"
    assert {"curve.svg", "curve.dark.svg", "curve.csv", "rows.csv"} <= {p.name for p in (staged / "01_tiny").iterdir()}
    assert load(staged / "values.json")["01_tiny.best"] == {"value": 0.5, "n": 3, "of": "seeds", "profile": "cpu"}


def test_page_hides_injected_parameters_and_what_varies(executed):
    run(executed)
    notebook = page(executed)
    injected = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert [c.metadata.tags[-1] for c in injected] == ["remove-cell"]
    assert not any({"papermill", "execution"} & c.metadata.keys() for c in notebook.cells)
    assert not any(o.get("name") == "stderr" for c in notebook.cells for o in c.get("outputs", []))
    assert {
        "profile",
        "seconds",
        "peak_mb",
        "revision",
        "dirty",
        "executed_at",
        "fingerprint",
    } <= notebook.metadata.vqa.keys()


def test_publishing_again_touches_nothing(executed):
    run(executed)
    folders = [executed / "figures", executed / "build/cpu/book_src"]
    before = [snapshot(f) for f in folders]
    run(executed)
    assert [snapshot(f) for f in folders] == before


def test_new_revision_alone_rewrites_no_sidecar(executed):
    run(executed)
    before = snapshot(executed / "figures/01_tiny")
    path = executed / "build/cpu/figures/01_tiny/curve.json"
    path.write_text(dumps(load(path) | {"revision": "another", "dirty": True}))
    run(executed)
    assert snapshot(executed / "figures/01_tiny") == before
    path.write_text(dumps(load(path) | {"caption": "Another curve."}))
    run(executed)
    assert load(executed / "figures/01_tiny/curve.json")["revision"] == "another"


def test_prose_edit_reaches_the_page_without_execution(executed):
    run(executed)
    path = executed / "notebooks/01_tiny.py"
    path.write_text(path.read_text().replace("Now the figure.", "Here it is.").replace("# the one helper", "# ours"))
    prepare.refresh(executed)
    run(executed)
    assert "Here it is." in texts(page(executed))
    assert "# ours" in texts(page(executed), "code")


def test_partial_build_keeps_the_other_chapters(executed):
    other = executed / "figures/02_other"
    other.mkdir(parents=True)
    (other / "values.json").write_text(dumps({"best": {"value": 7, "profile": "gpu"}}))
    run(executed)
    merged = load(executed / "figures/values.json")
    assert merged["02_other.best"] == {"value": 7, "profile": "gpu"}
    assert "01_tiny.best" in merged


def test_chapter_that_was_not_executed_here_shows_the_committed_figures(executed):
    run(executed)
    shutil.rmtree(executed / "build/cpu/executed")
    run(executed)
    text = texts(page(executed))
    assert "Not executed in this build" in text
    assert ":name: fig-01-tiny-curve" in text
    status = load(executed / "build/cpu/book_src/figures/status.json")["notebooks"]
    assert [(s["name"], s["executed"]) for s in status] == [("01_tiny", False)]


def test_figure_that_is_gone_from_the_notebook_is_gone(executed):
    old = executed / "figures/01_tiny/old.svg"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    run(executed)
    assert not old.exists()
    assert not (executed / "build/cpu/book_src/figures/01_tiny/old.svg").exists()


def test_toc_names_what_is_there(executed):
    run(executed)
    toc = yaml.safe_load((executed / "build/cpu/book_src/_toc.yml").read_text())
    assert toc["parts"] == [{"caption": "Chapters", "chapters": [{"file": "notebooks/01_tiny"}]}]
    whole = yaml.safe_load((executed / "build/cpu/book_src/book/_toc.yml").read_text())
    assert len(whole["parts"]) == 2


def test_verdict_is_computed_from_the_chapter(executed):
    path = executed / "build/cpu/figures/01_tiny/claims.json"
    effect = {"effect": 0.5, "low": 0.4, "high": 0.6, "n": 3, "profile": "cpu", "chapter": "01_tiny"}
    path.write_text(dumps({"T1": effect}))
    run(executed)
    assert "verdict: supported" in (executed / "build/cpu/book_src/book/claims.yml").read_text()
    path.write_text(dumps({"T1": effect | {"effect": 2.5, "low": 2.4, "high": 2.6}}))
    run(executed)
    assert "verdict: refuted" in (executed / "book/claims.yml").read_text()


def test_smoke_leaves_the_committed_files_alone(executed):
    shutil.copytree(executed / "build/cpu", executed / "build/smoke")
    (executed / "build/cpu").rename(executed / "build/gone")
    for path in (executed / "build/smoke/figures").rglob("*.json"):
        path.write_text(path.read_text().replace('"profile": "cpu"', '"profile": "smoke"'))
    effect = {"effect": 0.5, "low": 0.4, "high": 0.6, "n": 3, "profile": "smoke", "chapter": "01_tiny"}
    (executed / "build/smoke/figures/01_tiny/claims.json").write_text(dumps({"T1": effect}))
    path = executed / "build/smoke/executed/01_tiny.ipynb"
    path.write_text(path.read_text().replace('"profile": "cpu"', '"profile": "smoke"'))
    ledger = (executed / "book/claims.yml").read_bytes()
    run(executed, "smoke")
    assert (executed / "book/claims.yml").read_bytes() == ledger
    assert not list((executed / "figures").iterdir())
    assert "verdict: supported" in (executed / "build/smoke/book_src/book/claims.yml").read_text()


def test_cells_must_match(executed):
    full = nbformat.read(executed / "build/notebooks/01_tiny.ipynb", as_version=4)
    done = nbformat.read(executed / "build/cpu/executed/01_tiny.ipynb", as_version=4)
    full.cells.append(nbformat.v4.new_code_cell("one_more"))
    with pytest.raises(weave.WeaveError, match="5 code cells in the notebook, 4 were executed"):
        weave.merge(full, done)


def test_interactive_part_is_published_checked_and_gone_with_its_figure(executed):
    made = executed / "build/cpu/figures/01_tiny/curve.html"
    made.write_text("<p hidden>move it</p>")
    run(executed)
    published = executed / "figures/01_tiny/curve.html"
    assert published.read_bytes() == made.read_bytes()
    assert (executed / "build/cpu/book_src/figures/01_tiny/curve.html").read_bytes() == made.read_bytes()
    assert stale(executed) == []
    published.write_text("<p hidden>moved</p>")
    assert stale(executed) == ["figures/01_tiny/curve: curve.html was altered after the run"]
    published.unlink()
    assert stale(executed) == ["figures/01_tiny/curve: curve.html is missing"]
    made.unlink()
    run(executed)
    assert stale(executed) == []
    assert not (executed / "build/cpu/book_src/figures/01_tiny/curve.html").exists()


# -- make check ------------------------------------------------------------------------------------------------------


def stale(root):
    prepare.refresh(root)
    return check.figure_problems(root) + check.value_problems(root) + check.never_run(root)


def test_check_finds_nothing_in_a_fresh_build(executed):
    assert stale(executed) == ["notebooks/01_tiny: was never run for publication"]
    run(executed)
    assert stale(executed) == []


def edit_code(root):
    path = root / "notebooks/01_tiny.py"
    path.write_text(path.read_text().replace("[0.5]", "[0.6]"))


def edit_comment(root):
    path = root / "notebooks/01_tiny.py"
    path.write_text(path.read_text().replace("# the one helper", "# a helper"))


def edit_parameters(root):
    (root / "book/pipeline/profiles.yml").write_text("notebooks:\n  01_tiny:\n    cpu: {SEEDS: 4}\n")


def edit_csv(root):
    path = root / "figures/01_tiny/curve.csv"
    path.write_text(path.read_text().replace("0.5", "0.9"))


def delete_picture(root):
    (root / "figures/01_tiny/curve.dark.svg").unlink()


def edit_value(root):
    path = root / "figures/values.json"
    path.write_text(path.read_text().replace("0.5", "0.9"))


def edit_module(root):
    path = root / "figures/01_tiny/curve.json"
    about = load(path)
    about["made_from"]["fingerprint"]["modules"] = "of older code"
    path.write_text(dumps(about))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edit_comment, []),
        (edit_code, ["figures/01_tiny/curve: its code changed", "figures/01_tiny/rows: its code changed"]),
        (edit_module, ["figures/01_tiny/curve: a module of vqa_core that it uses changed"]),
        (
            edit_parameters,
            ["figures/01_tiny/curve: its parameters changed", "figures/01_tiny/rows: its parameters changed"],
        ),
        (edit_csv, ["figures/01_tiny/curve: its CSV was altered after the run"]),
        (delete_picture, ["figures/01_tiny/curve: curve.dark.svg is missing"]),
        (edit_value, ["figures/values.json: 01_tiny.best is not what its chapter wrote"]),
    ],
)
def test_check_names_what_is_out_of_date(executed, edit, said):
    run(executed)
    edit(executed)
    assert stale(executed) == said


def test_check_names_changed_data(executed, tmp_path, monkeypatch):
    monkeypatch.delenv("VQA_DATA", raising=False)
    run(executed)
    (executed / "book/pipeline/profiles.yml").write_text("notebooks:\n  01_tiny:\n    data: [vqa_rad]\n")
    assert stale(executed) == []  # absent data cannot have changed
    (tmp_path / "data/vqa_rad").mkdir(parents=True)
    (tmp_path / "data/vqa_rad/x.json").write_text(json.dumps([1]))
    monkeypatch.setenv("VQA_DATA", str(tmp_path / "data"))
    assert stale(executed)[0] == "figures/01_tiny/curve: data set vqa_rad changed"


def test_printed_sources_are_staged_and_must_exist(executed):
    source = executed / "vqa_core/fusion/vector.py"
    source.parent.mkdir()
    source.write_text("class SumFusion:\n    pass\n")
    (executed / "vqa_core/secret.py").write_text("")
    notebook = executed / "notebooks/01_tiny.py"
    listing = "\n# %% [markdown]\n# ```{literalinclude} /vqa_core/fusion/vector.py\n# :pyobject: SumFusion\n# ```\n"
    notebook.write_text(notebook.read_text() + listing)
    assert "vqa_core/fusion/vector.py" in publish.site_sources(executed)
    staged = publish.stage("cpu", {}, {}, executed) / "vqa_core"
    assert [p.relative_to(staged).as_posix() for p in staged.rglob("*.py")] == ["fusion/vector.py"]
    for wrong in ("vqa_core/gone.py", "pyproject.toml"):
        notebook.write_text(notebook.read_text().replace("vqa_core/fusion/vector.py", wrong))
        with pytest.raises(FileNotFoundError, match="only files of vqa_core/"):
            publish.listed_sources(executed)
        notebook.write_text(notebook.read_text().replace(wrong, "vqa_core/fusion/vector.py"))


def test_a_page_that_was_not_executed_shows_what_was_published(tmp_path):
    """The source makes a figure now; what is published under its name is still a table, and is shown as one."""
    chapter = figures.Chapter("03_demo", "cpu", tmp_path)
    chapter.table(pd.DataFrame({"a": [1]}), "numbers", caption="Numbers of the committed run.")
    sidecar = tmp_path / "numbers.json"
    made = {"fingerprint": {"cells": "0" * 12, "modules": "0" * 12}}
    sidecar.write_text(json.dumps(load(sidecar) | {"made_from": made}))
    source = 'chapter.figure(fig, "numbers", caption="c", alt="a", data=d)'
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    shown = weave.emit(notebook, "03_demo", tmp_path, executed=False).cells[-1].source
    assert "Numbers of the committed run." in shown
    assert "{figure}" not in shown
