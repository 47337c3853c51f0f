"""Where the packages are: folder X of this repository is ``loratomy.X``, and api is ``loratomy``.

They are found, not listed; every other setting is in pyproject.toml.
"""

from setuptools import find_packages, setup

ROOMS = (
    *("core", "data", "evaluation", "training", "analysis", "unlearning"),
    *("figures", "bench", "cli"),
)
inside = find_packages(include=[part for room in ROOMS for part in (room, f"{room}.*")])
inside += find_packages("api")

setup(
    packages=["loratomy", *(f"loratomy.{name}" for name in inside)],
    package_dir={"loratomy": "api"} | {f"loratomy.{room}": room for room in ROOMS},
)
