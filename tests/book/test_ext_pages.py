"""The book's Sphinx extensions: bound values, the ledger, the status page, chapter numbers, figures with a twin.

Each is tried in a small project that is built by Sphinx itself, with warnings as errors.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXTENSIONS = ROOT / "book" / "_ext"
sys.path.insert(0, str(EXTENSIONS))
bound = pytest.importorskip("bound")
build_status = pytest.importorskip("build_status")
ledger = pytest.importorskip("ledger")

THIN = bound.THIN
AUTHORED = {
    "id": "F1",
    "claim": "Early beats *late*.",
    "source": "A survey",
    "chapter": 3,
    "experiment": "fusion",
    "test": "accuracy of early minus accuracy of late",
    "unit": "fraction",
    "rule": "supported if low > 0.05; refuted if high < 0.05",
}
JUDGED = {**AUTHORED, "verdict": "supported", "effect": 0.153, "low": 0.12, "high": 0.184, "n": 5, "profile": "cpu"}
OPEN = {**AUTHORED, "id": "P2", "claim": "Scale helps.", "chapter": 4}
FAR = {"id": "P3", "claim": "Size helps.", "source": "A paper", "chapter": 4}
FAR |= {"verdict": "out of reach here", "reason": "it needs a cluster"}
CHAPTERS = [
    {"file": "notebooks/03_fusion", "title": "Fusion methods"},
    {"file": "notebooks/04_transformers", "title": "Multimodal transformers"},
]
TOC = {
    "format": "jb-book",
    "root": "index",
    "parts": [
        {"caption": "Chapters", "numbered": 1, "chapters": CHAPTERS},
        {"caption": "Back", "chapters": [{"file": "book/claims", "title": "Claims ledger"}]},
    ],
}
RUN = {
    "name": "03_fusion",
    "executed": True,
    "profile": "cpu",
    "seconds": 125.0,
    "peak_mb": 812.0,
    "experiments": {"fusion": {"seconds": 3725.0, "peak_mb": 1500.0}},
    "revision": "abcdef0123456",
    "dirty": True,
    "executed_at": "2026-01-02T03:04:05+00:00",
    "stale": [],
}
OLD_RUN = {"name": "04_transformers", "executed": True, "seconds": 7.2, "stale": ["vqa_core/fusion/vector.py changed"]}
STATUS = {"profile": "cpu", "revision": "abcdef0123456", "dirty": False, "built_at": "2026-01-02T03:04:05+00:00"}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"/>'
INDEX = """# Book

{verdict}`F1`

```{verdict-counts}
```

```{status}
```

```{chapters}
03_fusion: How to *join*.
04_transformers: Layers.
```

```{toctree}
:numbered: 1
notebooks/03_fusion
```

```{toctree}
book/claims
```
"""
CHAPTER = """# Fusion methods

{verdict}`F1` and {numref}`fig-a`.

```{figure} /figures/a.svg
:name: fig-a
:alt: A dot.
A caption.
```

