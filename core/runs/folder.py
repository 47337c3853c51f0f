"""Run folders: stages written whole, skipped when they exist, never mixed, never shared."""

import hashlib
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .. import lanes, processes
from ..errors import RunError
from ..files.atomic import (
    TEMPORARY,
    checksums,
    sha256,
    sweep_temporaries,
    whole_folder,
    write_atomic,
)
from ..files.jsonfiles import MANIFEST as MOST
from ..files.jsonfiles import read_json
from ..files.outputs import check_folder_out, out_path
from ..files.paths import REPORT, check_plain, check_tree, check_utf8, files_below, inside
from ..records.io import SCHEMA, dumps, jsonable
from ..rows import Row, read_rows, rows_to_jsonl
from ..text import visible
from .locks import held
from .manifest import MANIFEST, claimed, outside_runs, read_manifest, sealed, written
from .provenance import code_digest, machine, versions
from .run import Run, changes
from .shelf import FolderShelf, Shelf

PARTIAL = ".partial"
TRACKING = "tracking"
"""Where experiment trackers write, below it by stage; not a stage itself."""
FIGURES = "figures"
ENTRIES = (
    *("data", "adapters", "analysis", "operations", "aftermath", FIGURES, REPORT),
    *(TRACKING, PARTIAL),
)
"""What a run folder holds besides its manifest; nothing else in it is ever removed."""
_HELD = (MANIFEST, ".lock", ".lock.json")
_OURS = (PARTIAL, ".lock", TEMPORARY)
_MADE_BY_OTHERS = (TRACKING, PARTIAL)
"""Where libraries write files under names of their own."""


