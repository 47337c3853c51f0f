"""What is evaluated: the adapters of a run, or somebody's adapter folder."""

from pathlib import Path

from ..core.errors import LoratomyError
from ..core.rendering.rendering import Rendering
from ..core.rows import Row
from ..core.runs.folder import RunFolder
from ..settings import Settings
from ..study import Study
from ..verbs.measuring import subjects
from .adapters import adapter_sums
from .bases import A_BASE


class OfRun:
    """A run as the source of adapters, sets and settings."""

    def __init__(self, root: Path) -> None:
        self.run = RunFolder.open(root)
        self.study = Study(self.run)
        self.defaults = self.study.settings
        self.adapters = {n: s for n, s in subjects(self.run).items() if s}
        self.rendering: Rendering | None = self.study.rendering

    def sums(self) -> dict[str, dict[str, str]]:
        """What identifies the adapters."""
        return {n: adapter_sums(self._folder(s)) for n, s in self.adapters.items()}

    def _folder(self, stage: str) -> Path:
        folder = self.run.read(stage)
        return folder / "adapter" if stage.startswith("operations/") else folder

    def sources(self) -> dict[str, Path]:
        """Name -> folder of each adapter."""
        return {n: self._folder(s) for n, s in self.adapters.items()}

    def sets(self) -> dict[str, list[Row]]:
        """The run's own held-out sets."""
        return {name: self.study.rows(name) for name in ("poison_test", "clean_val")}

    def ignored(self) -> list[str]:
        """Modules left out on purpose."""
        return self.study.run.request.get("ignore_modules", [])


class OfAdapter:
    """Somebody's adapter folder.

    Args:
        folder: where it is.
        base: its base model.
        data: the prompts to evaluate on.
        ignored: modules to leave out.

    Raises:
        LoratomyError: base or prompts are not given, or the folder is no adapter.
    """

    def __init__(self, folder: Path, *, base: str, data: str, ignored: list[str]) -> None:
        from ..core.adapter.safety import check_folder

        check_folder(folder)
        if not base:
            raise LoratomyError(
                f"give the base model of the adapter {folder} with --base ({A_BASE}); "
                "what the adapter says of its base is not followed"
            )
        if not data:
            raise LoratomyError("give the prompts to evaluate on with --data")
        self.folder = folder
        self.rendering: Rendering | None = None
        self._ignored = ignored
        self.defaults = Settings(base=base, task="")

    def sums(self) -> dict[str, dict[str, str]]:
        """What identifies the adapter."""
        return {"adapter": adapter_sums(self.folder)}

    def sources(self) -> dict[str, Path]:
        """Name -> folder."""
        return {"adapter": self.folder}

    def sets(self) -> dict[str, list[Row]]:
        """None of its own; --data is required."""
        return {"poison_test": [], "clean_val": []}

    def ignored(self) -> list[str]:
        """Modules left out on purpose."""
        return self._ignored
