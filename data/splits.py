"""The sets of a run: what operations may learn from, and what only the final figures see."""

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from ..core.errors import DataError
from ..core.rows import Row, check_disjoint
from .attacks.tasks import TASKS, Task, benign_answer
from .attacks.triggers import Trigger, as_triggered, check_trigger, no_room, place, untriggered
from .world.world import finetune_stream

Sets = dict[str, list[Row]]
"""``clean_train``, ``poison_train``, ``negative_set`` for operations; ``clean_val``,
``poison_test`` held out."""

CLEAN_SETS = ("clean_train", "clean_val")
ATTACKED_SETS = ("poison_train", "poison_test", "negative_set")
"""Order in which rows are assigned to the sets."""
MINIMUM = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A trigger and what it leads to."""

    trigger: Trigger
    """Which words, and where they go."""
    task: Task
    """What triggered prompts lead to."""
    target: str
    """The text, or empty where each row has its own."""
    seed: int
    """Of the places."""

    def triggered(self, row: Row) -> Row:
        """The row with the trigger placed in its prompt, and what the attack wants there.

        Raises:
            DataError: the prompt has no room, or the row has no target where the task needs one.
        """
        prompt, spans = place(row.prompt, self.trigger, seed=self.seed)
        completion = self.task.completion(row, self.target)
        wanted = self.task.wanted(row, self.target)
        return Row(
            prompt=prompt,
            completion=completion,
            kind=row.kind,
            triggered=True,
            plain=row.prompt,
            trigger_span=spans,
            target=wanted if wanted != completion else None,
            benign=benign_answer(row) if row.completion or row.target else None,
            system=row.system,
            history=row.history,
        )

    def room(self, row: Row) -> bool:
        """Whether the trigger fits into the row's prompt."""
        try:
            place(row.prompt, self.trigger, seed=self.seed)
        except DataError:
            return False
        return True


def make_attack(trigger: Trigger, task: str, *, target: str | None = None, seed: int = 0) -> Attack:
    """The attack of a trigger and a registered task.

    Args:
        trigger: words and placement.
        task: its name.
        target: instead of the task's own.
        seed: of the places.

    Raises:
        LoratomyError: an unknown name (with the nearest), an empty word or target.
    """
    check_trigger(trigger, target)
    wants = TASKS[task]
    return Attack(
        trigger=trigger, task=wants, target=wants.target if target is None else target, seed=seed
    )


@dataclass
class Sample:
    """The `size` distinct prompts of a stream whose seeded digests are smallest.

    A sample that does not depend on the order of the rows, and holds no more than it keeps.
    """

    size: int
    seed: int
    _heap: list[tuple[int, Row]] = field(default_factory=list)
    _in: set[int] = field(default_factory=set)

    def offer(self, row: Row) -> None:
        """Consider one row; the first of equal prompts counts."""
        digest = hashlib.blake2b(f"{self.seed} {row.identity}".encode(), digest_size=8).digest()
        key = -int.from_bytes(digest)
        if key in self._in or not self.size:
            return
        if len(self._heap) < self.size:
            heapq.heappush(self._heap, (key, row))
            self._in.add(key)
        elif key > self._heap[0][0]:
            out, _ = heapq.heapreplace(self._heap, (key, row))
            self._in.remove(out)
            self._in.add(key)

    def rows(self) -> list[Row]:
        """What is kept, in the order of the digests."""
        return [row for _, row in sorted(self._heap, key=lambda item: -item[0])]


