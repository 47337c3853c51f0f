"""Who may import whom, how, and how long a file may be, read from the sources themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = ("core", "data", "evaluation", "training", "analysis", "unlearning", "api", "bench", "cli")
"""Each may import those before it; figures stand on core alone, below api."""
BELOW = {room: set(FLOORS[:i]) for i, room in enumerate(FLOORS)} | {"figures": {"core"}}
for room in ("api", "bench", "cli"):
    BELOW[room] |= {"figures"}
"""Room -> the rooms that stand below it."""
HEAVY = {"torch", "transformers", "peft", "nnsight", "sentence_transformers", "accelerate", "scipy"}
LONGEST = 600
CROWD = 20
"""Files in a folder."""

FILES = sorted(p for room in BELOW for p in (ROOT / room).rglob("*.py"))


def parts(path: Path) -> tuple[str, ...]:
    """Room, sub-packages and file name of a source."""
    return path.relative_to(ROOT).parts


def imports(path: Path, *, only_at_import: bool = False) -> list[tuple[int, str]]:
    """``(level, module)`` of every import in a file, also inside functions unless told not to."""

    def walk(node: ast.AST) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            if only_at_import and (inside or typing):
                continue
            if isinstance(child, ast.Import):
                yield from ((0, alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                for alias in child.names:
                    yield child.level, f"{child.module or ''}.{alias.name}".lstrip(".")
            else:
                yield from walk(child)

    return list(walk(ast.parse(path.read_text(encoding="utf-8"))))


def ours(path: Path) -> list[tuple[str, ...]]:
    """What a file imports of this project, as places below the root, names of things included.

    Raises:
        AssertionError: an import that leaves the project.
    """
    here = tuple(part for part in parts(path)[:-1] if part != "api")  # it is `loratomy`
    found = []
    for level, module in imports(path):
        if level:
            assert level <= len(here) + 1, f"{path}: {'.' * level}{module} leaves the project"
            place = (*here[: len(here) - level + 1], *module.split("."))
            found.append(place if place[0] in BELOW else ("api", *place))
    return found


def outside(path: Path, **how: bool) -> set[str]:
    """The distributions that a file imports, by their first part."""
    return {module.split(".")[0] for level, module in imports(path, **how) if level == 0}


def test_every_room_is_read():
    assert {parts(p)[0] for p in FILES} == set(BELOW)
    assert len(FILES) > 60


def test_imports_go_down_only():
    for path in FILES:
        room = parts(path)[0]
        wrong = {place[0] for place in ours(path)} - BELOW[room] - {room}
        assert not wrong, f"{path}: {room} may import {sorted(BELOW[room])}, not {sorted(wrong)}"


def test_imports_of_ours_are_relative_and_lead_somewhere():
    for path in FILES:
        # `analysis` and its like are free words for other distributions, hence the whole name.
        assert not outside(path) & {"loratomy", *BELOW}, path
        for place in ours(path):
            module, package = ROOT.joinpath(*place[:-1]), ROOT.joinpath(*place)
            exists = module.with_suffix(".py").exists() or (module / "__init__.py").exists()
            assert exists or package.with_suffix(".py").exists(), f"{path}: {'.'.join(place)}"


def test_light_files_stay_light():
    for path in FILES:
        room, *inside = parts(path)
        light = inside[0] in ("records", "errors.py", "stats.py", "progress.py", "registry.py")
        if room == "figures" or (room == "core" and light):
            assert not outside(path) & HEAVY, path
        if room == "cli":
            assert not outside(path, only_at_import=True) & HEAVY, path


def test_files_are_of_readable_length_and_have_a_subject():
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST, path
        assert path.stem not in ("utils", "helpers", "misc", "common"), path


def test_folders_are_packages_and_no_crowds():
    for folder in {p.parent for p in FILES}:
        assert (folder / "__init__.py").is_file(), f"{folder} is no package"
        crowd = [p for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(crowd) <= CROWD or parts(folder) == ("cli",), f"{folder} is two rooms"


def test_roots_hold_no_other_folder():
    expected = {*BELOW, "tests", "benchmarks", "docs", "examples"}
    python = {parts(p)[0] for p in ROOT.glob("*/*.py")}
    assert python <= expected
