"""Each gate lets a good notebook pass and stops the defect it is there for."""

import os

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from book.pipeline import dumps, gates, publish


def table(*rows):
    return new_output(
        "display_data", {"text/html": "<table>" + "".join(f"<tr><td>{r}</td></tr>" for r in rows) + "</table>"}
    )


def good():
    return new_notebook(
        cells=[
            new_markdown_cell(
                "# Title\n\nThe map $f:\\mathbb{R} \\to \\mathbb{R}$, see https://example.org/home/page and `~/data`."
            ),
            new_code_cell("x = 1", execution_count=1, outputs=[new_output("stream", text="done\n")]),
            new_code_cell("", execution_count=None),
            new_code_cell("x", execution_count=2, outputs=[table("0.5", "film")]),
        ]
    )


def test_good_notebook_passes():
    assert gates.notebook(good()) == []


def error(nb):
    nb.cells[1].outputs.append(new_output("error", ename="ValueError", evalue="bad shape", traceback=[]))


def unexecuted(nb):
    nb.cells[3].execution_count = None


def out_of_order(nb):
    nb.cells[1].execution_count, nb.cells[3].execution_count = 2, 1


def run_twice(nb):
    nb.cells[3].execution_count = 3


def path_in_source(nb):
    nb.cells[1].source = 'open("/home/ada/data.csv")'


def path_in_prose(nb):
    nb.cells[0].source += "\n\nThe data are in /root/data."


def path_in_stream(nb):
    nb.cells[1].outputs[0].text = "saved to /tmp/x/y.svg"


def windows_path(nb):
    nb.cells[1].outputs[0].text = r"C:\Users\ada\x.csv"


def path_in_html(nb):
    nb.cells[3].outputs = [table("file:///etc/x")]


def path_of_this_checkout(nb):
    nb.cells[1].outputs[0].text = os.path.join(gates.ROOT, "figures")


def figure_left_open(nb):
    nb.cells[3].outputs.append(new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure>"}))


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        (error, "ValueError: bad shape"),
        (unexecuted, "was not executed"),
        (out_of_order, "executed as number 2, should be 1"),
        (run_twice, "executed as number 3, should be 2"),
        (figure_left_open, "cell 3: a picture without provenance"),
        *(
            (d, "absolute path")
            for d in (path_in_source, path_in_prose, path_in_stream, windows_path, path_in_html, path_of_this_checkout)
        ),
    ],
)
def test_planted_defect_is_stopped(defect, said):
    notebook = good()
    defect(notebook)
    assert said in "\n".join(gates.notebook(notebook))


def test_figure_of_the_book_passes():
    notebook = good()
    data = {"image/svg+xml": "<svg/>", gates.SHOWN: {"name": "curves"}}
    notebook.cells[3].outputs.append(new_output("display_data", data))
    assert gates.notebook(notebook) == []


@pytest.mark.parametrize("word", ["NaN", "nan", "None", "inf", "-inf", "NaT", "&lt;NA&gt;"])
def test_no_number_that_is_none_in_a_table(word):
    notebook = good()
    notebook.cells[3].outputs = [table("0.5", word)]
    assert gates.notebook(notebook) == [f"cell 3: {word} in a table"]


@pytest.mark.parametrize("field", ["nan", "inf", "", "None"])
def test_no_hole_in_the_data_of_a_figure(tmp_path, field):
    (tmp_path / "good.csv").write_text("name,x\nnanette,1\n")
    assert gates.broken_csv(tmp_path) == []
    (tmp_path / "bad.csv").write_text(f"name,x\na,{field}\n")
    assert gates.broken_csv(tmp_path) == [f"bad.csv, line 2: {field!r}"]


def test_interactive_part_loads_nothing(tmp_path):
    (tmp_path / "curve.html").write_text("<div hidden><script>draw()</script></div>")
    assert gates.network(tmp_path) == []
    (tmp_path / "curve.html").write_text('<div hidden><script src="https://a.example/plot.js"></script></div>')
    said = "\n".join(gates.network(tmp_path))
    assert "curve.html: a network address ('https://a.example/plot.js')" in said
    assert "curve.html: a reference" in said


def test_every_figure_is_shown_once(tmp_path):
    for name in ("curve", "values", "claims"):
        (tmp_path / f"{name}.json").write_text("{}")
    assert gates.shown_once([("figure", "curve")], tmp_path) == []
    assert "saved but not shown" in gates.shown_once([], tmp_path)[0]
    assert "shown 2 times" in gates.shown_once([("figure", "curve")] * 2, tmp_path)[0]
    assert "not saved" in gates.shown_once([("figure", "curve"), ("figure", "other")], tmp_path)[0]


