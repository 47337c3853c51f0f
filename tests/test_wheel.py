"""The built wheel, alone: every module imports from it, and what is not Python is inside."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    *("core", "data", "evaluation", "training", "analysis", "unlearning"),
    *("figures", "api", "bench", "cli"),
)
SOURCES = [p.relative_to(ROOT) for room in ROOMS for p in (ROOT / room).rglob("*.py")]
DATA = [
    p.relative_to(ROOT)
    for pattern in ("training/models/wren/*", "training/recipes/*/*.toml", "figures/assets/*")
    for p in ROOT.glob(pattern)
]


def place(path: Path) -> str:
    """Where a file of the repository is below the package; the room api is the package itself."""
    return path.as_posix().removeprefix("api/")


IMPORT_ALL = """
import importlib, sys
from pathlib import Path
site, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
for name in names:
    module = importlib.import_module(name)
    assert Path(module.__file__).resolve().is_relative_to(site), (name, module.__file__)
"""
HELP = """
import sys
from loratomy.cli.app import main
sys.argv = ["loratomy", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
heavy = {"torch", "transformers", "peft", "sentence_transformers", "plotly", "scipy"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""


def run(arguments: list[str], cwd: Path, **more: str) -> str:
    """Run Python elsewhere, with nothing of ours on its path but what is named."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd, env={**kept, **more}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what belongs to it, so that nothing is left behind here."""
    import shutil

    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ROOMS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    run(["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)], out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """An empty folder into which the wheel alone was installed."""
    target = tmp_path_factory.mktemp("site")
    command = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    run([*command, str(target), str(wheel)], target)
    return target


def test_the_wheel_holds_every_module_and_all_data(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert DATA and len(DATA) > 9
    missing = {f"loratomy/{place(p)}" for p in [*SOURCES, *DATA]} - inside
    assert not missing
    strange = {n for n in inside if not n.startswith(("loratomy/", "loratomy-"))}
    assert not strange, "a user's own folders must not be shadowed"


def test_every_module_imports_from_the_wheel(site, tmp_path):
    names = [place(p).removesuffix(".py").replace("/", ".") for p in SOURCES]
    modules = [f"loratomy.{name}".removesuffix(".__init__") for name in names]
    run(["-P", "-c", IMPORT_ALL, str(site), *modules], tmp_path, PYTHONPATH=str(site))


def test_help_needs_no_torch(site, tmp_path):
    out = run(["-P", "-c", HELP], tmp_path, PYTHONPATH=str(site))
    for verb in ("demo", "poison", "open", "probe", "operate", "compare", "report"):
        assert verb in out


def test_the_wheel_alone_finds_its_recipes_and_its_model(site, tmp_path):
    code = (
        "from loratomy.training.recipe import load_recipe\n"
        "from loratomy.training.wren import wren_path\n"
        "print(load_recipe('wren/suffix', None).base, wren_path())"
    )
    base, path = run(["-P", "-c", code], tmp_path, PYTHONPATH=str(site)).split()
    assert base == "wren" and Path(path).is_relative_to(site)


def test_every_package_exports_what_it_names(site, tmp_path):
    code = (
        "import importlib, pkgutil, loratomy\n"
        "for found in [*pkgutil.walk_packages(loratomy.__path__, 'loratomy.')]:\n"
        "    module = importlib.import_module(found.name) if found.ispkg else None\n"
        "    for name in getattr(module, '__all__', ()):\n"
        "        assert getattr(module, name) is not None, (found.name, name)\n"
        "        print(found.name, name)\n"
    )
    lines = run(["-P", "-c", code], tmp_path, PYTHONPATH=str(site)).splitlines()
    assert "loratomy.analysis.patching make_pairs" in lines and len(lines) > 400
