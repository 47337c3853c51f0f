"""What is evaluated: the adapters of a run, or somebody's adapter folder."""

from pathlib import Path
from typing import Any

from ..core.errors import LoratomyError
from ..core.rendering.rendering import Rendering
from ..core.rows import Row
from ..core.runs.folder import RunFolder
from .measuring import subjects
from .sources import adapter_sums
from .study import Study


class OfRun:
    """A run as the source of adapters, sets and settings."""

    def __init__(self, root: Path) -> None:
        self.study = Study(RunFolder.open(root))
        self.defaults = self.study.asked
        self.adapters = {n: s for n, s in subjects(self.study.run).items() if s}
        self.rendering: Rendering | None = self.study.rendering

    def sums(self) -> dict[str, Any]:
        """What identifies the adapters."""
        return {n: adapter_sums(self._folder(s)) for n, s in self.adapters.items()}

    def _folder(self, stage: str) -> Path:
        folder = self.study.run.read(stage)
        return folder / "adapter" if stage.startswith("operations/") else folder

    def sources(self) -> dict[str, Path]:
        """Name -> folder of each adapter."""
        return {n: self._folder(s) for n, s in self.adapters.items()}

    def sets(self) -> dict[str, list[Row]]:
        """The run's own held-out sets."""
        return {name: self.study.rows(name) for name in ("poison_test", "clean_val")}

    def ignored(self) -> list[str]:
        """Modules left out on purpose."""
        return self.study.run.asked.get("ignore_modules", [])


class OfAdapter:
    """Somebody's adapter folder."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        from ..core.adapter.safety import check_folder

        check_folder(folder)
        if not options["base"]:
            raise LoratomyError(
                f"give the base model of the adapter {folder} with --base (a folder, a hub id, or "
                "wren); what the adapter says of its base is not followed"
            )
        if not options["data"]:
            raise LoratomyError("give the prompts to evaluate on with --data")
        self.folder = folder
        self.rendering: Rendering | None = None
        self._ignored: list[str] = sorted(options["ignore_module"] or [])
        self.defaults: dict[str, Any] = {
            "base": options["base"],
            "device": "auto",
            "dtype": "auto",
            "words": [],
            "placement": "",
            "task": "",
            "target": "",
            "seed": 0,
            "measure": {
                "scorers": None,
                "threshold": 0.8,
                "max_new_tokens": 128,
                "temperature": 0.0,
                "top_p": 1.0,
                "samples": 1,
                "batch_tokens": 8192,
                "embedder": "auto",
            },
        }

    def sums(self) -> dict[str, Any]:
        """What identifies the adapter."""
        return {"adapter": adapter_sums(self.folder)}

    def sources(self) -> dict[str, Path]:
        """Name -> folder."""
        return {"adapter": self.folder}

    def sets(self) -> dict[str, list[Row]]:
        """None of its own; --data was asked for."""
        return {"poison_test": [], "clean_val": []}

    def ignored(self) -> list[str]:
        """Modules left out on purpose."""
        return self._ignored