def test_every_page_must_be_there(tmp_path):
    toc = yaml.safe_load(
        "root: book/index\nparts:\n- chapters:\n  - file: notebooks/01_a\n    sections:\n    - file: notebooks/02_b\n"
    )
    assert gates.toc_files(toc) == ["book/index", "notebooks/01_a", "notebooks/02_b"]
    for name in gates.toc_files(toc):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.html").write_text("<p>" * 500)
    assert gates.pages(toc, tmp_path) == []
    (tmp_path / "notebooks/02_b.html").write_text("")
    assert gates.pages(toc, tmp_path) == ["1 of 3 pages missing: notebooks/02_b"]
    assert gates.pages({}, tmp_path)


# -- the same on the way to publication --------------------------------------------------------------------------------


@pytest.fixture
def site(monkeypatch):
    """Stands for Jupyter Book, which `make smoke` runs."""
    built = []
    monkeypatch.setattr(publish, "build_site", lambda profile, source, log, root: built.append(source) or 2)
    return built


def run(root, profile="cpu"):
    return publish.publish(profile, ["01_tiny"], root / "build/log", root)


def change(root, edit):
    path = root / "build/cpu/executed/01_tiny.ipynb"
    notebook = nbformat.read(path, as_version=4)
    edit(notebook)
    nbformat.write(notebook, path)


def test_good_run_is_published(executed, site):
    assert run(executed)["notebooks"] == ["01_tiny"]
    assert len(site) == 1


def plant_error(nb):
    nb.cells[2].outputs = [new_output("error", ename="ValueError", evalue="", traceback=[])]


def plant_path(nb):
    nb.cells[2].outputs = [new_output("stream", text="/home/ada/x")]


def plant_smoke(nb):
    nb.metadata.vqa.profile = "smoke"


def plant_other_code(nb):
    nb.cells[2].source = "x = 1"


def plant_lost_figure(nb):
    nb.cells[3].outputs = []


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        (plant_error, "error output"),
        (plant_path, "absolute path"),
        (plant_smoke, "executed with profile smoke"),
        (plant_other_code, "other code"),
        (plant_lost_figure, "saved but not shown"),
    ],
)
def test_defect_publishes_nothing(executed, site, defect, said):
    change(executed, defect)
    with pytest.raises(publish.GateError, match=said):
        run(executed)
    assert not site
    assert not list((executed / "figures").iterdir())


def test_interactive_part_with_a_network_address_is_not_published(executed, site):
    (executed / "build/cpu/figures/01_tiny/curve.html").write_text('<p hidden><img src="//a.example/x.png"></p>')
    with pytest.raises(publish.GateError, match=r"01_tiny: curve\.html: a reference"):
        run(executed)
    assert not site
    assert not list((executed / "figures").iterdir())


def test_smoke_figures_and_values_are_not_published(executed, site):
    for name in ("curve.json", "values.json"):
        path = executed / "build/cpu/figures/01_tiny" / name
        before = path.read_text()
        path.write_text(before.replace('"cpu"', '"smoke"'))
        with pytest.raises(publish.GateError, match="comes from profile 'smoke'"):
            run(executed)
        path.write_text(before)
    stray = executed / "figures/02_old/curve.json"
    stray.parent.mkdir(parents=True)
    stray.write_text(dumps({"profile": "smoke"}))
    with pytest.raises(publish.GateError, match="02_old/curve"):
        run(executed)
    assert not site


def test_nothing_smoke_is_committed():
    assert gates.profile_of_figures(gates.ROOT / "figures") == []


def test_warning_of_jupyter_book_is_an_error(checkout):
    """A page that refers to nothing fails the build, and again the second time, when Sphinx would not read it again."""
    source = checkout / "build/smoke/book_src"
    (source / "book").mkdir(parents=True)
    (source / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    page = source / "book/index.md"
    page.write_text("# Index\n\n{ref}`nowhere`\n")
    for _ in range(2):
        with pytest.raises(publish.GateError, match="nowhere"):
            publish.build_site("smoke", source, checkout / "build/log", checkout)
    page.write_text("# Index\n\nGood.\n")
    assert publish.build_site("smoke", source, checkout / "build/log", checkout) == 1
    assert (publish.html_of("smoke", checkout) / "book/index.html").stat().st_size > 1000
