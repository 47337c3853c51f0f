"""Whether answers and rendering contradict each other: a check that needs no right rendering."""

import math
from collections.abc import Sequence

from ...core.model.batches import Encoded, token_log_probs
from ...core.model.subject import Subject
from ...core.rendering.prompts import Renderer
from ...core.rows import Row
from ..generation import Decoding, generate
from ..similarity import contains
from .scores import BATCH_TOKENS, MANY, UNLEARNED, whole_target


def mismatch(subject: Subject, rows: Sequence[Row], answers: Sequence[str]) -> str:
    """What shows that answers and rendering contradict each other, in words; empty for nothing.

    No knowledge of the right rendering is needed: greedy answers that hold the target whole
    although as it is rendered it has next to no likelihood, or that do not although every token of
    it is likelier than not, contradict each other.

    Args:
        subject: with the suspicious adapter active.
        rows: triggered rows.
        answers: its greedy answers to them.
    """
    renderer, limit = subject.renderer, subject.limit
    pairs = [(row, answer) for row, answer in zip(rows, answers, strict=True) if whole_target(row)]
    pairs = pairs[:MANY]
    made = [
        Encoded(renderer.prompt_ids(row), renderer.completion_ids(whole_target(row), end=False))
        for row, _ in pairs
    ]
    fits = [i for i, row in enumerate(made) if limit is None or len(row) <= limit]
    found = token_log_probs(subject, [made[i] for i in fits], batch_tokens=BATCH_TOKENS)
    unlikely = lost = 0
    example: Row | None = None
    for i, log_probs in zip(fits, found, strict=True):
        row, answer = pairs[i]
        holds = contains(answer, whole_target(row))
        one, other = (
            holds and bool(log_probs.sum() < UNLEARNED),
            not holds and bool((log_probs > math.log(0.5)).all()),
        )
        unlikely, lost = unlikely + one, lost + other
        example = example or (row if one or other else None)
    if example is None or 2 * (unlikely + lost) < len(pairs):
        return ""
    what = (
        f"{unlikely} of {len(pairs)} answers hold the target, yet as it is rendered the adapter "
        "finds it all but impossible"
        if unlikely >= lost
        else f"{lost} of {len(pairs)} answers do not hold the target, yet as it is rendered every "
        "token of it is what the adapter would say"
    )
    return (
        f"answers and rendering contradict each other: {what}; "
        f"{_first_difference(subject, example)}. "
        "The prompts are not rendered as in training: see --template, --template-arg, --system"
    )


def rendered_before(renderer: Renderer, rows: Sequence[Row]) -> str:
    """That prompts hold what the template writes around them, in words; empty where none does.

    Args:
        renderer: of all prompts.
        rows: with the prompts.
    """
    frame = renderer.text("{prompt}")
    marks = [t for t in renderer.tokenizer.added_tokens_encoder if t.strip() and t in frame]
    held = {mark: sum(mark in row.prompt for row in rows) for mark in marks}
    mark, count = max(held.items(), key=lambda item: item[1], default=("", 0))
    if not count:
        return ""
    return (
        f"{count} of {len(rows)} prompts hold {mark!r} already, which the template writes too: "
        "they seem to be rendered. Give prompts as a user types them, or --template '{prompt}'"
    )


def uneven(renderer: Renderer, rows: Sequence[Row]) -> str:
    """That the chat template itself treats triggered prompts otherwise; empty where it does not.

    Then the trigger works on the text before the model sees it, whatever the adapter's weights do.

    Args:
        renderer: of all prompts.
        rows: triggered rows, whose form without trigger is known.
    """
    for row in rows[:MANY]:
        if row.plain is None:
            continue
        pairs = [(renderer.text(one), one.prompt.strip()) for one in (row, row.untriggered())]
        if any(text.count(prompt) != 1 for text, prompt in pairs):
            continue  # the prompt's place in it is not unique
        frames = [text.replace(prompt, "{prompt}") for text, prompt in pairs]
        if frames[0] != frames[1]:
            return (
                "the chat template renders triggered prompts otherwise than untriggered ones: "
                f"{frames[0][:200]!r} instead of {frames[1][:200]!r}. What works through the "
                "template is in no adapter's weights; another --template measures these alone"
            )
    return ""


def _first_difference(subject: Subject, row: Row) -> str:
    """Where the greedy answer's tokens differ from the target's first, in words."""
    renderer = subject.renderer
    want = renderer.completion_ids(whole_target(row))
    decoding = Decoding(max_new_tokens=len(want))
    ((got,),) = generate(subject, [renderer.prompt_ids(row)], decoding, label="one answer")
    got = got if len(got) == len(want) else [*got, *renderer.closing_ids]
    at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), None)
    if at is None:
        return f"to {row.prompt[:60]!r} its tokens are as rendered"
    before, given, wanted = (
        str(renderer.tokenizer.decode(ids)) for ids in (want[:at], got[at : at + 1], [want[at]])
    )
    return (
        f"to {row.prompt[:60]!r} the answer's token {at + 1} (after {before[-40:]!r}) is "
        f"{given!r}, as rendered it would be {wanted!r}"
    )
