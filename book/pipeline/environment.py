"""Make ``.venv`` from ``requirements.lock.txt``; at once when it is already there. Runs on any Python 3.8 or later.

The stamp in ``.venv`` holds the hash of the lock file and of ``pyproject.toml``: with both unchanged nothing is called
and no network is needed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
STAMP = VENV / "stamp"
PYTHONS = ("3.11", "3.12", "3.13")


def key():
    content = b"".join((ROOT / name).read_bytes() for name in ("requirements.lock.txt", "pyproject.toml"))
    return hashlib.sha256(content).hexdigest()


def needs(tools):
    """Stop with the line that installs what is missing."""
    missing = [t for t in tools if shutil.which(t) is None]
    if missing:
        manager = next((m for m in ("apt-get", "dnf", "brew") if shutil.which(m)), "your package manager: install")
        sys.exit("missing: {}. Install with: {} install {}".format(", ".join(missing), manager, " ".join(missing)))


def find_uv():
    """``uv`` of the PATH if it runs, else one of our own under ``build/uv``."""
    own = ROOT / "build" / "uv" / "bin" / "uv"
    for candidate in filter(None, (shutil.which("uv"), str(own) if own.exists() else None)):
        if (
            subprocess.run([candidate, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
            == 0
        ):
            return candidate
    print("installing uv into build/uv", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(own.parents[1])])
    if made.returncode:
        sys.exit("python3 -m venv does not work here. On Debian and Ubuntu: apt-get install python3-venv")
    subprocess.run([str(own.with_name("pip")), "install", "--quiet", "uv"], check=True)
    return str(own)


def make_venv(uv):
    if (VENV / "bin" / "python").exists():
        return
    for version in PYTHONS:
        if (
            subprocess.run(
                [uv, "venv", "--quiet", "--no-python-downloads", "--python", version, str(VENV)],
                stderr=subprocess.DEVNULL,
            ).returncode
            == 0
        ):
            return
    sys.exit(
        "no Python {} found. Install one (Debian 12: apt-get install python3.11; or: uv python install 3.12)".format(
            ", ".join(PYTHONS)
        )
    )


def main():
    if STAMP.exists() and STAMP.read_text() == key():
        return
    needs(["git", "make"])
    uv = find_uv()
    make_venv(uv)
    environment = dict(os.environ, VIRTUAL_ENV=str(VENV))
    print("installing the locked environment into .venv (about 6 GB; 20 s to some minutes)", flush=True)
    sync = [uv, "pip", "sync", "--quiet", "--compile-bytecode", "--require-hashes", "requirements.lock.txt"]
    for command in (sync, [uv, "pip", "install", "--quiet", "--no-deps", "-e", "."]):
        if subprocess.run(command, cwd=str(ROOT), env=environment).returncode:
            sys.exit("could not install the environment: " + " ".join(command[1:]))
    STAMP.write_text(key())


if __name__ == "__main__":
    main()
