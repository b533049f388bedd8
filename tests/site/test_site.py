"""The built book in Chromium: see site.test.mjs. Runs where a built site, chromium, node and npm are present."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


def site() -> Path:
    """Return the built site: BOOK_HTML, else the book, else the smoke book."""
    given = os.environ.get("BOOK_HTML")
    places = (
        [Path(given)] if given else [ROOT / build / "_build" / "html" for build in ("build/site", "build/smoke/site")]
    )
    for place in places:
        if (place / "book" / "index.html").is_file():
            return place.resolve()
    if given:
        pytest.fail(f"BOOK_HTML={given} holds no built book (book/index.html)")
    pytest.skip("no built book: run `make book` or `make smoke` first, or set BOOK_HTML")


@pytest.fixture(scope="module")
def modules() -> None:
    """Install the two packages of package.json beside it; they bring no browser."""
    if (HERE / "node_modules" / "playwright-core").is_dir() and (HERE / "node_modules" / "axe-core").is_dir():
        return
    environment = {**os.environ, "PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1"}
    install = subprocess.run(["npm", "install"], cwd=HERE, env=environment, capture_output=True, text=True, timeout=180)
    if install.returncode:
        pytest.skip(f"npm cannot install playwright-core and axe-core: {install.stderr.strip()[-300:]}")


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no chromium: apt-get install chromium, or set CHROMIUM")
@pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")), reason="no node and npm: apt-get install nodejs npm"
)
def test_built_book(modules):
    command = ["node", "--test", "--test-reporter=tap", str(HERE / "site.test.mjs")]
    environment = {**os.environ, "BOOK_HTML": str(site()), "CHROMIUM": CHROMIUM}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    counts = dict(re.findall(r"^# (tests|pass|fail) (\d+)$", run.stdout, re.MULTILINE))
    failures = re.findall(r"^not ok .*?(?=^(?:not )?ok |^1\.\.)", run.stdout, re.MULTILINE | re.DOTALL)
    assert run.returncode == 0, "\n".join(failures) or run.stdout[-3000:] + run.stderr[-3000:]
    assert int(counts["pass"]) == int(counts["tests"]) > 10