class RunFolder(Run):
    """One run on disk; use `create` or `open`, then `locked` around everything that writes."""

    def __init__(self, root: Path, manifest: dict[str, Any]) -> None:
        self.root = root
        self.manifest = manifest
        self._holding = False

    @classmethod
    def create(cls, root: Path, *, request: Mapping[str, Any], fresh: bool = False) -> "RunFolder":
        """The run at `root` for a request, new or continued.

        Raises:
            RunError: the folder holds something else, or a run of another request and
                `fresh` is not set.
        """
        request = jsonable(dict(request))
        check_utf8(root, "run folder")
        root = out_path(root)
        check_folder_out(root)
        outside_runs(root)
        if (root / MANIFEST).exists() and not fresh:
            run = cls.open(root)
            if changed := changes(run.request, request):
                raise RunError(
                    f"{root} was made with other settings ({changed}); use --fresh (in Python: "
                    "fresh=True) to replace it or another --out"
                )
            return run
        holds = root.exists() and any(not p.name.startswith(_OURS) for p in root.iterdir())
        if holds and claimed(root) is None:
            raise RunError(f"{root} holds files but is not a run folder; give an empty --out")
        name = visible(root.resolve().name)
        run = cls(root, {"schema": SCHEMA, "name": name, "request": request})
        if holds:
            run._check_tree()
            run._check_foreign(ENTRIES)
        run.manifest |= {
            "command": visible(shlex.join(["loratomy", *sys.argv[1:]])),
            "versions": versions(),
            "machine": machine(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "stages": {},
        }
        return run

    @classmethod
    def open(cls, root: Path) -> "RunFolder":
        """The run at `root`.

        Raises:
            RunError: no run there, a damaged manifest, or another version's.
        """
        check_utf8(root, "run folder")
        check_plain(root / MANIFEST)
        if not (root / MANIFEST).exists():
            raise RunError(f"{root} is not a run folder (no {MANIFEST}); make one with poison/open")
        run = cls(root, read_manifest(root))
        run._check_tree()
        return run

    def _check_tree(self) -> None:
        """Raise where a link, a pipe or a device lies in the run."""
        tops = {stage.split("/")[0] for stage in self.manifest.get("stages", ())}
        names = list(dict.fromkeys([*_HELD, *ENTRIES, *sorted(tops)]))
        check_tree(self.root, names, linking=(TRACKING,), own=(".lock", PARTIAL))

    def _check_foreign(self, names: Collection[str]) -> None:
        """Raise where a file below these entries, soon replaced or removed, was not written by us.

        Raises:
            RunError: names the first such file.
        """
        known = written(claimed(self.root) or {}) | written(self.manifest)
        for entry in names:
            if entry in _MADE_BY_OTHERS or not (self.root / entry).exists():
                continue
            below = [f"{entry}/{name}" for name in files_below(self.root / entry)]
            for name in [entry] if (self.root / entry).is_file() else below:
                if name not in known and TEMPORARY not in name:
                    raise RunError(
                        f"{self.root / name} was not written by loratomy and would be lost; move "
                        f"it out of {self.root / entry}, then run the same command again"
                    )

    @contextmanager
    def locked(self, *, fresh: bool = False, wait: float = 0) -> Iterator["RunFolder"]:
        """Hold the run for this process; with `fresh`, start it over from nothing.

        Of processes that work together the first holds it for all; inside a block that holds it,
        and in the processes that `side_by_side` started there, it is held already.

        Args:
            fresh: remove all that the run holds.
            wait: seconds to wait for another process that holds it.

        Raises:
            RunError: another process holds it (named), or has made another run there meanwhile.
        """
        if self._holding:
            yield self
            return
        with ExitStack() as stack:
            self.manifest = processes.agreed(lambda: self._hold(stack, fresh, wait))
            self._holding = True
            stack.callback(self._let_go)
            yield self

    def _let_go(self) -> None:
        self._holding = False

    def side_by_side(self, pieces: Sequence[Callable[[], Any]], *, jobs: int) -> None:
        """Make stages side by side, see `lanes.side_by_side`; the run must be held."""
        try:
            lanes.side_by_side(pieces, jobs=jobs)
        finally:
            self.manifest = read_manifest(self.root)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """The manifest, to be changed and written; of processes side by side one at a time."""
        if not lanes.inside():
            yield self.manifest
            self.save()
            return
        from filelock import FileLock

        with FileLock(self.root / ".lock.manifest"):
            self.manifest = read_manifest(self.root)
            yield self.manifest
            self.save()

    def _hold(self, stack: ExitStack, fresh: bool, wait: float) -> dict[str, Any]:
        """Take the lock, to be released by `stack`; returns the manifest as it is then."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._check_tree()
        stack.enter_context(held(self.root, wait=wait))
        if not fresh:
            self._catch_up()
            self.save()
        else:
            self._check_tree()
            self._check_foreign(ENTRIES)
            self._clear()
        sweep_temporaries(self.root, [e for e in ENTRIES if (self.root / e).is_dir()])
        return self.manifest

    def _catch_up(self) -> None:
        """Read what another process recorded between our reading and our lock."""
        if (self.root / MANIFEST).exists():
            now = RunFolder.open(self.root)
            if changed := changes(now.request, self.request):
                raise RunError(f"{self.root} was made anew meanwhile ({changed}); look at it first")
            self.manifest = now.manifest

    def _clear(self) -> None:
        """Remove what a run holds and nothing else; the manifest then lists no stage."""
        left = written(claimed(self.root) or {})
        self.manifest["outputs"] = sorted(left)  # ours still, should this process be killed here
        self.save()
        for name in ENTRIES:
            path = self.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.manifest["outputs"] = []
        self.save()

    def save(self) -> None:
        """Write the manifest, whole."""
        self.manifest = sealed(self.manifest)
        write_atomic(self.root / MANIFEST, dumps(self.manifest))

    def wrote(self, paths: Collection[Path]) -> None:
        """Remember files that are no stage's, e.g. of a report, as written by this program."""
        names = {path.relative_to(self.root).as_posix() for path in paths}
        with self._changing() as manifest:
            manifest["outputs"] = sorted({*manifest.get("outputs", ()), *names})

    def path(self, stage: str) -> Path:
        """Where a stage is or would be.

        Raises:
            RunError: its name leaves the run, or a link or a pipe lies on the way.
        """
        return inside(self.root, stage)

    def read(self, stage: str) -> Path:
        """The folder or file of a finished stage, every file of it as it was written.

        Raises:
            RunError: it is not finished, or a file is missing or was altered.
        """
        if not self.has(stage):
            known = ", ".join(self.manifest["stages"]) or "nothing yet"
            raise RunError(f"{self.root} has no {stage}; it has {known}")
        if wrong := self._altered(stage):
            raise RunError(f"{wrong[0]}; use --fresh (in Python: fresh=True) to make {stage} again")
        if added := self._added(stage):
            raise RunError(f"{added[0]}; move it away")
        return self.path(stage)

    def check(self, stage: str) -> None:
        """Raise unless a stage is finished and every file of it as it was written."""
        self.read(stage)

    def where(self, stage: str) -> str:
        """The path of a stage."""
        return str(self.path(stage))

    def shelf(self, stage: str) -> FolderShelf:
        """What a finished stage holds, every file of it as it was written."""
        return FolderShelf(self.read(stage), self.records(stage))

    def make(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        fill: Callable[[Shelf], None],
        *,
        fresh: bool = False,
    ) -> bool:
        """Make a stage whole or not at all, see `Run.make`."""
        return self.stage(stage, inputs, lambda work: fill(FolderShelf(work)), fresh=fresh)

    def make_rows(
        self, stage: str, inputs: Mapping[str, Any], make: "Callable[[], Sequence[Row]]"
    ) -> bool:
        """A stage that is one JSONL file of rows, e.g. ``data/negative_set.jsonl``."""
        if processes.agreed(lambda: self.up_to_date(stage, inputs)):
            return False
        began, files, text = time.perf_counter(), {}, rows_to_jsonl(make())
        if processes.first():
            self._check_foreign([stage])
            files = {"": hashlib.sha256(text.encode("utf-8")).hexdigest()}
            self._about_to_write(stage, files)
            write_atomic(self.path(stage), text)
        self._record(stage, inputs, files, time.perf_counter() - began)
        return True

    def rows(self, stage: str) -> "list[Row]":
        """The rows of a finished stage that is one file of them."""
        return read_rows(self.read(stage), need_completion=True)

    def records(self, stage: str) -> list[str]:
        """Names of the records in the folder of a finished stage, as they were written."""
        names = self.manifest["stages"][stage]["files"]
        return sorted(
            n.removesuffix(".json") for n in names if n.endswith(".json") and "/" not in n
        )

    def has(self, stage: str) -> bool:
        """Whether a stage is recorded as finished."""
        return stage in self.manifest["stages"] and self.path(stage).exists()

    def stage(
        self,
        stage: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path], None],
        *,
        fresh: bool = False,
    ) -> bool:
        """Make a stage's folder whole or not at all; True when it was made, False when it existed.

        Of processes that work together all of them make it and the first one's is kept.

        Args:
            stage: its folder below the run, e.g. ``adapters/clean``.
            inputs: everything that decides the result, as JSON-able values.
            make: writes the result into the folder that it is given.
            fresh: make it even when it exists.
        """
        if processes.agreed(lambda: self.up_to_date(stage, inputs, fresh=fresh)):
            return False
        began, files = time.perf_counter(), {}
        if processes.first():
            self._check_foreign([stage])
            with whole_folder(self.path(stage)) as work:
                make(work)
                files = checksums(work)
                self._about_to_write(stage, files)
        else:
            with TemporaryDirectory() as scratch:
                make(Path(scratch))
        self._record(stage, inputs, files, time.perf_counter() - began)
        return True

    def _about_to_write(self, stage: str, files: dict[str, str]) -> None:
        """Note whose files these are, should this process be killed before they are recorded."""
        with self._changing() as manifest:
            manifest.setdefault("making", {})[stage] = files
        self.path(stage)  # a link made meanwhile is an error before anything is replaced

    def _record(
        self, stage: str, inputs: Mapping[str, Any], files: dict[str, str], seconds: float
    ) -> None:
        def written() -> dict[str, Any]:
            with self._changing() as manifest:
                manifest["stages"][stage] = {
                    "inputs": jsonable(dict(inputs)),
                    "files": files,
                    "seconds": round(seconds, 2),
                    "code": code_digest(),
                    "versions": versions(),
                }
                manifest.get("making", {}).pop(stage, None)
            shutil.rmtree(self.path(f"{PARTIAL}/{stage}"), ignore_errors=True)
            return self.manifest

        self.manifest = processes.agreed(written)

    def partial(self, stage: str, inputs: Mapping[str, Any], *, fresh: bool = False) -> Path:
        """A folder for checkpoints of an unfinished stage, kept until the stage is done.

        Raises:
            RunError: there are checkpoints of other inputs or other code.
        """
        return processes.agreed(lambda: self._partial(stage, inputs, fresh))

    def _partial(self, stage: str, inputs: Mapping[str, Any], fresh: bool) -> Path:
        folder = self.path(f"{PARTIAL}/{stage}")
        check_tree(self.root, [PARTIAL], own=[PARTIAL])
        key = jsonable({**inputs, "code": code_digest(), "versions": versions()})
        path = folder / "inputs.json"
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        begun = path.exists() and len(list(folder.iterdir())) > 1
        remedy = f"remove {folder} to begin anew"
        found = read_json(path, most=MOST, remedy=remedy) if begun else key
        if not isinstance(found, dict):
            raise RunError(f"{path} does not record what was begun; {remedy}")
        if changed := changes(found, key):
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

    def _added(self, stage: str) -> list[str]:
        """One line for every file in a stage that no stage recorded; hidden ones are left alone."""
        if not self.path(stage).is_dir():
            return []
        known = written(self.manifest)
        return [
            f"{self.path(stage) / name} is not recorded: it was put there by somebody else"
            for name in files_below(self.path(stage))
            if f"{stage}/{name}" not in known and not any(p[0] == "." for p in name.split("/"))
        ]

    def intact(self, stage: str) -> bool:
        """Whether a stage exists and every file of it is as it was written."""
        return self.has(stage) and not self._altered(stage) and not self._added(stage)

    def verify(self) -> list[str]:
        """One line for every file that is missing, altered or not recorded; empty: all is well."""
        stages = self.manifest["stages"]
        return [line for s in stages for line in (*self._altered(s), *self._added(s))]