```{claims}
:chapter: 3
```
"""
PAGES = {"index": INDEX, "notebooks/03_fusion": CHAPTER, "book/claims": "# Ledger\n\n```{claims}\n```\n"}
CONF = """
extensions = ["myst_parser", "bound", "ledger", "build_status", "chapter_numbers"]
extensions += ["dark_figures", "interactive_figures"]
html_theme = "basic"
numfig = True
exclude_patterns = ["html"]
"""


def build(source: Path) -> subprocess.CompletedProcess:
    """Build ``source`` as HTML in a process of its own, incrementally, with warnings as errors."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-W",
        "--keep-going",
        "-n",
        str(source),
        str(source / "html"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(EXTENSIONS), "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def html(source: Path, page: str) -> str:
    """Return the HTML of a page that was built."""
    return (source / "html" / f"{page}.html").read_text(encoding="utf-8")


# -- {val} and {typed}

BOUND_CONF = 'extensions = ["myst_parser", "bound"]\nhtml_theme = "basic"\n'
ENTRY = {"value": 0.873, "low": 0.861, "high": 0.884, "n": 5, "of": "seeds", "profile": "cpu"}
GAP = {"value": 0.153, "low": -0.02, "high": 0.184, "n": 1200, "of": "questions"}


@pytest.fixture
def project(tmp_path):
    """Return a function that writes pages and values of a small project and gives its folder."""

    def write(pages: dict[str, str], values: dict) -> Path:
        (tmp_path / "conf.py").write_text(BOUND_CONF, encoding="utf-8")
        for name, text in pages.items():
            (tmp_path / f"{name}.md").write_text(text, encoding="utf-8")
        (tmp_path / "figures").mkdir(exist_ok=True)
        (tmp_path / "figures" / "values.json").write_text(json.dumps(values), encoding="utf-8")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("entry", "spec", "text"),
    [
        (ENTRY, ".1%", f"87.3{THIN}%"),
        (ENTRY, ".2f", "0.87"),
        (GAP, "+.1p", "+15.3 points"),
        (ENTRY, "range.1%", f"86.1–88.4{THIN}%"),
        (GAP, "range+.1p", "−2.0 to +18.4 points"),
        (ENTRY, "ci.1%", f"87.3{THIN}% (95{THIN}%{THIN}CI 86.1–88.4, n{THIN}={THIN}5 seeds)"),
        (GAP, "ci+.1p", f"+15.3 points (95{THIN}%{THIN}CI −2.0 to +18.4, n{THIN}={THIN}1,200 questions)"),
        ({**ENTRY, "level": 0.9, "n": None}, "ci.0%", f"87{THIN}% (90{THIN}%{THIN}CI 86–88)"),
        ({"value": 44000}, ",d", "44,000"),
        ({"value": -1.5}, "", "−1.5"),
        ({"value": "FiLM"}, "", "FiLM"),
    ],
)
def test_formats(entry, spec, text):
    assert bound.render(entry, entry["value"], spec) == text


def test_fields_of_an_entry_are_keys_and_the_exact_key_wins():
    values = {"03.best": ENTRY, "03.best.low": 7, "02.n": 3}
    assert bound.look_up(values, "03.best.high")[1] == 0.884
    assert bound.look_up(values, "03.best.low")[1] == 7
    assert bound.look_up(values, "02.n") == ({"value": 3}, 3)
    with pytest.raises(KeyError, match="no field 'median'"):
        bound.look_up(values, "03.best.median")


def test_unknown_key_names_its_neighbours():
    with pytest.raises(KeyError, match=r"03_fusion\.best\.accuracy"):
        bound.look_up({"03_fusion.best.accuracy": ENTRY}, "03_fusion.best.acuracy")


def test_page_shows_value_and_its_origin(project):
    text = "# A\n\nIt is {val}`03.best:.1%` with n {val}`03.best.n`, published {typed}`62.6`."
    source = project({"index": text}, {"03.best": ENTRY})
    assert build(source).returncode == 0
    page = html(source, "index")
    assert f'<span class="val" title="03.best, n = 5 seeds, profile cpu">87.3{THIN}%</span>' in page
    assert "62.6" in page


def test_defects_fail_the_build_and_are_named(project):
    text = "# A\n\n{val}`03.bset` {val}`03.best:.1q` {val}`03.text:.1%` {val}`03.plain:ci.1f`\n"
    run = build(project({"index": text}, {"03.best": ENTRY, "03.text": "words", "03.plain": 3.0}))
    assert run.returncode != 0
    for told in ("unknown value '03.bset'; nearest: 03.best", "format '.1q'", "does not fit 'words'", "no interval"):
        assert told in run.stderr


def test_missing_file_of_values_fails_the_build(project):
    source = project({"index": "# A\n\n{val}`03.best`\n"}, {})
    (source / "figures" / "values.json").unlink()
    run = build(source)
    assert run.returncode != 0
    assert "figures/values.json is not there" in run.stderr


def test_incremental_build_refreshes_every_page_that_quotes(project):
    pages = {
        "index": "# A\n\n{val}`03.best:.1%`\n\n```{toctree}\nb\nc\n```\n",
        "b": "# B\n\n{val}`03.best:.1%`\n",
        "c": "# C\n\nNo number.\n",
    }
    source = project(pages, {"03.best": ENTRY})
    assert build(source).returncode == 0
    untouched = (source / "html" / "c.html").stat().st_mtime_ns
    project({}, {"03.best": {**ENTRY, "value": 0.5}})
    assert build(source).returncode == 0
    for page in ("index", "b"):
        assert f"50.0{THIN}%" in html(source, page)
        assert f"87.3{THIN}%" not in html(source, page)
    assert (source / "html" / "c.html").stat().st_mtime_ns == untouched


