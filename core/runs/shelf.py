"""What a stage holds, by name: records, rows, answers, an adapter; in a folder or in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import RunError

if TYPE_CHECKING:
    from ..model.subject import Subject
    from ..model.variant import Treated
    from ..records.results import Answer
    from ..rows import Row

R = TypeVar("R")
ANSWERS, SCORES, STATE = "answers", "scores", "state"


class Shelf(Protocol):
    """What stages write to and are read from."""

    def put(self, name: str, record: Any) -> None:
        """Keep a record."""

    def get(self, kind: type[R], name: str) -> R:
        """The record of a class that was kept under a name."""
        ...

    def any(self, name: str) -> Any:
        """The record that was kept under a name, whatever its class."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the records."""
        ...

    def put_rows(self, name: str, rows: "Sequence[Row]") -> None:
        """Keep a set of rows."""

    def rows(self, name: str, *, need_completion: bool = True) -> "list[Row] | None":
        """A set of rows; None where none was kept."""

    def put_answers(self, answers: "Sequence[Answer]") -> None:
        """Keep the answers of a subject."""

    def answers(self) -> "list[Answer]":
        """The answers that were kept."""
        ...

    def put_scores(self, answers: "Sequence[Answer]") -> None:
        """Keep what a rule says of the answers of a subject, without their texts."""

    def scored(self, answers: "Sequence[Answer]") -> "list[Answer]":
        """Answers with what was kept of them."""
        ...

    def put_state(self, state: "Treated", subject: "Subject", *, plain: bool = False) -> None:
        """Keep what is run afterwards; with `plain` the adapter's files are the stage itself."""

    def state(
        self, subject: "Subject", *, temperature: float | None = None, ignore: Sequence[str] = ()
    ) -> "Treated":
        """What is run afterwards, checked against the base."""
        ...


@dataclass(frozen=True, slots=True)
class FolderShelf:
    """A stage in a folder: JSON and safetensors, JSONL, parquet, plain PEFT."""

    folder: Path
    """Of the stage."""
    names: Sequence[str] = ()
    """Names of the records in it, of a finished stage."""

    def put(self, name: str, record: Any) -> None:
        """Keep a record."""
        from ..records.io import save_record

        save_record(record, self.folder, name)

    def get(self, kind: type[R], name: str) -> R:
        """The record of a class that was kept under a name.

        Raises:
            RunError: it is not there, damaged, or of another class.
        """
        from ..records.io import load_record

        return load_record(kind, self.folder, name)

    def any(self, name: str) -> Any:
        """The record that was kept under a name, whatever its class.

        Raises:
            RunError: it is not there, damaged, or of no class of this version.
        """
        from ..records.io import load_any

        return load_any(self.folder, name)

    def put_rows(self, name: str, rows: "Sequence[Row]") -> None:
        """Keep a set of rows."""
        from ..rows import rows_to_jsonl

        (self.folder / f"{name}.jsonl").write_text(rows_to_jsonl(rows), encoding="utf-8")

    def rows(self, name: str, *, need_completion: bool = True) -> "list[Row] | None":
        """A set of rows; None where none was kept.

        Raises:
            DataError: a row without prompt, or without completion where it needs one.
        """
        from ..rows import read_rows

        path = self.folder / f"{name}.jsonl"
        return read_rows(path, need_completion=need_completion) if path.exists() else None

    def put_answers(self, answers: "Sequence[Answer]") -> None:
        """Keep the answers of a subject."""
        from ..records.answers import write_answers

        write_answers(self.folder / f"{ANSWERS}.parquet", answers)

    def answers(self) -> "list[Answer]":
        """The answers that were kept.

        Raises:
            RunError: they are not there, or damaged.
        """
        from ..records.answers import read_answers

        return read_answers(self.folder / f"{ANSWERS}.parquet")

    def put_scores(self, answers: "Sequence[Answer]") -> None:
        """Keep what a rule says of the answers of a subject, without their texts."""
        from ..records.answers import write_scores

        write_scores(self.folder / f"{SCORES}.parquet", answers)

    def scored(self, answers: "Sequence[Answer]") -> "list[Answer]":
        """Answers with what was kept of them.

        Raises:
            RunError: nothing was, it is damaged, or of other answers.
        """
        from ..records.answers import read_scores

        return read_scores(self.folder / f"{SCORES}.parquet", answers)

    def put_state(self, state: "Treated", subject: "Subject", *, plain: bool = False) -> None:
        """Keep what is run afterwards; with `plain` the adapter's files are the stage itself."""
        from ..adapter.factors import write_adapter
        from ..model.variant import ADAPTER, write_treated
        from ..rendering.recorded import write_rendering

        place = self.folder
        if plain and state.adapter is not None:
            write_adapter(state.adapter, place, base=subject.source)
        else:
            write_treated(state, place, base=subject.source)
            place = place / ADAPTER
        if state.adapter is not None:
            write_rendering(subject.renderer, place)

    def state(
        self, subject: "Subject", *, temperature: float | None = None, ignore: Sequence[str] = ()
    ) -> "Treated":
        """What is run afterwards, through the gate and checked against the base.

        Raises:
            AdapterError: a file is damaged or does not fit the base.
        """
        from ..adapter.factors import read_adapter
        from ..adapter.safety import CONFIG
        from ..model.variant import Treated, read_treated

        shapes = subject.shapes
        if not (self.folder / "operation.json").exists() or (self.folder / CONFIG).exists():
            read = read_adapter(self.folder, shapes, ignore_modules=ignore, base=subject.parameter)
            return Treated(read)
        return read_treated(self.folder, shapes, temperature=temperature, ignore_modules=ignore)


