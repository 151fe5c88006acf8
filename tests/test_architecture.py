"""The layout holds: imports point downwards only, and what must be quick loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rompatch

PACKAGE = Path(rompatch.__file__).parent

RANKS = {
    "": 0,  # rompatch/__init__.py may offer names of every rank lazily; it has a test of its own
    "errors": 0,
    "versions": 1,
    "folders": 1,
    "edits": 1,
    "reporting": 1,
    "patch": 1,
    "architectures": 1,
    "facts": 2,
    "patchfile": 2,
    "hooks": 2,
    "recording": 2,
    "tokens": 2,
    "trials": 2,
    "sites": 2,
    "offload": 2,
    "placement": 2,
    "loading": 2,
    "models": 2,
    "default_model": 2,
    "fingerprints": 2,
    "hub": 2,
    "quiet": 2,
    "locate": 2,
    "tokenizer_hash": 2,
    "gguf_cache": 2,
    "adapters": 3,
    "bundle": 3,
    "compute": 3,
    "apply": 3,
    "verify": 3,
    "store": 3,
    "export": 4,
    "workflows": 5,
    "bench": 5,
    "report": 6,
    "cli": 7,
    "__main__": 7,
    "demo": 7,
}
"""A module or top-level folder of rompatch and its rank; a module imports only from a lower one."""

NEIGHBOURS = {
    "patch": {"edits"},
    "sites": {"offload"},
    "recording": {"hooks"},
    "loading": {"offload", "placement", "quiet", "sites"},
    "models": {
        *{"default_model", "fingerprints", "loading", "locate"},
        *{"offload", "placement", "sites", "tokens"},
    },
    "locate": {"default_model", "gguf_cache", "hub"},
    "fingerprints": {"offload", "sites", "tokenizer_hash"},
    "gguf_cache": {"default_model", "fingerprints", "quiet"},
    "hub": {"default_model"},
    "workflows": {"bench"},
    "__main__": {"cli"},
}
"""The only imports within a rank: a patch holds an edit request, loading a base is one job in several files,
and a use case runs the benchmarks."""

HEAVY = ("torch", "transformers", "alembic")


def module_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


ALL_MODULES = {module_name(path) for path in module_files()}


def unit(module: str) -> str:
    """The name the rank table knows a module by: "rompatch.store.ledger" is in "store"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> set[str]:
    """Every module of rompatch that *path* imports, wherever the import statement stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the full name"
            assert node.module is not None
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= children & ALL_MODULES
            if not children <= ALL_MODULES:  # some name is not a module but something inside node.module
                found.add(node.module)
    return {name for name in found if name.split(".")[0] == "rompatch"}


def test_every_module_has_a_rank() -> None:
    units = {unit(name) for name in ALL_MODULES}
    assert units <= RANKS.keys(), f"give these a rank: {sorted(units - RANKS.keys())}"


# The package itself offers names of every rank; it has its own test.
@pytest.mark.parametrize("path", [path for path in module_files() if unit(module_name(path))], ids=module_name)
def test_imports_point_only_downwards(path: Path) -> None:
    importer = unit(module_name(path))
    for imported in sorted(unit(name) for name in imports(path)):
        inside = imported == importer or imported in NEIGHBOURS.get(importer, ())
        # rompatch/__init__.py holds only the version as far as the modules below it are concerned.
        assert inside or imported == "" or RANKS[imported] < RANKS[importer], (
            f"{module_name(path)} (rank {RANKS[importer]}) imports rompatch.{imported} (rank {RANKS[imported]})"
        )


def test_the_package_itself_imports_nothing_while_it_is_imported() -> None:
    """Otherwise `from rompatch import __version__` in a low module would import the high ones."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    eager = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in eager}
    assert not {name for name in modules if str(name).startswith("rompatch")}


def test_no_import_cycles_between_modules() -> None:
    graph = {module_name(path): imports(path) & ALL_MODULES - {module_name(path)} for path in module_files()}
    graph["rompatch"] = set()  # its lazy imports happen after it is complete
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the cycle


def loaded_by(modules: tuple[str, ...], heavy: tuple[str, ...]) -> str:
    """Of each of *modules*, imported in turn in one new process, which of *heavy* it is the first to load."""
    script = (
        "import importlib, sys\n"
        "seen = set()\n"
        f"for module in {modules!r}:\n"
        "    importlib.import_module(module)\n"
        f"    found = set({heavy!r}) & set(sys.modules) - seen\n"
        "    seen |= found\n"
        "    if found: print(module, 'loads', *sorted(found))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quick_modules_load_nothing_heavy() -> None:
    quick = ("rompatch", "rompatch.cli", "rompatch.store.ledger", "rompatch.patchfile", "rompatch.locate")
    assert loaded_by((*quick, *(f"rompatch.apply.{name}" for name in ("bake", "manifest", "explaining"))), HEAVY) == ""
    assert loaded_by(("json", "numpy"), ("numpy",)) == "numpy loads numpy\n", "what is loaded is seen"


def test_headers_are_read_without_numpy() -> None:
    """NumPy would be a quarter of the time that `rompatch log` takes."""
    assert loaded_by(("rompatch.store.ledger", "rompatch.patchfile", "rompatch.workflows.store"), ("numpy",)) == ""
