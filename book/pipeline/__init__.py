"""From notebooks to book: prepare, execute, weave, gate, publish. ``make book`` runs ``book.pipeline.build``."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("smoke", "cpu", "gpu")
PUBLISHED = ("cpu", "gpu")  # profiles whose figures may be committed


def digest(content: str | bytes) -> str:
    """Short SHA-256."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def dumps(content: Any) -> str:
    """JSON as the pipeline writes it: sorted, indented, finite."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def load(path: Path, default: Any = None) -> Any:
    """JSON file, or the default where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def write_if_changed(path: Path, content: str | bytes) -> bool:
    """Write a file atomically unless it already holds just this; an unchanged file keeps its time stamp."""
    raw = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == raw:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(raw)
    os.replace(temporary, path)
    return True


def notebooks(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """What ``profiles.yml`` says of each notebook: ``experiments``, ``data``, ``kept``, overrides of each profile.

    Raises
    ------
    ValueError
        The file and the folder ``notebooks/`` do not name the same notebooks, or an entry has an unknown field.
    """
    declared = yaml.safe_load((root / "book/pipeline/profiles.yml").read_text(encoding="utf-8"))["notebooks"] or {}
    present = {p.stem for p in (root / "notebooks").glob("*.py")}
    if declared.keys() != present:
        raise ValueError(
            f"book/pipeline/profiles.yml and notebooks/*.py differ: only declared {sorted(declared.keys() - present)}, "
            f"only present {sorted(present - declared.keys())}"
        )
    for name, entry in declared.items():
        unknown = set(entry or {}) - {"experiments", "data", "kept", *PROFILES}
        if unknown:
            raise ValueError(f"profiles.yml: notebook {name} has unknown fields {sorted(unknown)}")
    fields = {"experiments": [], "data": [], "kept": [], **{p: {} for p in PROFILES}}
    return {name: {k: (entry or {}).get(k) or v for k, v in fields.items()} for name, entry in sorted(declared.items())}


def parameters(entry: dict[str, Any], profile: str) -> dict[str, Any]:
    """Papermill parameters of a notebook under a profile."""
    return {"PROFILE": profile, **entry[profile]}


def data_state(names: list[str]) -> dict[str, str]:
    """For each data set: a digest of its files' names and sizes under ``VQA_DATA``, or ``absent``."""
    return {name: _data_digest(os.environ.get("VQA_DATA", ""), name) for name in sorted(names)}


def kept_state(names: list[str], profile: str, root: Path = ROOT) -> dict[str, str]:
    """For each experiment whose records are kept in ``book/runs``: a digest of their names and sizes, or ``absent``."""
    folder = str(root / "book/runs" / profile)
    return {f"book/runs/{name}": _data_digest(folder, name) for name in sorted(names)}


@functools.cache
def _data_digest(folder: str, name: str) -> str:
    base = Path(folder) / name
    if not folder or not base.is_dir():
        return "absent"
    files = sorted((p.relative_to(base).as_posix(), p.stat().st_size) for p in base.rglob("*") if p.is_file())
    return digest(json.dumps(files))