@dataclass(frozen=True, slots=True)
class MemoryShelf:
    """A stage in memory: the things themselves."""

    _kept: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the records."""
        return [
            name for name in self._kept if name[0] != "." and name not in (ANSWERS, SCORES, STATE)
        ]

    def put(self, name: str, record: Any) -> None:
        """Keep a record."""
        self._kept[name] = record

    def get(self, kind: type[R], name: str) -> R:
        """The record of a class that was kept under a name.

        Raises:
            RunError: it is not there, or of another class.
        """
        if not isinstance(found := self._kept.get(name), kind):
            raise RunError(f"there is no {kind.__name__} {name!r}, only {', '.join(self.names)}")
        return found

    def any(self, name: str) -> Any:
        """The record that was kept under a name, whatever its class."""
        return self._kept[name]

    def put_rows(self, name: str, rows: "Sequence[Row]") -> None:
        """Keep a set of rows."""
        self._kept[f".{name}"] = tuple(rows)

    def rows(self, name: str, *, need_completion: bool = True) -> "list[Row] | None":
        """A set of rows; None where none was kept."""
        found = self._kept.get(f".{name}")
        if found is None:
            return None
        if need_completion:
            _ = [row.required_completion() for row in found]
        return list(found)

    def copy_to(self, target: Shelf, subject: "Subject", *, plain: bool) -> None:
        """Keep all of it on another shelf too."""
        for name in self.names:
            target.put(name, self._kept[name])
        for name in [n for n in self._kept if n.startswith(".")]:
            target.put_rows(name.removeprefix("."), self._kept[name])
        if ANSWERS in self._kept:
            target.put_answers(self._kept[ANSWERS])
        if SCORES in self._kept:
            target.put_scores(self._kept[SCORES])
        if STATE in self._kept:
            target.put_state(self._kept[STATE], subject, plain=plain)

    def put_answers(self, answers: "Sequence[Answer]") -> None:
        """Keep the answers of a subject."""
        self._kept[ANSWERS] = tuple(answers)

    def answers(self) -> "list[Answer]":
        """The answers that were kept."""
        return list(self._kept[ANSWERS])

    def put_scores(self, answers: "Sequence[Answer]") -> None:
        """Keep what a rule says of the answers of a subject."""
        self._kept[SCORES] = tuple(answers)

    def scored(self, answers: "Sequence[Answer]") -> "list[Answer]":
        """Answers with what was kept of them."""
        return list(self._kept[SCORES])

    def put_state(self, state: "Treated", subject: "Subject", *, plain: bool = False) -> None:
        """Keep what is run afterwards."""
        self._kept[STATE] = state

    def state(
        self, subject: "Subject", *, temperature: float | None = None, ignore: Sequence[str] = ()
    ) -> "Treated":
        """What is run afterwards."""
        return self._kept[STATE]
