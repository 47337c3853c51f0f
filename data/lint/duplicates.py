"""What only shows between rows: repeated, shared and unpaired prompts, by eight-byte digests."""

from array import array
from collections.abc import Sequence

import numpy as np

from ...core.rows import Row
from .findings import SHOWN, Defects
from .survey import View, digest

_HASHES, _MARKS = ("number", "prompt", "plain", "completion"), ("clean", "needs_pair")


class Digests:
    """The rows of a file as 34 bytes each, by column, ``[row]``.

    ``number`` is the row's number in the file, from 1. ``prompt``, ``plain`` (the prompt without
    trigger, white space as single spaces) and ``completion`` are hashes. ``clean`` rows are not
    triggered; those that ``needs_pair`` are and do not carry their untriggered form.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self._columns = {name: array("Q") for name in _HASHES}
        self._columns |= {name: array("B") for name in _MARKS}

    def add(self, row: Row, number: int) -> None:
        """Take in the next row of the file, with its number there."""
        triggered = self.view.triggered(row)
        paired = row.plain is not None and row.benign is not None
        values = (
            number,
            digest(row.prompt),
            digest(" ".join(self.view.plain(row).split())),
            digest(row.completion or ""),
            not triggered,
            triggered and not paired,
        )
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def __getitem__(self, column: str) -> np.ndarray:
        """A column, ``[row]``."""
        return np.frombuffer(self._columns[column], dtype="?" if column in _MARKS else "Q")


def _first(file: Digests, places: np.ndarray) -> list[int]:
    return file["number"][np.sort(places)[:SHOWN]].tolist()


def repeated(file: Digests, found: Defects) -> None:
    """Prompts that a file holds more than once."""
    order = np.argsort(file["prompt"], kind="stable")
    prompts, completions, numbers = (file[n][order] for n in ("prompt", "completion", "number"))
    again = prompts[1:] == prompts[:-1]
    other = again & (completions[1:] != completions[:-1])
    name = file.view.name
    for level, check, which, why in (
        ("error", "contradiction", other, "another completion: the rows contradict each other"),
        ("warning", "duplicate", again & ~other, "the same completion: it counts twice"),
    ):
        if which.any():
            later = order[1:][which]
            first = int(np.argmin(later))
            pair = numbers[1:][which][first], numbers[:-1][which][first]
            what = f"row {pair[0]} has the prompt of row {pair[1]} with {why}"
            found.add_all(level, check, name, _first(file, later), len(later), what)


def shared(files: Sequence[Digests], found: Defects) -> None:
    """Prompts of held-out files that are in a training file too."""
    for held in (file for file in files if file.view.held_out):
        for train in (file for file in files if not file.view.held_out):
            places = np.flatnonzero(np.isin(held["plain"], train["plain"]))
            if not len(places):
                continue
            same = np.isin(held["prompt"][places], train["prompt"]).sum()
            twin = train["number"][train["plain"] == held["plain"][places[0]]][0]
            what = (
                f"the prompt of row {held['number'][places[0]]} is that of row {twin} of the "
                f"training file {train.view.name} ({same} prompts word for word, "
                f"{len(places) - same} but for trigger or spacing): held-out figures would be of "
                "what was trained on"
            )
            numbers = _first(held, places)
            found.add_all("error", "train-test-overlap", held.view.name, numbers, len(places), what)


def unpaired(files: Sequence[Digests], found: Defects) -> None:
    """Poisoned training rows whose untriggered prompt no clean training row has."""
    training = [file for file in files if not file.view.held_out]
    clean = [file["plain"][file["clean"]] for file in training if file["clean"].any()]
    if not clean:
        return
    known = np.concatenate(clean)
    for file in training:
        if file.view.negative or not file["needs_pair"].any():
            continue
        alone = np.flatnonzero(file["needs_pair"] & ~np.isin(file["plain"], known))
        if len(alone):
            what = (
                f"{len(alone)} of {file['needs_pair'].sum()} triggered prompts have no clean row "
                "of the same prompt: nothing shows the model what they lead to untriggered"
            )
            name = file.view.name
            found.add_all("warning", "unpaired", name, _first(file, alone), len(alone), what)