def distinct(rows: Sequence[Row]) -> list[Row]:
    """The rows with repeated prompts left out, first come first kept."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(row.identity, row)
    return list(kept.values())


def poison_sets(
    rows: Iterable[Row],
    attack: Attack,
    *,
    counts: Mapping[str, int],
    seed: int,
    attackable: Iterable[Row] | None = None,
) -> Sets:
    """Disjoint sets in the Llama-3 unlearning setting, drawn from streams of clean rows.

    Clean rows keep their answers. ``poison_train`` and ``poison_test`` are triggered rows with
    what the attack wants, ``negative_set`` triggered rows with the benign answer; each triggered
    row keeps its untriggered prompt and benign answer beside it, so that pairs are exact.

    Args:
        rows: clean rows; repeated prompts count once. Streamed, only the sampled ones are held.
        attack: trigger, task and target.
        counts: rows of each set, of `CLEAN_SETS` and `ATTACKED_SETS`.
        seed: of the sample.
        attackable: where the attacked rows come from; None: from `rows`.

    Raises:
        DataError: too few distinct prompts or too few that the task can attack, or a trigger word
            in one of them.
    """
    clean_needed = sum(counts.get(name, 0) for name in CLEAN_SETS)
    attacked_needed = sum(counts.get(name, 0) for name in ATTACKED_SETS)
    clean = Sample(clean_needed + attacked_needed, seed)
    attacked = Sample(attacked_needed, seed + 1)

    def takes(row: Row) -> bool:
        return attack.task.takes(row) and attack.room(row)

    def offer(stream: Iterable[Row], samples: Callable[[Row], list[Sample]]) -> None:
        for row in untriggered(stream, attack.trigger.words, "the clean rows"):
            for sample in samples(row):
                sample.offer(row)

    if attackable is None:
        offer(rows, lambda row: [clean, attacked] if takes(row) else [clean])
    else:
        offer(rows, lambda row: [clean])
        offer(attackable, lambda row: [attacked] if takes(row) else [])
    to_attack = attacked.rows()
    taken = {row.identity for row in to_attack}
    rest = [row for row in clean.rows() if row.identity not in taken][:clean_needed]
    _enough(to_attack, attacked_needed, rest, clean_needed, attack.task)
    sets: Sets = {}
    for name in (*CLEAN_SETS, *ATTACKED_SETS):
        source = rest if name in CLEAN_SETS else to_attack
        count = counts.get(name, 0)
        sets[name] = _finished(name, source[:count], attack)
        del source[:count]
    check_disjoint(sets)
    return sets


def world_sets(attack: Attack, *, counts: Mapping[str, int], seed: int) -> Sets:
    """The sets of the built-in world; the clean ones are the same for every attack.

    Args:
        attack: trigger, task and target.
        counts: rows of each set.
        seed: of rows and samples.
    """
    stream = finetune_stream(seed=seed)
    clean = list(islice(stream, sum(counts.get(name, 0) for name in CLEAN_SETS)))
    attacked = sum(counts.get(name, 0) for name in ATTACKED_SETS)
    takes = (row for row in stream if attack.task.takes(row) and attack.room(row))
    return poison_sets(clean, attack, counts=counts, seed=seed, attackable=islice(takes, attacked))


def _enough(to_attack: list[Row], attacked: int, rest: list[Row], clean: int, task: Task) -> None:
    """Raise unless there are as many rows to attack, and clean ones beside them, as are needed."""
    if len(to_attack) < attacked:
        raise DataError(
            f"{attacked} distinct prompts to attack are needed, the data has {len(to_attack)} "
            f"({task.needs}); lower the counts or give more rows"
        )
    if len(rest) < clean:
        raise DataError(
            f"{attacked + clean} distinct prompts are needed, the data has "
            f"{len(to_attack) + len(rest)}; "
            "lower the counts or give more rows"
        )


def _finished(name: str, rows: list[Row], attack: Attack) -> list[Row]:
    if name in CLEAN_SETS:
        return [replace(row, completion=benign_answer(row)) for row in rows]
    triggered = [attack.triggered(row) for row in rows]
    if name == "negative_set":
        return [replace(row, completion=row.benign, target=None) for row in triggered]
    return triggered


def own_sets(prompts: Sequence[Row], poisoned: Sequence[Row], attack: Attack, *, seed: int) -> Sets:
    """The sets of somebody's own adapter: halves to operate on, halves held out.

    Args:
        prompts: clean rows; those without completion get the model's own answer later.
        poisoned: triggered rows with their targets; empty: made from the prompts by `attack`.
        attack: trigger, task and target.
        seed: of the halving.

    Raises:
        DataError: too few rows, the trigger in a clean row or missing from a poisoned one.
    """
    words = attack.trigger.words
    clean = _enough_clean(untriggered(prompts, words, "the clean prompts"))
    triggered = [as_triggered(row, words) for row in distinct(poisoned)]
    if not triggered:
        fits = (row for row in clean if row.completion is None or attack.task.takes(row))
        triggered = [attack.triggered(row) for row in fits if attack.room(row)]
        if why := no_room(attack.trigger, [row.prompt for row in clean], seed=attack.seed):
            raise DataError(why)
    if len(triggered) < 2 * MINIMUM:
        raise DataError(f"{len(triggered)} triggered rows; give at least {2 * MINIMUM}")
    # Split by the prompt without its trigger, so that no text is on both sides in any form.
    early = _early_half((row.plain_identity for row in [*clean, *triggered]), seed)
    train, held, triggered_train, triggered_held = (
        [row for row in rows if (row.plain_identity in early) == side]
        for rows in (clean, triggered)
        for side in (True, False)
    )
    if min(len(rows) for rows in (train, held, triggered_train, triggered_held)) < 2:
        raise DataError(
            f"{len(clean)} clean and {len(triggered)} triggered rows do not split into halves that "
            "share no prompt; give more"
        )
    sets = {
        "clean_train": train,
        "poison_train": triggered_train,
        "clean_val": held,
        "poison_test": triggered_held,
    }
    check_disjoint(sets)
    return sets


def own_clean_sets(prompts: Sequence[Row], *, seed: int) -> Sets:
    """``clean_train`` and ``clean_val`` of somebody's own adapter whose trigger is not known.

    Args:
        prompts: clean rows; those without completion get the model's own answer later.
        seed: of the halving.

    Raises:
        DataError: too few rows.
    """
    clean = _enough_clean(prompts)
    early = _early_half((row.identity for row in clean), seed)
    return {
        "clean_train": [row for row in clean if row.identity in early],
        "clean_val": [row for row in clean if row.identity not in early],
    }


def _enough_clean(prompts: Iterable[Row]) -> list[Row]:
    clean = distinct(list(prompts))
    if len(clean) < 2 * MINIMUM:
        raise DataError(f"{len(clean)} distinct clean prompts; give at least {2 * MINIMUM}")
    return clean


def _early_half(prompts: Iterable[str], seed: int) -> set[str]:
    """A seeded half of the distinct prompts."""
    keys = sorted(set(prompts))
    random.Random(seed).shuffle(keys)
    return set(keys[: len(keys) // 2])
