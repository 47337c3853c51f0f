"""Experiment trackers beside a fit: they follow it, and never stop it."""

import os
import queue
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ..core import processes
from ..core.errors import LoratomyError
from ..core.registry import nearest

PACKAGES = {
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "tensorboard": ("tensorboard", "tensorboardX"),
}
"""Tracker -> the packages of which one must be installed."""
PATIENCE = 60.0
"""Seconds that a tracker may take for one event before it is left out."""
PROJECT = "loratomy"
"""Project in the trackers, unless the user's own settings name one."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """Which trackers follow a fit, and where those that write files write."""

    trackers: tuple[str, ...] = ()
    """Of `PACKAGES`."""
    folder: Path | None = None
    """Folder for their files; None: each tracker's own place."""
    stage: str = ""
    """Below `folder`, where W&B and TensorBoard write; trackio has one database for the folder, and
    for the whole process, since it asks for its place only once."""
    name: str = ""
    """Name of the run in the trackers; the fit's label is put after it."""

    def run_name(self, label: str) -> str:
        """What this fit is called in the trackers."""
        return re.sub(r"[^\w.-]+", "-", f"{self.name} {label}".strip())

    @contextmanager
    def session(self, label: str) -> Iterator[list[Any]]:
        """Trainer callbacks for one fit, which end with the block, also after an exception.

        Each waits at most `PATIENCE` seconds for its tracker, and a tracker that fails is left out
        with a warning. Of processes that work together the first alone reports.
        """
        if not self.trackers or not processes.first():
            yield []
            return
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks

        kinds = get_reporting_integration_callbacks(list(self.trackers))
        with _environment(self._settings(label)):
            guards = [_Guard(n, kind) for n, kind in zip(self.trackers, kinds, strict=True)]
            failed = True
            try:
                yield [_Relay(guards)]
                failed = False
            finally:
                for guard in guards:
                    guard.close(failed)

    def _settings(self, label: str) -> dict[str, str]:
        """Environment variables for this fit: files below the folder, no long waits, no prompts."""
        wanted = {
            "WANDB_PROJECT": PROJECT,
            "WANDB_SILENT": "true",
            "WANDB_INIT_TIMEOUT": str(int(PATIENCE / 2)),
            "WANDB_FINISH_TIMEOUT": str(int(PATIENCE / 2)),
        }
        if self.folder is not None:
            place = (self.folder / self.stage).absolute()
            place.mkdir(parents=True, exist_ok=True)
            wanted |= {
                "WANDB_DIR": str(place),
                "TRACKIO_DIR": str(self.folder.absolute() / "trackio"),
                "TENSORBOARD_LOGGING_DIR": str(place / "tensorboard" / self.run_name(label)),
            }
        if "wandb" in self.trackers and "WANDB_MODE" not in os.environ and not _wandb_key():
            _warn_offline()
            wanted["WANDB_MODE"] = "offline"
        return wanted


NO_TRACKING = Tracking()


def trackers_of(text: str) -> tuple[str, ...]:
    """Comma-separated trackers by name, each of them installed; none for ``""`` and ``none``.

    Raises:
        LoratomyError: an unknown one, or one whose package is missing.
    """
    names = tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))
    if names == ("none",):
        return ()
    for name in names:
        if name not in PACKAGES:
            raise LoratomyError(
                f"--report-to: unknown tracker {name!r}; {nearest(name, list(PACKAGES))}"
            )
        if not any(find_spec(package) for package in PACKAGES[name]):
            raise LoratomyError(
                f"--report-to: the tracker {name} is not installed: pip install "
                f"{PACKAGES[name][-1]}, or leave it out"
            )
    return names


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """These variables for as long as the block lasts; what the user has set stays."""
    new = {k: v for k, v in wanted.items() if k not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@cache
def _warn_offline() -> None:
    """Once in a process, however many fits there are."""
    warnings.warn(
        "no W&B key found (WANDB_API_KEY, or wandb login): W&B goes on offline, wandb sync uploads "
        "its files later; WANDB_MODE=online tries all the same",
        stacklevel=3,
    )


def _wandb_key() -> bool:
    """Whether a key is in the environment or, for W&B's own server, in the file of logins."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    if not path.is_file():
        return False
    address = os.environ.get("WANDB_BASE_URL", "")
    if not address:
        try:  # the address has changed between versions
            address = import_module("wandb").Settings().base_url
        except Exception:  # a broken package is reported where it is used
            return False
    host = urlparse(address).hostname
    return bool(host) and host in path.read_text(errors="replace")


class _Relay:
    """Passes the Trainer's events on to the guards."""

    def __init__(self, guards: "list[_Guard]") -> None:
        self._guards = guards

    def __getattr__(self, event: str) -> Callable[..., None]:
        if not event.startswith("on_"):
            raise AttributeError(event)

        def call(*args: Any, **kwargs: Any) -> None:
            for guard in self._guards:
                guard.send(event, args, kwargs)

        return call


class _Guard:
    """One tracker's callback in a thread of its own: what it does wrong only loses the tracker."""

    def __init__(self, name: str, kind: type[Any]) -> None:
        self._name, self._kind = name, kind
        self._callback: Any = None
        self._last: tuple[Any, ...] = ()
        self._lost = False
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any] | None, Future[None]]]
        self._jobs = queue.SimpleQueue()
        self._before = getattr(sys.modules.get("wandb"), "run", None)
        threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True).start()

    def send(self, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """One event of the Trainer; those that the tracker does not listen to cost nothing."""
        from transformers import TrainerCallback

        self._last = args
        if getattr(self._kind, event, None) is getattr(TrainerCallback, event, None):
            return

        def job() -> None:
            self._callback = self._callback or self._kind()
            getattr(self._callback, event)(*args, **kwargs)

        self._do(job)

    def close(self, failed: bool) -> None:
        """End the tracker's run, so that the next fit begins another."""
        if self._callback is not None:
            if failed and self._name != "wandb":
                self.send("on_train_end", self._last, {})
            if self._name == "wandb":
                self._do(lambda: self._finish_wandb(failed))
        self._jobs.put((None, Future()))

    def _finish_wandb(self, failed: bool) -> None:
        """Its callback leaves the run open until the process ends."""
        wandb = sys.modules["wandb"]
        if wandb.run is not None and wandb.run is not self._before:
            wandb.finish(exit_code=int(failed))

    def _do(self, job: Callable[[], Any]) -> None:
        if self._lost:
            return
        done: Future[None] = Future()
        self._jobs.put((job, done))
        try:
            error = done.exception(PATIENCE)
        except TimeoutError:
            error = TimeoutError(f"no answer in {PATIENCE:g} s")
        if error is not None:
            self._lost = True
            what = " ".join(str(error).split())[:200] or type(error).__name__
            warnings.warn(f"the tracker {self._name} failed and is left out: {what}", stacklevel=2)

    def _work(self) -> None:
        while True:
            job, done = self._jobs.get()
            if job is None:
                return
            try:
                with redirect_stdout(sys.stderr):  # results alone go to stdout
                    job()
                done.set_result(None)
            except BaseException as error:  # whatever a tracker does wrong, the fit goes on
                done.set_exception(error)
