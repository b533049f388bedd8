"""``Spec`` says what to run, ``Record`` what came out; both live on disk under ``results/``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_NAME = re.compile(r"[a-z0-9][a-z0-9_.+-]*")


def results_root() -> Path:
    """Folder of the records: ``VQA_RESULTS``, or ``results/`` in the working directory's project."""
    if "VQA_RESULTS" in os.environ:
        return Path(os.environ["VQA_RESULTS"])
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "pyproject.toml").is_file()), here) / "results"


def _canonical(value: Any) -> Any:
    """Plain JSON form of a config: dataclasses become objects, tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _canonical(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a Spec holds numbers, strings, tuples and frozen dataclasses, not {type(value).__name__}: {value!r}"
    )


@dataclass(frozen=True)
class Spec:
    """What to run. Hashable, and the same text in JSON for ever.

    Attributes
    ----------
    experiment, unit
        Names the file: ``results/<profile>/<experiment>/<unit>/seed<k>.json``.
    seed
        Seeds initialisation and order of the data.
    profile
        ``smoke``, ``cpu`` or ``gpu``.
    data, model, training
        Frozen dataclasses of the experiment.
    """

    experiment: str
    unit: str
    seed: int
    profile: str
    data: Any = None
    model: Any = None
    training: Any = None

    def __post_init__(self) -> None:
        for what in ("experiment", "unit", "profile"):
            if not _NAME.fullmatch(getattr(self, what)):
                raise ValueError(f"{what} {getattr(self, what)!r} may hold a-z, 0-9, and _ . + - only; it names a file")

    def as_json(self) -> dict[str, Any]:
        return _canonical(self)

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()

    def path(self, root: Path | None = None) -> Path:
        return (root or results_root()) / self.profile / self.experiment / self.unit / f"seed{self.seed}.json"


@dataclass(frozen=True)
class Metric:
    """A measured number, which cannot be stored without the number of cases behind it."""

    value: float
    n: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a metric must be finite, got {self.value}")
        if self.n < 1:
            raise ValueError(f"a metric needs n ≥ 1 cases behind it, got n = {self.n}")


@dataclass(frozen=True)
class Record:
    """What came out of one :class:`Spec`.

    Attributes
    ----------
    spec
        The spec that was run.
    metrics
        Named numbers, each with its n.
    arrays
        What per-question statistics need (predictions, correctness); stored as safetensors beside the JSON.
    details
        Anything else that JSON can hold: learning curves, parameter counts.
    seconds, peak_memory_mb, device
        Cost of the run.
    provenance
        Versions, hardware, git revision, ``data_hash``, ``code_hash``.
    """

    spec: Spec
    metrics: Mapping[str, Metric]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    device: str = "cpu"
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_record(record: Record, root: Path | None = None) -> Path:
    """Store a record; the arrays first, so that a JSON file always has its arrays."""
    from safetensors.numpy import save

    path = record.spec.path(root)
    blob = save({k: np.ascontiguousarray(v) for k, v in record.arrays.items()}) if record.arrays else b""
    if blob:
        write_atomically(path.with_suffix(".safetensors"), blob)
    content = {
        "spec": record.spec.as_json(),
        "spec_hash": record.spec.hash,
        "metrics": {k: dataclasses.asdict(m) for k, m in record.metrics.items()},
        "details": _canonical(record.details),
        "seconds": round(record.seconds, 6),
        "peak_memory_mb": round(record.peak_memory_mb, 1),
        "device": record.device,
        "provenance": _canonical(record.provenance),
        "arrays_sha256": hashlib.sha256(blob).hexdigest() if blob else None,
    }
    write_atomically(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return path


def load_record(spec: Spec, code_hash: str | None = None, root: Path | None = None) -> Record | None:
    """The stored record of a spec; None when there is none or it was made by another spec or other code.

    Raises
    ------
    ValueError
        The file is damaged: no JSON, or its arrays are missing or altered. The message names it.
    """
    from safetensors.numpy import load

    path = spec.path(root)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        matches = content["spec_hash"] == spec.hash
        provenance = content["provenance"]
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); delete it and run again") from error
    if not matches or (code_hash is not None and provenance.get("code_hash") != code_hash):
        return None
    arrays: dict[str, np.ndarray] = {}
    if content["arrays_sha256"]:
        tensors = path.with_suffix(".safetensors")
        blob = tensors.read_bytes() if tensors.is_file() else b""
        if hashlib.sha256(blob).hexdigest() != content["arrays_sha256"]:
            raise ValueError(f"{tensors} is missing or does not belong to {path.name}; delete both and run again")
        arrays = load(blob)
    return Record(
        spec=spec,
        metrics={k: Metric(**m) for k, m in content["metrics"].items()},
        arrays=arrays,
        details=content["details"],
        seconds=content["seconds"],
        peak_memory_mb=content["peak_memory_mb"],
        device=content["device"],
        provenance=provenance,
    )
