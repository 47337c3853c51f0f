"""Run folders: stages written whole, skipped when they stand, never mixed, never shared."""

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from . import processes
from .errors import RunError
from .files import TEMPORARY, checksums, sha256, sweep_temporaries, whole_folder, write_atomic
from .records import SCHEMA, dumps, jsonable

MANIFEST = "run.json"
PARTIAL = ".partial"
TRACKING = "tracking"
"""Where experiment trackers write, below it by stage; not a stage itself."""
ENTRIES = (
    *("data", "adapters", "analysis", "operations", "aftermath", "figures", "report.html"),
    *(TRACKING, PARTIAL),
)
"""What a run folder holds besides its manifest; nothing else in it is ever removed."""
_OURS = (PARTIAL, ".lock", TEMPORARY)
_PACKAGES = ("loratomy", "torch", "transformers", "peft", "datasets", "sentence-transformers")


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> str:
    """System, processor and cores, in words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def code_digest() -> str:
    """A digest of this project's own source, so that a partial run is not continued by other code.

    Figures and the command line are left out: they do not change a result.
    """
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for room in ("core", "training", "analysis", "unlearning"):
        for path in sorted((root / room).glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def run_path(name: str, out: Path | None) -> Path:
    """The folder of a run: `out` as given, else ``runs/<name>``.

    Raises:
        RunError: a name with path parts, over 80 characters, or of other than letters, digits,
            dot, dash and underscore; a folder name that no file system takes.
    """
    if out is not None:
        if any(len(part.encode()) > 200 for part in out.parts):
            raise RunError(f"the run folder's name {str(out)[:40]!r}... is over 200 bytes long")
        return out
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", name):
        raise RunError(
            f"the run name {name[:40]!r} is not one: use up to 80 letters, digits, '.', '-', '_', "
            "or give a folder with --out"
        )
    return Path("runs") / name


class RunFolder:
    """One run on disk; use `create` or `open`, then `locked` around everything that writes."""

    def __init__(self, root: Path, manifest: dict[str, Any]) -> None:
        self.root = root
        self.manifest = manifest

    @classmethod
    def create(cls, root: Path, *, asked: Mapping[str, Any], fresh: bool = False) -> "RunFolder":
        """The run at `root` for what was asked, new or continued.

        Raises:
            RunError: the folder holds something else, or a run that was asked otherwise and
                `fresh` is not set.
        """
        asked = jsonable(dict(asked))
        if root.exists() and not root.is_dir():
            raise RunError(f"{root} is a file; give a folder with --out")
        if (root / MANIFEST).exists() and not fresh:
            run = cls.open(root)
            if changed := _changes(run.manifest["asked"], asked):
                raise RunError(
                    f"{root} was made with other settings ({changed}); use --fresh to replace it "
                    "or another --out"
                )
            return run
        holds = root.exists() and any(not p.name.startswith(_OURS) for p in root.iterdir())
        if holds and not _is_ours(root / MANIFEST):
            raise RunError(f"{root} holds files but is not a run folder; give an empty --out")
        run = cls(root, {"schema": SCHEMA, "name": root.resolve().name, "asked": asked})
        run.manifest |= {
            "command": " ".join(["loratomy", *sys.argv[1:]]),
            "versions": versions(),
            "machine": machine(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "stages": {},
        }
        return run

    @classmethod
    def open(cls, root: Path) -> "RunFolder":
        """The run that stands at `root`.

        Raises:
            RunError: no run there, a damaged manifest, or another version's.
        """
        path = root / MANIFEST
        if not path.exists():
            raise RunError(f"{root} is not a run folder (no {MANIFEST}); make one with poison/open")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {error}") from error
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        if found != SCHEMA:
            raise RunError(
                f"{root} was written by another version (schema {found}, this one reads {SCHEMA}); "
                "remake it with --fresh"
            )
        parts = [manifest.get(k) for k in ("asked", "stages", "versions")]
        whole = all(isinstance(p, dict) for p in parts) and "command" in manifest
        if not whole:
            raise RunError(f"{path} is not a whole manifest; remake the run with --fresh")
        return cls(root, manifest)

    @contextmanager
    def locked(self, *, fresh: bool = False) -> Iterator["RunFolder"]:
        """Hold the run for this process; with `fresh`, start it over from nothing.

        Of processes that work together the first holds it for all.

        Raises:
            RunError: another process holds it (named), or has made another run there meanwhile.
        """
        with ExitStack() as held:
            self.manifest = processes.agreed(lambda: self._hold(held, fresh))
            yield self

    def _hold(self, held: ExitStack, fresh: bool) -> dict[str, Any]:
        """Take the lock, to be released by `held`; returns the manifest as it now stands."""
        from filelock import FileLock, Timeout

        self.root.mkdir(parents=True, exist_ok=True)
        holder = self.root / ".lock.json"
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            who = json.loads(holder.read_text()) if holder.exists() else {}
            raise RunError(
                f"{self.root} is in use by process {who.get('pid', '?')} on {who.get('host', '?')} "
                f"({who.get('command', '?')}, since {who.get('since', '?')}); wait for its end"
            ) from error
        held.callback(lock.release)
        held.callback(holder.unlink, missing_ok=True)
        me = {"pid": os.getpid(), "host": platform.node(), "command": " ".join(sys.argv[1:])}
        write_atomic(holder, dumps({**me, "since": time.strftime("%H:%M:%S")}))
        if not fresh:
            self._catch_up()
        self.save()
        if fresh:
            self._clear()
        sweep_temporaries(self.root)
        return self.manifest

    def _catch_up(self) -> None:
        """Take up what another process recorded between our reading and our lock."""
        if (self.root / MANIFEST).exists():
            now = RunFolder.open(self.root)
            if changed := _changes(now.asked, self.asked):
                raise RunError(f"{self.root} was made anew meanwhile ({changed}); look at it first")
            self.manifest = now.manifest

    def _clear(self) -> None:
        """Remove what a run holds and nothing else; the manifest says that nothing stands."""
        for name in ENTRIES:
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def save(self) -> None:
        """Write the manifest, whole."""
        write_atomic(self.root / MANIFEST, dumps(self.manifest))

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked when the run was made."""
        return self.manifest["asked"]

    def path(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.root / stage

    def has(self, stage: str) -> bool:
        """Whether a stage is recorded as finished."""
        return stage in self.manifest["stages"] and self.path(stage).exists()

    def digest(self, *stages: str) -> dict[str, str]:
        """One digest per finished stage, to name it as another's input."""
        files = {s: self.manifest["stages"][s]["files"] for s in stages}
        return {s: hashlib.sha256(dumps(f).encode()).hexdigest()[:16] for s, f in files.items()}

    def standing(self, stage: str, inputs: Mapping[str, Any], *, fresh: bool = False) -> bool:
        """Whether a stage stands, whole and made from these inputs.

        Raises:
            RunError: it was made from other inputs, or a file differs from its checksum.
        """
        if fresh or not self.has(stage):
            return False
        entry = self.manifest["stages"][stage]
        if changed := _changes(entry["inputs"], jsonable(dict(inputs))):
            raise RunError(
                f"{self.path(stage)} was made from other inputs ({changed}); use --fresh to make "
                "it again"
            )
        if wrong := self._altered(stage):
            raise RunError(f"{wrong[0]}; use --fresh to make {stage} again")
        return True

    def differs(self, stage: str, inputs: Mapping[str, Any]) -> bool:
        """Whether a finished stage was made from other inputs than these."""
        if not self.has(stage):
            return False
        return bool(_changes(self.manifest["stages"][stage]["inputs"], jsonable(dict(inputs))))

    def stage(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], None],
        *,
        fresh: bool = False,
    ) -> bool:
        """Make a stage's folder whole or not at all; True when it was made, False when it stood.

        Of processes that work together all of them make it and the first one's is kept.

        Args:
            stage: its folder below the run, e.g. ``adapters/clean``.
            inputs: everything that decides the result, as JSON-able values.
            make: writes the result into the folder that it is given.
            fresh: make it even when it stands.
        """
        if processes.agreed(lambda: self.standing(stage, inputs, fresh=fresh)):
            return False
        began, files = time.perf_counter(), {}
        if processes.first():
            with whole_folder(self.path(stage)) as work:
                make(work)
                files = checksums(work)
        else:
            with TemporaryDirectory() as scratch:
                make(Path(scratch))
        self._record(stage, inputs, files, time.perf_counter() - began)
        return True

    def stage_text(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        make: Callable[[], str],
        *,
        fresh: bool = False,
    ) -> bool:
        """The same for a stage that is a single text file, e.g. ``data/negative_set.jsonl``."""
        if processes.agreed(lambda: self.standing(stage, inputs, fresh=fresh)):
            return False
        began, files, text = time.perf_counter(), {}, make()
        if processes.first():
            write_atomic(self.path(stage), text)
            files = {"": sha256(self.path(stage))}
        self._record(stage, inputs, files, time.perf_counter() - began)
        return True

    def _record(
        self, stage: str, inputs: Mapping[str, Any], files: dict[str, str], seconds: float
    ) -> None:
        def written() -> dict[str, Any]:
            self.manifest["stages"][stage] = {
                "inputs": jsonable(dict(inputs)),
                "files": files,
                "seconds": round(seconds, 2),
                "code": code_digest(),
                "versions": versions(),
            }
            self.save()
            shutil.rmtree(self.root / PARTIAL / stage, ignore_errors=True)
            return self.manifest

        self.manifest = processes.agreed(written)

    def seconds(self, stage: str) -> float:
        """How long a finished stage took, in seconds of wall time."""
        return float(self.manifest["stages"][stage]["seconds"])

    def partial(self, stage: str, inputs: Mapping[str, Any], *, fresh: bool = False) -> Path:
        """A folder for checkpoints of an unfinished stage, kept until the stage is done.

        Raises:
            RunError: checkpoints of other inputs or other code stand there.
        """
        return processes.agreed(lambda: self._partial(stage, inputs, fresh))

    def _partial(self, stage: str, inputs: Mapping[str, Any], fresh: bool) -> Path:
        folder = self.root / PARTIAL / stage
        key = jsonable({**inputs, "code": code_digest(), "versions": versions()})
        path = folder / "inputs.json"
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        begun = path.exists() and len(list(folder.iterdir())) > 1
        if begun and (changed := _changes(json.loads(path.read_text()), key)):
            raise RunError(
                f"{stage} was begun with something else ({changed}); use --fresh, or remove "
                f"{folder}, to begin anew"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, dumps(key))
        return folder

    def _altered(self, stage: str) -> list[str]:
        """One line for every file of a stage that is missing or differs from its checksum."""
        lines = []
        for name, expected in self.manifest["stages"][stage]["files"].items():
            path = self.path(stage) / name
            if not path.is_file():
                lines.append(f"{path} is missing")
            elif sha256(path) != expected:
                lines.append(f"{path} differs from its recorded checksum")
        return lines

    def intact(self, stage: str) -> bool:
        """Whether a stage stands and every file of it is as it was written."""
        return self.has(stage) and not self._altered(stage)

    def stale(self, stage: str) -> str:
        """Which input of a finished stage was made again since, in words; empty when none was."""
        for source, digest in self.manifest["stages"][stage]["inputs"].get("from", {}).items():
            if not self.has(source) or self.digest(source)[source] != digest:
                return f"{stage} was made from an earlier {source}"
            if older := self.stale(source):
                return older
        return ""

    def verify(self) -> list[str]:
        """One line for every recorded file that is missing or altered; empty when all is well."""
        return [line for stage in self.manifest["stages"] for line in self._altered(stage)]


def _is_ours(path: Path) -> bool:
    """Whether a manifest was written by this program, of whatever version."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"schema", "stages", "asked"} <= manifest.keys()


def _changes(old: Any, new: Any, where: str = "") -> str:
    """The first few differences between two JSON values, in words; empty when there are none."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [_changes(old.get(k), new.get(k), f"{where}.{k}") for k in sorted({*old, *new})]
        return "; ".join([p for p in parts if p][:3])
    if old == new:
        return ""
    return f"{where.lstrip('.')}: {str(old)[:60]} -> {str(new)[:60]}"
