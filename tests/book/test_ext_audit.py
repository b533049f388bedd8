"""The directive ``{audit-table}`` and the page that uses it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vqa_core.experiments import audit
from vqa_core.experiments.medical_readout import FINDINGS

ROOT = Path(__file__).parents[2]
EXTENSIONS = ROOT / "book" / "_ext"
PAGE = (ROOT / "book" / "audit.md").read_text(encoding="utf-8")
CONF = 'extensions = ["myst_parser", "audit_table"]\nhtml_theme = "basic"\nexclude_patterns = ["html"]\n'
TOC = {
    "format": "jb-book",
    "root": "index",
    "parts": [{"caption": "Chapters", "chapters": [{"file": "notebooks/07_medical_vqa", "title": "Medical VQA"}]}],
}
HEAD = "data,splits,finding,count,mean,low,high,n\n"
ROWS = (
    "VQA-RAD,train_3064 → test,re-worded (by numbering),284,0.6297,0.5842,0.673,451\n"
    "VQA-RAD,train_3064 → test_308,re-worded (by numbering),165,0.5357,0.4799,0.5906,308\n"
    "VQA-RAD,train_3064 → test,same pictures,203,1,0.9814,1,203\n"
    "VQA-RAD,train → test,re-worded (by numbering),0,0,0,0.0084,451\n"
    "easy-VQA,train → test,right by lookup,3611,0.3733,0.3637,0.383,9673\n"
)
TWO = "# Audit\n\n{chapter}`7`\n\n## A\n\n```{audit-table} vqa_rad\n```\n\n## B\n\n```{audit-table} nlvr\n```\n"


def build(folder: Path, page: str, table: str | None) -> tuple[subprocess.CompletedProcess, str]:
    """Build a page beside a published table, warnings as errors; the process and the article as HTML."""
    (folder / "conf.py").write_text(CONF, encoding="utf-8")
    (folder / "book").mkdir(exist_ok=True)
    (folder / "book/_toc.yml").write_text(yaml.safe_dump(TOC), encoding="utf-8")
    (folder / "index.md").write_text(page, encoding="utf-8")
    csv = folder / "figures/07_medical_vqa/audit.csv"
    csv.parent.mkdir(parents=True, exist_ok=True)
    csv.unlink(missing_ok=True)
    if table is not None:
        csv.write_text(table, encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "--keep-going", "-b", "html", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(EXTENSIONS), "NO_COLOR": "1"}
    run = subprocess.run([*command, str(folder / "html")], capture_output=True, text=True, env=environment, timeout=120)
    html = folder / "html/index.html"
    return run, html.read_text(encoding="utf-8").replace("\N{NARROW NO-BREAK SPACE}", " ") if html.exists() else ""


def tables(html: str) -> list[list[list[str]]]:
    """The texts of all cells: table → row → cell."""
    plain = lambda cell: " ".join(re.sub("<[^>]+>", " ", cell).split())  # noqa: E731
    rows = [re.findall(r"<tr.*?</tr>", t, re.DOTALL) for t in re.findall(r"<table.*?</table>", html, re.DOTALL)]
    return [[[plain(c) for c in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in t] for t in rows]


def test_a_table_for_each_training_split_has_counts_shares_and_dashes(tmp_path):
    run, html = build(tmp_path, TWO, HEAD + ROWS)
    assert run.returncode == 0, run.stderr
    leaky, clean = tables(html)
    assert leaky == [
        ["trained on train_3064", "test", "test_308"],
        ["re-worded (by numbering)", "284 of 451 63.0 % (58.4–67.3)", "165 of 308 53.6 % (48.0–59.1)"],
        ["same pictures", "203 of 203 100.0 % (98.1–100.0)", "–"],
    ]
    assert clean[1] == ["re-worded (by numbering)", "0 of 451 0.0 % (0.0–0.8)"]
    assert 'class="stub"' in html  # a screen reader names the finding in each cell


def test_a_table_has_two_test_splits_and_only_findings_that_they_have(tmp_path):
    row = "NLVR,train → {},{},1,0.01,0.001,0.05,99\n"
    rows = [row.format(test, "same sentences") for test in ("dev", "test", "hidden")]
    _, html = build(tmp_path, TWO, HEAD + "".join([*rows, row.format("dev", "same pictures")]))
    wide, narrow = tables(html)
    assert [cells[0] for cells in wide] == ["trained on train", "same sentences", "same pictures"]
    assert wide[0][1:] == ["dev", "test"]
    assert narrow == [["trained on train", "hidden"], ["same sentences", "1 of 99 1.0 % (0.1–5.0)"]]


def test_a_data_set_without_rows_is_named_as_absent(tmp_path):
    _, html = build(tmp_path, TWO, HEAD + ROWS)
    assert html.count("Not audited in this build") == 1
    assert "licence: CC0-1.0" in html
    assert "python -m vqa_core audit nlvr" in re.sub("<[^>]+>", "", html)
    assert "easy-VQA" not in html


def test_without_the_table_the_page_is_built_and_follows_when_it_comes(tmp_path):
    run, html = build(tmp_path, TWO, None)
    assert run.returncode == 0, run.stderr
    assert tables(html) == []
    assert html.count("its results are not in this build") == 2
    assert html.count('Chapter 7 · Medical VQA <span class="planned">planned</span>') == 3
    run, html = build(tmp_path, TWO, HEAD + ROWS)
    assert run.returncode == 0, run.stderr
    assert len(tables(html)) == 2
    _, html = build(tmp_path, TWO, HEAD + ROWS.replace("284", "283"))
    assert tables(html)[0][1][1].startswith("283 of 451")


def test_defects_fail_the_build_and_are_named(tmp_path):
    run, _ = build(tmp_path, "# A\n\n```{audit-table} vqa_ard\n```\n\n```{audit-table} nlvr\n```\n", "data,finding\n")
    assert run.returncode != 0
    assert "no audit of 'vqa_ard'; nearest: vqa_rad" in run.stderr
    assert "figures/07_medical_vqa/audit.csv lacks count, high, low, mean, n, splits" in run.stderr


def test_the_page_shows_every_data_set_that_is_audited():
    assert re.findall(r"\{audit-table\} (\w+)", PAGE) == list(audit.DATASETS)


def test_the_page_defines_every_finding_in_the_order_of_the_tables():
    assert re.findall(r"^(\S.*)\n: ", PAGE, re.MULTILINE) == list(FINDINGS.values())


@pytest.mark.skipif(not (ROOT / "figures/07_medical_vqa/audit.csv").is_file(), reason="chapter 7 is not published")
def test_the_page_builds_from_what_is_published(tmp_path):
    words = re.sub(r"\{(term|ref)\}`[^`]+`", "", PAGE)  # they lead to other pages
    run, html = build(tmp_path, words, (ROOT / "figures/07_medical_vqa/audit.csv").read_text(encoding="utf-8"))
    assert run.returncode == 0, run.stderr
    assert tables(html)
