"""What a study's verbs give back: the records of an analysis, and an operated adapter."""

import html
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.errors import LoratomyError
from .core.records.base import Record
from .core.records.results import Operation

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from .core.adapter.factors import Adapter
    from .core.model.variant import Treated
    from .study import Study


class Results(Mapping[str, Record]):
    """The records of an analysis, by name."""

    def __init__(self, analysis: str, records: Mapping[str, Any]) -> None:
        self.analysis = analysis
        self._records = dict(records)

    def __getitem__(self, name: str) -> Any:
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def only(self) -> Any:
        """The record of an analysis that has a single one.

        Raises:
            LoratomyError: it has several, which are named.
        """
        if len(self._records) != 1:
            raise LoratomyError(f"{self.analysis} has the records {', '.join(self._records)}")
        return next(iter(self._records.values()))

    def to_frame(self) -> "pd.DataFrame":
        """All records as one tidy table; of several, ``record`` says which."""
        import pandas as pd

        frames = {name: record.to_frame() for name, record in self._records.items()}
        if len(frames) == 1:
            return next(iter(frames.values()))
        parts = [frame.assign(record=name) for name, frame in frames.items()]
        whole = pd.concat(parts, ignore_index=True)
        return whole.reindex(columns=["record", *(c for c in whole.columns if c != "record")])

    def figures(self) -> list[Any]:
        """Everything that can be drawn of them."""
        return [figure for record in self._records.values() for figure in record.figures()]

    def plot(self) -> "go.Figure":
        """The first of their drawings.

        Raises:
            LoratomyError: nothing can be drawn of them.
        """
        if not (drawn := self.figures()):
            raise LoratomyError(f"nothing is drawn of {self.analysis}; see to_frame()")
        return drawn[0].plot

    def __repr__(self) -> str:
        return "\n".join(repr(record) for record in self._records.values())

    def _repr_html_(self) -> str:
        return "".join(record._repr_html_() for record in self._records.values())


@dataclass(frozen=True, eq=False)
class Operated:
    """An operation of a study: what it did, and the adapter that it leaves."""

    study: "Study"
    """Where it was made."""
    record: Operation
    """What was done."""

    @property
    def name(self) -> str:
        """Its name, as ``after=`` and tables have it."""
        return self.record.subject

    @property
    def state(self) -> "Treated":
        """What is run afterwards: adapter, replaced base weights, temperature."""
        return self.study.treated(f"operations/{self.name}")

    @property
    def adapter(self) -> "Adapter":
        """The new adapter.

        Raises:
            RunError: it leaves something else, or something besides.
        """
        return self.study.adapter(f"operations/{self.name}")

    def save(self, folder: Path | str) -> Path:
        """Write the new adapter as a plain PEFT folder; returns its path.

        Raises:
            RunError: the operation leaves more than an adapter.
            LoratomyError: the folder is there and holds something.
        """
        from .core.adapter.factors import write_adapter
        from .core.files.atomic import whole_folder
        from .core.files.outputs import check_folder_out, out_path
        from .core.rendering.recorded import write_rendering

        adapter, place = self.adapter, out_path(Path(folder))
        check_folder_out(place)
        if place.exists() and any(place.iterdir()):
            raise LoratomyError(f"{place} holds files already; give a new folder")
        with whole_folder(place) as work:
            write_adapter(adapter, work, base=self.study.settings.base)
            write_rendering(self.study.subject.renderer, work)
        return place

    def to_frame(self) -> "pd.DataFrame":
        """The directions that it kept and cut, one row each; else its figures as one row."""
        return self.record.to_frame()

    def figures(self) -> list[Any]:
        """Everything that can be drawn of it."""
        return self.record.figures()

    def plot(self) -> "go.Figure":
        """The first of its drawings."""
        return self.record.plot()

    def __repr__(self) -> str:
        return repr(self.record)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>"
