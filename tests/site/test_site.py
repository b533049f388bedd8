"""The built book in Chromium: see site.test.mjs. Runs where a built site, chromium, node and npm are present."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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


@pytest.mark.browser
def test_built_book(node_test):
    assert node_test("site.test.mjs", BOOK_HTML=str(site())) > 10
