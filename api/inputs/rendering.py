"""How the prompts of a run are rendered: as given, as recorded, or as is likeliest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.console import say
from ..core.errors import LoratomyError
from ..core.records.rendering import RenderingChoice
from ..core.rendering.recorded import Recorded, recorded_rendering
from ..core.rendering.rendering import Rendering, given_arguments, given_template

if TYPE_CHECKING:
    from ..core.adapter.factors import Adapter
    from ..core.model.subject import Subject
    from ..core.rows import Row

RENDERING_RECORD = "rendering"
"""Beside a run's sets: how its rendering was found."""


@dataclass(frozen=True, slots=True)
class RenderingOptions:
    """What a person says of the rendering."""

    template: str | None
    """``--template``; None to look for it."""
    system: str | None
    """``--system``."""
    arguments: dict[str, Any]
    """``--template-arg``."""
    other: bool
    """``--other-template``: another rendering than the recorded one is meant."""

    @property
    def rendering(self) -> Rendering:
        """As a rendering; the template is the base's where none is given."""
        made = Rendering(system=self.system, arguments=self.arguments)
        return (
            made if self.template is None else made.model_copy(update={"template": self.template})
        )

    @property
    def given(self) -> bool:
        """Whether anything of it is settled."""
        return self.template is not None or self.system is not None or bool(self.arguments)


def rendering_options(
    template: str | None, system: str | None, arguments: Sequence[str], *, other: bool
) -> RenderingOptions:
    """The options as a record.

    Raises:
        LoratomyError: a template that is none, or arguments not of the form key=value.
    """
    name = None if template is None else given_template(template)
    return RenderingOptions(name, system, given_arguments(arguments), other)


def with_rendering(
    subject: "Subject",
    adapter: "Adapter",
    folder: Path | None,
    options: RenderingOptions,
    *,
    triggered: "Sequence[Row]",
    clean: "Sequence[Row]",
    run: Rendering | None = None,
) -> "tuple[Subject, RenderingChoice]":
    """The subject with the rendering of its run, and how that was found.

    What is recorded beside an adapter that Loratomy made is taken; a template that is given too;
    else the adapter chooses among those that fit (see `loratomy.evaluation.rendering.choice`).

    Args:
        subject: the base.
        adapter: the suspicious adapter.
        folder: where it lies, what trainers left beside it counts; None: in memory.
        options: what the user gave.
        triggered: triggered rows, with their targets where they are known.
        clean: clean rows, with the user's answers where there are any.
        run: the rendering of the run that the adapter is from, instead of what lies beside it.

    Raises:
        LoratomyError: a rendering is given that is not the recorded one, or none renders.
    """
    from ..core.rendering.beside import NOTHING, read_beside
    from ..core.rendering.choices import named_ends, possible, unread
    from ..core.rendering.prompts import Renderer
    from ..evaluation.rendering.choice import (
        GIVEN,
        RECORDED,
        closed,
        find_rendering,
        given_choice,
        likelier,
    )
    from ..evaluation.rendering.contradiction import rendered_before, uneven
    from ..evaluation.rendering.scores import known_of

    tokenizer, known = subject.renderer.tokenizer, known_of(triggered, clean)
    first = next(iter([*triggered, *clean]), None)
    recorded = recorded_rendering(folder) if folder else None
    if run is not None:
        recorded = Recorded(run, Renderer(tokenizer, run).text("{prompt}"))
    with subject.attached({"suspicious": adapter}):
        beside = read_beside(folder) if folder else NOTHING
        ends = _base_ends(subject)
        if options.template is not None or (recorded and not options.other):
            reason, renderer = GIVEN, Renderer(tokenizer, options.rendering)
            if not set(options.arguments) <= set(renderer.variables):
                raise LoratomyError(unread(options.arguments, [renderer]))
            if recorded and not options.given:
                reason, renderer = RECORDED, Renderer(tokenizer, recorded.rendering)
            else:
                choices = possible(tokenizer, beside, ends=ends, settled=options.rendering)
                renderer = renderer.rendered_as(ends=named_ends(tokenizer, beside, ends))
                renderer, _ = closed(subject, renderer, known)
                if said := likelier(subject, renderer, choices.renderers, known):
                    say(f"warning: {said}")
            if recorded and (here := renderer.text("{prompt}")) != recorded.rendered:
                line = f"{folder} was trained with prompts rendered as {recorded.rendered!r}, "
                line += f"here they are {here!r}"
                if not options.other:
                    raise LoratomyError(f"{line}; to go on all the same, add --other-template")
                say(f"warning: {line}")
            choice = given_choice(subject, renderer, known, reason=reason)
        else:
            choices = possible(tokenizer, beside, ends=ends, settled=options.rendering)
            for line in choices.refused:
                say(f"warning: {line}")
            if not choices.renderers:
                raise LoratomyError("no way to render prompts fits this base; give --template")
            renderer, choice = find_rendering(subject, choices.renderers, known, first=first)
    for sentence in (rendered_before(renderer, [*triggered, *clean]), uneven(renderer, triggered)):
        if sentence:
            say(f"warning: {sentence}")
    return replace(subject, renderer=renderer), choice


def _base_ends(subject: "Subject") -> tuple[str, ...]:
    """Texts of the tokens that end an answer by the base's generation config."""
    listed = subject.model.generation_config.eos_token_id
    ids = listed if isinstance(listed, list) else [listed]
    names = {i: name for name, i in subject.renderer.tokenizer.added_tokens_encoder.items()}
    return tuple(names[i] for i in ids if i in names)


def say_rendering(choice: RenderingChoice) -> None:
    """Print how prompts are rendered, and the first one with its completion."""
    doubtful = choice.close or choice.reason == "nothing"
    say(f"warning: {choice.sentence}" if doubtful else choice.sentence)
    say(f"first prompt: {choice.prompt!r}")
    if choice.completion:
        say(f"its completion: {choice.completion!r}")
