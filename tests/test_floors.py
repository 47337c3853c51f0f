"""Who may import whom, how, and how long a file may be, read from the sources themselves."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "core": set(),
    "training": {"core"},
    "analysis": {"core", "training"},
    "unlearning": {"core", "training", "analysis"},
    "figures": {"core"},
    "cli": {"core", "training", "analysis", "unlearning", "figures"},
}
"""Package -> the packages that stand below it."""
HEAVY = {"torch", "transformers", "peft", "nnsight", "sentence_transformers", "accelerate", "scipy"}
LONGEST = 600

FILES = sorted(p for package in BELOW for p in (ROOT / package).rglob("*.py"))
names = pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())


def imports(path: Path, *, only_at_import: bool = False) -> list[tuple[int, str]]:
    """``(level, module)`` of every import in a file, also inside functions unless told not to."""

    def walk(node: ast.AST):
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if only_at_import and (inside or typing):
                continue
            if isinstance(child, ast.Import):
                yield from ((0, alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                whole = child.module is None
                yield from (
                    (child.level, alias.name if whole else str(child.module))
                    for alias in child.names
                )
            else:
                yield from walk(child)

    return list(walk(ast.parse(path.read_text(encoding="utf-8"))))


def packages(path: Path) -> set[str]:
    """The packages of ours that a file reaches for."""
    return {module.split(".")[0] for level, module in imports(path) if level == 2}


def test_every_package_is_read():
    assert {p.relative_to(ROOT).parts[0] for p in FILES} == set(BELOW)
    assert len(FILES) > 60


@names
def test_imports_go_down_only(path):
    package = path.relative_to(ROOT).parts[0]
    assert packages(path) <= BELOW[package], f"{package} may import {sorted(BELOW[package])}"


@names
def test_imports_of_ours_are_relative_and_stay_inside(path):
    package, found = path.relative_to(ROOT).parts[0], imports(path)
    assert len(path.relative_to(ROOT).parts) == 2, "packages are one level deep"
    ours = {"loratomy", *BELOW}
    # `analysis` and its like are free words for other distributions, hence the whole first part.
    assert not [m for level, m in found if level == 0 and m.split(".")[0] in ours]
    assert max((level for level, _ in found), default=0) <= 2
    siblings = {p.stem for p in (ROOT / package).glob("*.py")}
    assert {m.split(".")[0] for level, m in found if level == 1} <= siblings
    for level, module in found:
        if level == 2:
            head, *rest = module.split(".")
            assert (ROOT / head / "__init__.py").exists(), module
            assert not rest or (ROOT / head / f"{rest[0]}.py").exists(), module


@names
def test_light_files_stay_light(path):
    package = path.relative_to(ROOT).parts[0]
    heavy = {m.split(".")[0] for level, m in imports(path) if level == 0} & HEAVY
    if package == "figures" or path.stem in ("results", "records", "stats", "errors", "progress"):
        assert not heavy
    if package == "cli":
        at_once = {m.split(".")[0] for level, m in imports(path, only_at_import=True) if level == 0}
        assert not at_once & HEAVY


@names
def test_files_are_of_readable_length_and_have_a_subject(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert path.stem not in ("utils", "helpers", "misc", "common")


def test_roots_hold_no_other_folder():
    expected = {*BELOW, "tests", "benchmarks", "docs"}
    python = {p.relative_to(ROOT).parts[0] for p in ROOT.glob("*/*.py")}
    assert python <= expected
