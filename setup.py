"""Where the packages are: folder X of this repository is the package ``loratomy.X``.

They are found, not listed; every other setting is in pyproject.toml.
"""

from setuptools import find_packages, setup

ROOMS = ("core", "data", "evaluation", "training", "analysis", "unlearning", "figures", "cli")
inside = find_packages(include=[part for room in ROOMS for part in (room, f"{room}.*")])

setup(
    packages=[f"loratomy.{name}" for name in inside],
    package_dir={f"loratomy.{room}": room for room in ROOMS},
)
