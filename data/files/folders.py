"""Folders of data files: shards, splits, data sets as the hub's cache and `datasets` keep them."""

import os
import re
from pathlib import Path

from ...core.errors import DataError

SUFFIXES = (".parquet", ".arrow", ".feather", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
PACKED = (".gz", ".bz2", ".xz")
_ABOUT = {
    *("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "sets.json"),
    *("config.json", "adapter_config.json", "package.json", "run.json"),
}
"""JSON files that hold no rows."""
_SHARD = re.compile(r"(?P<name>.*?)[-_.]?(?P<number>\d{5})-of-(?P<count>\d{5})")
MOST = 10_000
"""Files of a folder that are looked at."""


def data_parts(folder: Path) -> dict[str, list[Path]]:
    """The data files below a folder by what they are parts of: a split's name, or a file's.

    Raises:
        DataError: no data files, several snapshots, a shard that is missing.
    """
    root = _snapshot(folder)
    parts: dict[str, dict[str, list[Path]]] = {}
    for path in _files(root):
        name, suffix = _plain(path.name)
        label = _label(path.relative_to(root).parent, name)
        parts.setdefault(label, {}).setdefault(suffix, []).append(path)
    if not parts:
        raise DataError(
            f"the folder {folder} holds no data files ({', '.join(SUFFIXES)}); give a file"
        )
    found: dict[str, list[Path]] = {}
    for label, kinds in parts.items():
        for suffix, paths in kinds.items():
            _check_shards(paths)
            found[label if len(kinds) == 1 else label + suffix] = sorted(paths)
    return found


def chosen_part(folder: Path, part: str) -> tuple[str, list[Path]]:
    """The part of a folder that is meant, and its files in their order.

    Without a name the only one, else ``train``, as on the hub.

    Raises:
        DataError: none or several fit.
    """
    parts = data_parts(folder)
    wanted = part or (next(iter(parts)) if len(parts) == 1 else "train")
    fits = [label for label in parts if label == wanted or label.endswith("/" + wanted)]
    if len(fits) != 1:
        shown = ", ".join(f"{label[:60]!r}" for label in sorted(fits or parts)[:12])
        raise DataError(
            f"{folder} holds {'no ' + repr(part) + ' but ' if part and not fits else ''}{shown}; "
            f"name one with a colon, as in {folder}:{repr(sorted(fits or parts)[0])[1:-1]}"
        )
    return fits[0], parts[fits[0]]


def _snapshot(folder: Path) -> Path:
    """The snapshot of a data set in the hub's cache; other folders as they are."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    there = sorted(path for path in snapshots.iterdir() if path.is_dir())
    main = folder / "refs" / "main"
    if main.is_file() and (named := snapshots / main.read_text().strip()[:80]) in there:
        return named
    if len(there) != 1:
        raise DataError(f"{folder} holds {len(there)} snapshots; give one of them: {snapshots}/...")
    return there[0]


def _files(root: Path) -> list[Path]:
    found: list[Path] = []
    for here, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            wanted = _plain(name)[1] in SUFFIXES and name not in _ABOUT
            if wanted and not name.startswith((".", "cache-")) and "index.json" not in name:
                found.append(Path(here) / name)
        if len(found) > MOST:
            raise DataError(f"{root} holds more than {MOST} data files; give a folder inside it")
    return found


def _plain(name: str) -> tuple[str, str]:
    """A file's name without its suffixes, and the suffix that names its format."""
    lower = name.lower()
    for suffix in PACKED:
        if lower.endswith(suffix):
            name, lower = name[: -len(suffix)], lower[: -len(suffix)]
    stem, suffix = os.path.splitext(lower)
    return name[: len(stem)], suffix


def _label(parent: Path, name: str) -> str:
    """What a file is a part of: ``train`` for ``data/train-00000-of-00002``, ``train/0000``."""
    if shard := _SHARD.fullmatch(name):
        name = shard["name"]
    elif name.isdigit():
        name = ""
    above = [step for step in parent.parts if step != "data"]
    own = [] if name in ("", "data") and above else [name or "data"]
    return "/".join([*above, *own])


def _check_shards(paths: list[Path]) -> None:
    shards = [shard for path in paths if (shard := _SHARD.fullmatch(_plain(path.name)[0]))]
    if not shards:
        return
    count, have = int(shards[0]["count"]), {int(shard["number"]) for shard in shards}
    if missing := sorted(set(range(count)) - have)[:8]:
        raise DataError(
            f"{paths[0].parent} lacks the shards {missing} of the {count} that {paths[0].name} "
            "speaks of; put them there, or give one file"
        )
