"""Where a number comes from: the code, the versions, the machine and the revision behind it."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PACKAGE = "vqa_core"
PACKAGE_ROOT = Path(__file__).resolve().parents[1]
#: Modules that store and find numbers but do not make them: a change here leaves all results valid.
BOOKKEEPING = frozenset(
    f"{PACKAGE}.{name}"
    for name in (
        "experiments",
        "data.catalogue",
        *(f"experiments.{m}" for m in ("archive", "records", "provenance", "runner")),
    )
)
VERSIONS_OF = ("torch", "torchvision", "transformers", "numpy", "scikit-learn", "scipy", "pillow")


def module_file(name: str) -> Path | None:
    """File of a module of this package, or None when there is no such module."""
    path = PACKAGE_ROOT.joinpath(*name.split(".")[1:])
    if (path / "__init__.py").is_file():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else None


def _imports(nodes: Iterable[ast.AST], module: str, is_package: bool) -> set[str]:
    """Dotted names of this package that the import statements among ``nodes`` name."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: None if is_package else -1]
            parts = base[: len(base) - node.level + 1] if node.level else []
            origin = ".".join([*parts, *([node.module] if node.module else [])])
            found.add(origin)
            found.update(f"{origin}.{a.name}" for a in node.names)  # a name may itself be a module
    return {n for n in found if n == PACKAGE or n.startswith(f"{PACKAGE}.")}


@functools.cache
def _parsed(path: Path, _stamp: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def parse(path: Path) -> ast.Module:
    """Syntax tree of a file, parsed once per version of it."""
    return _parsed(path, path.stat().st_mtime_ns)


def modules_used(sources: Iterable[str | Path]) -> list[str]:
    """Modules of ``vqa_core`` that some modules or files import, directly or through others.

    Imports inside functions count. Of a package that is only passed through (``vqa_core.data`` in
    ``vqa_core.data.scenes``), only what its ``__init__`` imports at once counts.

    Parameters
    ----------
    sources
        Dotted module names (``"vqa_core.experiments.fusion"``), or paths of Python files outside the package.

    Returns
    -------
    list of str
        Sorted dotted names, packages included.

    Raises
    ------
    ValueError
        A name is not a module of this package.
    """
    todo: list[tuple[str, bool]] = []  # (module, imports inside functions count)
    for source in sources:
        if isinstance(source, Path) or str(source).endswith(".py"):
            todo.extend((n, True) for n in _imports(ast.walk(parse(Path(source))), "notebook", False))
        elif module_file(source) is None:
            raise ValueError(f"there is no module {source!r} in {PACKAGE}")
        else:
            todo.append((source, True))
    seen: set[tuple[str, bool]] = set()
    while todo:
        name, whole = item = todo.pop()
        path = module_file(name)
        if item in seen or path is None:
            continue
        seen.add(item)
        tree = parse(path)
        todo.extend((n, True) for n in _imports(ast.walk(tree) if whole else tree.body, name, path.stem == "__init__"))
        if "." in name:
            todo.append((name.rpartition(".")[0], False))
    return sorted({name for name, _ in seen})


def outline(node: Any) -> str:
    """Text of a syntax tree without positions: like ``ast.dump``, but the same in every version of Python.

    Fields that are empty are left out: 3.12 has new ones (``type_params``), and from 3.13 on ``ast.dump`` omits them.

    >>> outline(ast.parse("x = [1]"))
    "Module(body=[Assign(targets=[Name(id='x', ctx=Store())], value=List(elts=[Constant(value=1)], ctx=Load()))])"
    """
    if isinstance(node, ast.JoinedStr):  # 3.12 puts empty constants into nested format specifications
        node = ast.JoinedStr([v for v in node.values if not (isinstance(v, ast.Constant) and v.value == "")])
    if isinstance(node, ast.AST):
        fields = [(name, outline(value)) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return f"{type(node).__name__}({', '.join(f'{k}={v}' for k, v in fields)})"
    return f"[{', '.join(map(outline, node))}]" if isinstance(node, list) else repr(node)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """The tree itself, its docstrings cut out: what it says changes only when the code does."""
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return tree


@functools.cache
def _file_hash(path: Path, _stamp: int) -> str:
    text = path.read_text(encoding="utf-8")
    code = outline(_without_docstrings(ast.parse(text))) if path.suffix == ".py" else text
    return hashlib.sha256(code.encode()).hexdigest()


def _files(module: str) -> list[Path]:
    """A module's file, and the scripts and styles of the same name beside it that it writes into pages."""
    path = module_file(module)
    return [path, *(p for p in (path.with_suffix(".css"), path.with_suffix(".js")) if p.is_file())]


def code_hash(sources: Iterable[str | Path]) -> str:
    """SHA-256 over the code of :func:`modules_used` and of files among ``sources``.

    Comments and docstrings do not count, nor does :data:`BOOKKEEPING`.
    """
    sources = list(sources)
    digest = hashlib.sha256()
    files = [Path(s) for s in sources if isinstance(s, Path) or str(s).endswith(".py")]
    for label, path in [
        *((m, f) for m in modules_used(sources) if m not in BOOKKEEPING for f in _files(m)),
        *((f.name, f) for f in files),
    ]:
        digest.update(f"{label}:{_file_hash(path, path.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that numbers depend on."""
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in VERSIONS_OF}


def git_state(root: Path | None = None) -> dict[str, str | bool]:
    """Revision and whether tracked files differ from it; ``unknown`` outside a git checkout."""
    root = root or PACKAGE_ROOT.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30)
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    revision = git("rev-parse", "--short=12", "HEAD")
    if revision is None:
        return {"revision": "unknown", "dirty": True}
    return {"revision": revision, "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}


def hardware() -> dict[str, str | int]:
    """Processor, cores that this process may use, memory in GiB, and the CUDA device where there is one."""
    import psutil
    import torch

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [x for x in cpuinfo.read_text(encoding="utf-8").splitlines() if x.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cpu": name, "cores": int(cores or 1), "memory_gib": round(psutil.virtual_memory().total / 2**30)}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