# -- {verdict}, {claims}, {verdict-counts}, {status}, {chapters}, numbers, dark and interactive figures


def write(folder: Path, claims: list[dict], pages: dict[str, str] = PAGES) -> Path:
    """Write the small book."""
    for name in ("book", "figures", "notebooks"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "conf.py").write_text(CONF, encoding="utf-8")
    (folder / "book" / "_toc.yml").write_text(yaml.safe_dump(TOC), encoding="utf-8")
    (folder / "book" / "claims.yml").write_text(yaml.safe_dump(claims), encoding="utf-8")
    (folder / "figures" / "status.json").write_text(
        json.dumps({**STATUS, "notebooks": [RUN, OLD_RUN]}), encoding="utf-8"
    )
    for name in ("a.svg", "a.dark.svg"):
        (folder / "figures" / name).write_text(SVG, encoding="utf-8")
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Build the small book once."""
    source = write(tmp_path_factory.mktemp("book"), [JUDGED, OPEN, FAR])
    run = build(source)
    assert run.returncode == 0, run.stderr
    return source


def test_verdict_links_to_its_row(book):
    link = '<a class="reference internal" href="book/claims.html#claim-F1"><span class="verdict supported">F1 ✓'
    assert link in html(book, "index")
    assert 'href="../book/claims.html#claim-F1"' in html(book, "notebooks/03_fusion")
    assert re.search(r'<tr[^>]*id="claim-F1"', html(book, "book/claims"))


def test_ledger_shows_effect_interval_n_and_rule(book):
    page = html(book, "book/claims")
    assert "+15.3 points" in page
    assert "CI +12.0 to +18.4, n = 5" in page
    assert "supported if low &gt; 0.05; refuted" in re.sub("<[^>]+>", "", page)
    assert "accuracy of early minus accuracy of late" in page
    assert "Early beats <em>late</em>." in page
    assert "it needs a cluster" in page
    assert page.count("<svg") == 1  # claims without an effect have no drawing
    assert 'aria-hidden="true"' in page


def test_ledger_groups_by_chapter_and_a_filter_keeps_one(book):
    page = html(book, "book/claims")
    order = ["Chapter 3 · Fusion methods", "claim-F1", "Chapter 4 · Multimodal transformers", "claim-P2"]
    assert sorted(order, key=page.index) == order
    assert "claim-P2" not in html(book, "notebooks/03_fusion")
    assert "claim-F1" in html(book, "notebooks/03_fusion")


def test_drawing_is_to_scale():
    claim = ledger.Claim(
        **{**JUDGED, "rule": "supported if low > -0.5; refuted if high < -0.5", "low": 0.0, "effect": 0.25, "high": 0.5}
    )
    drawing = ledger.forest(claim, -0.5, 0.5)
    assert '<line x1="6.0" x2="6.0"' in drawing
    assert "M80.0 11H154.0" in drawing
    assert '<circle cx="117.0"' in drawing


@pytest.mark.parametrize(
    ("unit", "test", "spec"),
    [
        ("fraction", "accuracy of a minus accuracy of b", "+.1p"),
        ("fraction", "accuracy of a", ".1%"),
        ("ratio", "seconds of a divided by those of b", ".2f"),
        ("nats", "loss of a minus loss of b", ".3g"),
    ],
)
def test_numbers_are_printed_in_their_unit(unit, test, spec):
    assert ledger.format_of(ledger.Claim(**{**AUTHORED, "unit": unit, "test": test})) == spec


def test_counts_name_every_verdict(book):
    found = re.findall(r'<strong>(\d+)</strong> <span class="verdict ([a-z-]+)"', html(book, "index"))
    names = ["supported", "refuted", "inconclusive", "out-of-reach-here", "not-yet-run"]
    assert found == list(zip("10011", names))


@pytest.mark.parametrize(("profile", "banner"), [("smoke", True), ("cpu", False)])
def test_a_smoke_build_says_so_on_every_page(tmp_path, profile, banner):
    (tmp_path / "status.json").write_text(json.dumps({"profile": profile, "notebooks": []}), encoding="utf-8")
    config = SimpleNamespace(status_file="status.json", html_theme_options={"logo": "x"})
    build_status.announce_smoke(SimpleNamespace(srcdir=tmp_path), config)
    assert ("not results" in config.html_theme_options.get("announcement", "")) is banner
    assert config.html_theme_options["logo"] == "x"


def test_status_shows_time_memory_revision_and_staleness(book):
    page = html(book, "index")
    for told in (
        "2 min 05 s",
        "1 h 02 min",
        "1,500 MB",
        "abcdef0123",
        "with changes",
        "fresh",
        "stale",
        *OLD_RUN["stale"],
    ):
        assert told in page.replace(ledger.THIN, " ")


def test_chapters_that_are_not_there_are_planned(book):
    page = html(book, "index")
    assert re.search(r'Multimodal transformers <span class="planned">planned</span>', page)
    assert "How to <em>join</em>." in page
    assert re.search(r'<strong><a [^>]*href="notebooks/03_fusion.html">(<span[^>]*>)?Fusion methods', page)


def test_a_chapter_keeps_its_number(book):
    page = html(book, "notebooks/03_fusion")
    assert re.search(r'<span class="section-number">3\. </span>', page)
    assert "Fig. 3.1" in page
    assert ">3. Fusion methods</a>" in html(book, "index")


def test_interactive_part_stands_in_its_figure_and_is_read_again(tmp_path):
    (tmp_path / "conf.py").write_text(CONF)
    part = '<div class="part" hidden><script type="application/json">{"a_b": "*c*"}</script></div>'
    page = "# A\n\n```{figure} /a.svg\n:name: fig-a\n:alt: A dot.\nA caption.\n```\n"
    for name, text in {"index.md": page, "a.svg": SVG, "a.dark.svg": SVG}.items():
        (tmp_path / name).write_text(text)
    for content in (part, part.replace("*c*", "*d*")):
        (tmp_path / "a.html").write_text(content)
        assert build(tmp_path).returncode == 0
        figure = html(tmp_path, "index").partition("<figure")[2].partition("</figure>")[0]
        assert figure.index(content) < figure.index("<img") < figure.index("<figcaption")
        assert figure.count("<img") == 2
    (tmp_path / "a.html").unlink()
    assert build(tmp_path).returncode == 0
    assert "part" not in html(tmp_path, "index").partition("<figure")[2].partition("</figure>")[0]


def test_dark_twin_stands_beside_its_figure(book):
    images = re.findall(r"<img[^>]+>", html(book, "notebooks/03_fusion"))
    assert len(images) == 2
    assert 'class="only-light"' in images[0]
    assert "a.svg" in images[0]
    assert 'class="only-dark"' in images[1]
    assert "a.dark.svg" in images[1]
    assert all('alt="A dot."' in image for image in images)


def test_a_verdict_that_flips_reaches_every_page(tmp_path):
    source = write(tmp_path, [JUDGED, OPEN])
    assert build(source).returncode == 0
    write(tmp_path, [{**JUDGED, "verdict": "refuted", "effect": 0.0, "low": -0.1, "high": 0.04}, OPEN], pages={})
    assert build(source).returncode == 0
    for page in ("index", "notebooks/03_fusion", "book/claims"):
        assert "refuted" in html(source, page)
    assert "verdict supported" not in html(source, "notebooks/03_fusion")


def test_a_typed_verdict_fails_the_build(tmp_path):
    run = build(write(tmp_path, [{**JUDGED, "verdict": "refuted"}], {"index": "# Book\n\n```{claims}\n```\n"}))
    assert run.returncode != 0
    assert "the rule and the numbers give 'supported'" in run.stderr


def test_unknown_claim_and_unknown_chapter_fail_the_build(tmp_path):
    pages = {"index": "# Book\n\n{verdict}`F7`\n\n```{chapters}\n03_fusion: One.\n09_absent: Two.\n```\n"}
    run = build(write(tmp_path, [JUDGED], pages))
    assert run.returncode != 0
    for told in ("unknown claim 'F7'; nearest: F1", "no such chapter: 09_absent", "no sentence: 04_transformers"):
        assert told in run.stderr


def test_table_of_contents_lists_the_whole_book_once():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
    files = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    assert len(files) == len(set(files))
    assert [int(Path(file).name[:2]) for file in files if file.startswith("notebooks/")] == list(range(1, 13))
    assert all((ROOT / f"{file}.md").is_file() for file in [toc["root"], *files] if file.startswith("book/"))
