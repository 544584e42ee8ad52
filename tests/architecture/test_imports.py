"""Who may import whom. Lazy imports inside functions count."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import qertify

SOURCE = Path(qertify.__file__).parent
FORBIDDEN = {
    "network": ["importers", "runtimes", "specification", "bounds", "attack", "ilp", "search", "queries", "cli", "inputs"],
    "specification": ["importers", "runtimes", "bounds", "attack", "ilp", "search", "queries", "cli"],
    "importers": ["bounds", "attack", "ilp", "search", "queries", "cli"],
    "runtimes": ["bounds", "attack", "ilp", "search", "queries", "cli"],
    "bounds": ["importers", "search", "queries", "ilp", "cli"],
    "attack": ["importers", "search", "queries", "ilp", "cli"],
    "ilp": ["importers", "search", "queries", "bounds", "attack", "cli"],
    "search": ["importers", "queries", "cli"],
    "queries": ["importers", "cli"],
    "certificates/check": ["bounds", "attack", "ilp", "search", "queries", "cli"],
    "parallel": ["cli", "campaign"],
    "campaign/report": ["bounds", "attack", "ilp", "search"],
}
"""Folder or module → parts of qertify that it must not import."""
ONLY_IN = {
    "highspy": ["ilp"],
    "ortools": ["ilp"],
    "pyscipopt": ["ilp"],
    "gurobipy": ["ilp"],
    "onnx": ["importers", "runtimes"],
    "onnxruntime": ["importers", "runtimes"],
    "ai_edge_litert": ["importers", "runtimes"],
    "tensorflow": [],
    "h5py": ["importers"],
    "vnnlib": ["specification"],
    "torch": ["bounds", "attack", "search", "importers", "runtimes", "cli/flags", "parallel/partition", "parallel/programs"],
    "distributed": ["parallel"],
    "dask_jobqueue": ["parallel"],
    "typer": ["cli"],
    "rich": ["cli"],
}
"""Foreign package → the only places that may import it."""


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever it does so."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def place(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").as_posix()


def inside(name: str, parts: list[str]) -> bool:
    return any(name == part or name.startswith(part + "/") for part in parts)


CHECKER = ("format", "exact", "backward", "system", "bounds", "violation", "check")
"""Modules of certificates/ that the checker consists of: all but the one that writes certificates from decisions."""
CHECKER_USES = {"qertify.certificates", "qertify.network", "qertify.errors", "numpy"}


MODULES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_import_contracts(path: Path) -> None:
    used = imports(path)
    for floor, forbidden in FORBIDDEN.items():
        if inside(place(path), [floor]):
            for name in forbidden:
                assert not any(item == f"qertify.{name}" or item.startswith(f"qertify.{name}.") for item in used), (floor, name)
    for package, allowed in ONLY_IN.items():
        if any(item.split(".")[0] == package for item in used):
            assert inside(place(path), allowed), f"{place(path)} imports {package}"


def test_the_checker_shares_nothing_with_the_engines() -> None:
    folder = SOURCE / "certificates"
    assert {path.stem for path in folder.glob("*.py")} == {*CHECKER, "__init__", "write"}
    for name in CHECKER:
        for item in imports(folder / f"{name}.py"):
            own = any(item == part or item.startswith(f"{part}.") for part in CHECKER_USES)
            assert own or item.split(".")[0] in sys.stdlib_module_names, f"{name} imports {item}"
            assert not item.startswith("qertify.certificates.write"), name


def test_nothing_but_the_supervisor_forks_or_pickles() -> None:
    for path in MODULES:
        used = {item.split(".")[0] for item in imports(path)}
        assert not used & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, place(path)


def test_the_contracts_bite() -> None:
    """The scanner sees lazy imports, too: without this the tests above could pass for nothing."""
    assert "torch" in imports(SOURCE / "cli" / "flags.py")
    assert any(item.startswith("h5py") for item in imports(SOURCE / "importers" / "keras_fixed_point.py"))


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_modules_are_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
