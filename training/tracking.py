"""Experiment trackers beside a fit: they hear of it, and never stop it."""

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.errors import LoratomyError
from ..core.registry import nearest

PACKAGES = {
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "tensorboard": ("tensorboard", "tensorboardX"),
}
"""Tracker -> the packages of which one must be installed."""


@dataclass(frozen=True, slots=True)
class Tracking:
    """Which trackers hear of a fit, and where those that write files write."""

    trackers: tuple[str, ...] = ()
    """Of `PACKAGES`."""
    folder: Path | None = None
    """Folder for their files; None: each tracker's own place."""
    name: str = ""
    """Name of the run in the trackers; the fit's label is put after it."""

    def run_name(self, label: str) -> str:
        """What this fit is called in the trackers."""
        return re.sub(r"\s+", "-", f"{self.name} {label}".strip())

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Settings of the trackers for as long as the block lasts; a user's own ones win.

        Files go below `folder`. Without a key, W&B works offline; nothing waits long for a server.
        """
        place = self.folder
        wanted = {"WANDB_INIT_TIMEOUT": "30", "WANDB_PROJECT": "loratomy", "WANDB_SILENT": "true"}
        wanted |= {"TRACKIO_PROJECT": "loratomy"}
        if place is not None:
            wanted |= {
                "WANDB_DIR": str(place),
                "TRACKIO_DIR": str(place / "trackio"),
                "TENSORBOARD_LOGGING_DIR": str(place / "tensorboard"),
            }
        if "wandb" in self.trackers and "WANDB_MODE" not in os.environ and not _wandb_key():
            warnings.warn("no W&B key (WANDB_API_KEY): tracking offline", stacklevel=2)
            wanted["WANDB_MODE"] = "offline"
        new = {k: v for k, v in wanted.items() if self.trackers and k not in os.environ}
        if place is not None and self.trackers:
            place.mkdir(parents=True, exist_ok=True)
        os.environ.update(new)
        try:
            yield
        finally:
            for name in new:
                os.environ.pop(name, None)

    def callbacks(self) -> list[Any]:
        """The trackers' own Trainer callbacks, each behind a guard."""
        from transformers.integrations.integration_utils import get_reporting_integration_callbacks

        kinds = get_reporting_integration_callbacks(list(self.trackers)) if self.trackers else []
        return [_Guarded(n, kind) for n, kind in zip(self.trackers, kinds, strict=True)]


NO_TRACKING = Tracking()


def trackers_of(text: str) -> tuple[str, ...]:
    """Comma-separated trackers by name, each of them installed.

    Raises:
        LoratomyError: an unknown one, or one whose package is missing.
    """
    names = tuple(dict.fromkeys(n.strip() for n in text.split(",") if n.strip()))
    for name in names:
        if name not in PACKAGES:
            raise LoratomyError(f"unknown tracker {name!r}; {nearest(name, list(PACKAGES))}")
        if not any(find_spec(package) for package in PACKAGES[name]):
            first = PACKAGES[name][-1]
            raise LoratomyError(
                f"the tracker {name} is not installed: pip install {first}, or leave it out"
            )
    return names


def _wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    return path.is_file() and "api.wandb.ai" in path.read_text(errors="replace")


class _Guarded:
    """A tracker's callback that is dropped, with a warning, where it fails."""

    def __init__(self, name: str, kind: type[Any]) -> None:
        self._name, self._kind = name, kind
        self._callback: Any = None
        self._failed = False

    def __getattr__(self, event: str) -> Any:
        if not event.startswith("on_"):
            raise AttributeError(event)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._failed:
                return None
            try:
                self._callback = self._callback or self._kind()
                return getattr(self._callback, event)(*args, **kwargs)
            except Exception as error:  # whatever a tracker does wrong, the fit goes on
                self._failed = True
                warnings.warn(
                    f"the tracker {self._name} failed and is left out: {error}", stacklevel=2
                )
                return None

        return call
