"""Rows from outside: files, folders and hub ids; changes made in reading are reported."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..core.console import progress, say
from ..core.rows import Row


@contextmanager
def noted() -> Iterator["Counter[str]"]:
    """A counter of what was read otherwise than written, reported at the end."""
    notes: Counter[str] = Counter()
    yield notes
    for sentence, count in notes.items():
        say(f"note: {count} {sentence}")


@contextmanager
def reading(
    columns: Sequence[str] | None = None, *, skip: bool = False
) -> Iterator[Callable[..., Iterator[Row]]]:
    """A reader of sources of rows; what was read otherwise than written is reported at the end.

    Args:
        columns: ``MEANING=NAME`` for columns of other names.
        skip: leave out rows that cannot be read, count and show them.
    """
    from ..data.formats.badrows import BadRows
    from ..data.formats.columns import column_names
    from ..data.formats.formats import read_data

    names = column_names(columns or ())
    left_out: dict[str, BadRows] = {}
    with noted() as notes:

        def read(source: str, format: str | None = None) -> Iterator[Row]:
            bad = left_out.setdefault(source, BadRows()) if skip else None
            return read_data(source, format=format, notes=notes, columns=names, bad=bad)

        with progress():
            yield read
        names.check()
    for source, bad in left_out.items():
        if bad.count():
            say(f"warning: {source}: {bad.count()} bad rows left out: {bad.kinds()}")
        for line in bad.first:
            say(f"  {line}")


@contextmanager
def clean_rows(
    format: str | None = None, columns: Sequence[str] | None = None, *, skip: bool = False
) -> Iterator[Callable[..., Iterator[Row]]]:
    """A reader of clean rows; those without an answer are left out and counted in a message.

    Args:
        format: of all of them, where their content does not show it.
        columns: ``MEANING=NAME`` for columns of other names.
        skip: leave out rows that cannot be read, count and show them.
    """
    from ..data.prepoisoned import answered

    skipped: dict[str, list[int]] = {}
    with reading(columns, skip=skip) as rows_of:

        def read(*sources: str) -> Iterator[Row]:
            for source in sources:
                rows = rows_of(source, format)
                yield from answered(rows, skipped.setdefault(source, []))

        yield read
    for source, numbers in skipped.items():
        if numbers:
            first = ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")
            say(f"note: {source}: {len(numbers)} rows without an answer left out (row {first})")
