"""What only shows between rows: repeated, shared and unpaired prompts, by eight-byte digests."""

from array import array
from collections.abc import Sequence

import numpy as np

from ...core.rows import Row
from .findings import SHOWN, Defects
from .survey import View, digest

_TRIGGERED, _PAIRED = 1, 2


class Digests:
    """The rows of a file as 33 bytes each."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._prompts, self._plain = array("Q"), array("Q")
        self._completions, self._flags = array("Q"), array("B")
        self._numbers = array("Q")

    def add(self, row: Row, number: int) -> None:
        """Take in the next row of the file, with its number there."""
        self._numbers.append(number)
        triggered = self.view.triggered(row)
        self._prompts.append(digest(row.prompt))
        self._plain.append(digest(" ".join(self.view.plain(row).split())))
        self._completions.append(digest(row.completion or ""))
        paired = row.plain is not None and row.benign is not None
        self._flags.append(_TRIGGERED * triggered + _PAIRED * paired)

    def number(self, place: int | np.integer) -> int:
        """The row number of a place, from 1; bad rows have numbers and no places."""
        return self._numbers[int(place)]

    @property
    def prompts(self) -> np.ndarray:
        """Of the prompts as they are, ``[row]``."""
        return np.frombuffer(self._prompts, dtype=np.uint64)

    @property
    def plain(self) -> np.ndarray:
        """Of the prompts without trigger, white space as single spaces, ``[row]``."""
        return np.frombuffer(self._plain, dtype=np.uint64)

    @property
    def completions(self) -> np.ndarray:
        """Of the completions, ``[row]``."""
        return np.frombuffer(self._completions, dtype=np.uint64)

    @property
    def clean(self) -> np.ndarray:
        """Which rows are not triggered, ``[row]``."""
        return np.frombuffer(self._flags, dtype=np.uint8) & _TRIGGERED == 0

    @property
    def needs_pair(self) -> np.ndarray:
        """Which rows are triggered and do not carry their untriggered form, ``[row]``."""
        return np.frombuffer(self._flags, dtype=np.uint8) == _TRIGGERED


def _first(file: Digests, places: np.ndarray) -> list[int]:
    return [file.number(place) for place in np.sort(places)[:SHOWN]]


def repeated(file: Digests, found: Defects) -> None:
    """Prompts that a file holds more than once."""
    order = np.argsort(file.prompts, kind="stable")
    prompts, completions = file.prompts[order], file.completions[order]
    again = prompts[1:] == prompts[:-1]
    other = again & (completions[1:] != completions[:-1])
    name = file.view.name
    for level, check, which, why in (
        ("error", "contradiction", other, "another completion: the rows contradict each other"),
        ("warning", "duplicate", again & ~other, "the same completion: it counts twice"),
    ):
        if which.any():
            later, earlier = order[1:][which], order[:-1][which]
            first = int(np.argmin(later))
            what = f"row {file.number(later[first])} has the prompt of row "
            what += f"{file.number(earlier[first])} with {why}"
            found.add_all(level, check, name, _first(file, later), len(later), what)


def shared(files: Sequence[Digests], found: Defects) -> None:
    """Prompts of held-out files that are in a training file too."""
    for held in (file for file in files if file.view.held_out):
        for train in (file for file in files if not file.view.held_out):
            places = np.flatnonzero(np.isin(held.plain, train.plain))
            if not len(places):
                continue
            same = np.isin(held.prompts[places], train.prompts).sum()
            twin = train.number(np.flatnonzero(train.plain == held.plain[places[0]])[0])
            what = (
                f"the prompt of row {held.number(places[0])} is that of row {twin} of the training "
                f"file {train.view.name} ({same} prompts word for word, {len(places) - same} but "
                "for trigger or spacing): held-out figures would be of what was trained on"
            )
            numbers = _first(held, places)
            found.add_all("error", "train-test-overlap", held.view.name, numbers, len(places), what)


def unpaired(files: Sequence[Digests], found: Defects) -> None:
    """Poisoned training rows whose untriggered prompt no clean training row has."""
    training = [file for file in files if not file.view.held_out]
    clean = [file.plain[file.clean] for file in training if file.clean.any()]
    if not clean:
        return
    known = np.concatenate(clean)
    for file in training:
        if file.view.negative or not file.needs_pair.any():
            continue
        alone = np.flatnonzero(file.needs_pair & ~np.isin(file.plain, known))
        if len(alone):
            what = (
                f"{len(alone)} of {int(file.needs_pair.sum())} triggered prompts have no clean row "
                "of the same prompt: nothing shows the model what they lead to untriggered"
            )
            name = file.view.name
            found.add_all("warning", "unpaired", name, _first(file, alone), len(alone), what)
