"""What the tests in a browser need: Chromium, node, and the two packages of package.json."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def node_test() -> Callable[..., int]:
    """Return a function that runs a file of tests under node and gives how many passed; one that fails is told.

    Skips where chromium, node or npm is missing. The packages are installed beside package.json; they bring no browser.
    """
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no chromium: apt-get install chromium, or set CHROMIUM")
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("no node and npm: apt-get install nodejs npm")
    if not all((HERE / "node_modules" / name).is_dir() for name in ("playwright-core", "axe-core")):
        quiet = {**os.environ, "PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD": "1"}
        install = subprocess.run(["npm", "install"], cwd=HERE, env=quiet, capture_output=True, text=True, timeout=180)
        if install.returncode:
            pytest.skip(f"npm cannot install playwright-core and axe-core: {install.stderr.strip()[-300:]}")

    def run(file: str, **environment: str) -> int:
        command = ["node", "--test", "--test-reporter=tap", str(HERE / file)]
        environment = {**os.environ, "CHROMIUM": chromium, **environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        counts = dict(re.findall(r"^# (tests|pass|fail) (\d+)$", done.stdout, re.MULTILINE))
        failures = re.findall(r"^not ok .*?(?=^(?:not )?ok |^1\.\.)", done.stdout, re.MULTILINE | re.DOTALL)
        assert done.returncode == 0, "\n".join(failures) or done.stdout[-3000:] + done.stderr[-3000:]
        assert counts["pass"] == counts["tests"]
        return int(counts["pass"])

    return run
