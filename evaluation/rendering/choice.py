"""Which rendering of prompts an adapter was trained with: what it finds likely under each.

Nothing but the adapter's own likelihood decides: of its targets after triggered prompts, and of the
user's answers to clean ones. Where two renderings differ by less than twice the standard error over
rows, the choice is called close, and a template found there (beside the adapter, with the base)
goes before a form that merely fits.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ...core.errors import LoratomyError
from ...core.model.subject import Subject
from ...core.records.rendering import RenderingChoice
from ...core.rendering.choices import distinct, variants
from ...core.rendering.prompts import Renderer
from ...core.rows import Row
from .scores import (
    UNLEARNED,
    Known,
    Scored,
    fitting,
    log_likelihoods,
    scored,
    telling,
)

FEW = 2
"""Rows of each kind behind the first look at every rendering."""
FINALISTS = 6
"""Renderings that are looked at on all rows."""
EQUAL = 0.02
"""Nats a token below which a difference is none, however sure."""
GIVEN, RECORDED, LIKELIEST, NOTHING = "given", "recorded", "likeliest", "nothing"
"""Why a rendering is taken."""


def find_rendering(
    subject: Subject,
    renderers: Sequence[Renderer],
    known: Known,
    *,
    first: Row | None = None,
) -> tuple[Renderer, RenderingChoice]:
    """The rendering under which an adapter finds its known answers likeliest.

    Every rendering is looked at on `FEW` rows of each kind, the likeliest on all known rows, the
    best one also with its template's switches, system text and edges changed.

    Args:
        subject: with the suspicious adapter active.
        renderers: what to try, preferred ones first.
        known: rows with completions; where there are none the first rendering is taken.
        first: the example prompt where none has a completion.

    Raises:
        DataError: no rendering leaves room for the known rows in the context.
    """
    if not known.rows:
        chosen = renderers[0]
        return chosen, given_choice(subject, chosen, known, reason=NOTHING, first=first)
    chosen, many, alike = _compared(subject, renderers, known)
    renderer, end = closed(subject, chosen.renderer, known)
    doubts, unsure = _doubts(chosen, many)
    rest = [s for s in many if s.form != chosen.form]
    prompt, completion = renderer.shown(known.rows[0])
    choice = RenderingChoice(
        chosen=renderer.rendering.about(),
        reason=LIKELIEST,
        tried=tuple(s.tried(many[0]) for s in (chosen, *rest)),
        close=unsure or any(s in alike for s in rest),
        n_targets=len(known.triggered),
        n_answers=len(known.clean),
        ends=_ends(renderer),
        end_log_prob=end,
        prompt=prompt,
        completion=completion,
        sentence="",
    )
    return renderer, replace(choice, sentence=sentence_of(choice) + doubts)


def _doubts(chosen: Scored, many: Sequence[Scored]) -> tuple[str, bool]:
    """What the adapter does not know, and where targets and answers disagree, in words.

    Also whether the rendering is unsure because of it.
    """
    there = [kind for kind in (0, 1) if len(chosen.each(kind))]
    unknown = [kind for kind in there if max(s.means[kind] for s in many) < UNLEARNED]
    names = [("targets", "answers")[kind] for kind in unknown]
    if unknown == there:
        return f"; the adapter knows the {' and '.join(names)} under none: this is a guess", True
    text, unsure = "", False
    for name in names:
        text += f"; the adapter does not know the {name} under any, they do not count"
    for kind in (kind for kind in there if kind in chosen.counted):
        own, *others = (replace(s, counted=(kind,)) for s in (chosen, *many))
        best = max(others, key=lambda s: s.score)
        behind, error = own.behind(best)
        if best.form != chosen.form and behind > max(5 * EQUAL, 3 * error):
            text += (
                f"; the {('targets', 'answers')[kind]} alone speak for "
                f"{best.renderer.rendering.about()}, by {behind:.2f}: try it with --template too"
            )
            unsure = True
    return text, unsure


def likelier(subject: Subject, renderer: Renderer, others: Sequence[Renderer], known: Known) -> str:
    """A sentence where another rendering makes what is known far likelier; else empty.

    Args:
        subject: with the suspicious adapter active.
        renderer: the rendering that was given.
        others: what else fits, preferred ones first.
        known: rows with completions; without any the result is empty.
    """
    if not known.rows:
        return ""
    best = _compared(subject, distinct([renderer, *others]), known)[0]
    (given,) = scored(subject, [(0, renderer)], known) or (None,)
    if given is None or given.form == best.form:
        return ""
    behind, error = replace(given, counted=best.counted).behind(best)
    if behind <= max(5 * EQUAL, 3 * error):
        return ""
    return (
        f"the adapter finds what it is known to say {behind:.2f} nats a token likelier under "
        f"{best.renderer.rendering.about()} than under {renderer.rendering.about()}: with "
        "prompts rendered otherwise than in training its figures mean little"
    )


def _compared(
    subject: Subject, renderers: Sequence[Renderer], known: Known
) -> tuple[Scored, list[Scored], list[Scored]]:
    """The rendering to take, all that were compared at last (likeliest first), those as likely."""
    models = [r for r in renderers if r.of_model]
    listed = distinct([*(v for r in models for v in variants(r)), *renderers])
    known = fitting(subject, renderers, known)
    few = scored(subject, list(enumerate(listed)), known.first(FEW))
    close = [s for s in few if s.score > few[0].score - 1]
    picked = {s.place: s.renderer for s in (close if len(close) > 2 else few)[:FINALISTS]}
    picked |= {s.place: s.renderer for s in few if any(s.renderer is r for r in models)}
    many = scored(subject, list(picked.items()), known)
    if not many:
        raise LoratomyError(
            "under no rendering of the prompts does the adapter give finite probabilities: its "
            "weights are too large for the model, or damaged"
        )
    more = [v for v in distinct([*listed, *variants(many[0].renderer)]) if v not in listed]
    many += scored(subject, list(enumerate(more, len(listed))), known)
    many = telling(many)
    best = many[0]

    def equal(one: Scored) -> bool:
        behind, error = one.behind(best)
        return behind <= max(EQUAL, 2 * error)

    alike = [s for s in many if equal(s)]
    forms = {s.form for s in alike if s.renderer.of_model} or {best.form}
    return min((s for s in alike if s.form in forms), key=lambda s: s.place), many, alike


def given_choice(
    subject: Subject, renderer: Renderer, known: Known, *, reason: str, first: Row | None = None
) -> RenderingChoice:
    """The record of a rendering that was not looked for.

    Args:
        subject: with the suspicious adapter active.
        renderer: the rendering.
        known: rows for the example and for how likely the end of an answer is.
        reason: `GIVEN`, `RECORDED` or `NOTHING`.
        first: the example where no row has a completion.
    """
    some = [*known.rows, *([first] if first else []), Row(prompt="...")]
    prompt, completion = renderer.shown(some[0])
    choice = RenderingChoice(
        chosen=renderer.rendering.about(),
        reason=reason,
        tried=(),
        close=False,
        n_targets=len(known.triggered),
        n_answers=len(known.clean),
        ends=_ends(renderer),
        end_log_prob=_end_log_probs(subject, renderer, known)[renderer.closing_ids[0]],
        prompt=prompt,
        completion=completion,
        sentence="",
    )
    return replace(choice, sentence=sentence_of(choice))


def closed(subject: Subject, renderer: Renderer, known: Known) -> tuple[Renderer, float]:
    """The rendering with the end of an answer that the adapter finds likeliest, and how likely.

    What the template writes after an answer stays unless another of the tokens that may end one is
    likelier by two nats and was learned.

    Args:
        subject: with the suspicious adapter active.
        renderer: the rendering.
        known: rows with completions.
    """
    found = _end_log_probs(subject, renderer, known)
    own = renderer.closing_ids[0]
    best = max(found, key=lambda token: found[token])
    if best != own and found[best] > max(found[own] + 2, UNLEARNED):
        names = {i: name for name, i in renderer.tokenizer.added_tokens_encoder.items()}
        ends = tuple(dict.fromkeys((*renderer.rendering.ends, renderer.closing.strip())))
        return renderer.rendered_as(end=names[best], ends=ends), found[best]
    return renderer, found[own]


def _end_log_probs(subject: Subject, renderer: Renderer, known: Known) -> dict[int, float]:
    """Mean log-probability of each token that may end an answer, right after known ones, nats.

    Rows whose answer the adapter has not learned do not count, unless it has learned none.
    """
    tokens = list(dict.fromkeys([renderer.closing_ids[0], *renderer.stop_ids]))
    sums, count = np.zeros(len(tokens)), 0
    likely = log_likelihoods(subject, renderer, known.rows) >= UNLEARNED if known.rows else []
    rows = [row for row, is_learned in zip(known.rows, likely, strict=True) if is_learned]
    for row in rows or known.rows:
        ids = [
            *renderer.prompt_ids(row),
            *renderer.completion_ids(row.required_completion(), end=False),
        ]
        if subject.limit is not None and len(ids) > subject.limit:
            continue
        batch = torch.tensor([ids], device=subject.device)
        with torch.inference_mode():
            logits = subject.model(input_ids=batch, use_cache=False, logits_to_keep=1).logits
        sums += logits[0, -1].double().log_softmax(-1)[tokens].cpu().numpy()
        count += 1
    means = sums / count if count else np.full(len(tokens), math.nan)
    return dict(zip(tokens, map(float, means), strict=True))


def _ends(renderer: Renderer) -> tuple[str, ...]:
    """The texts that end an answer, the one that closes it in training first."""
    stops = [str(renderer.tokenizer.decode([i])) for i in renderer.stop_ids]
    return tuple(dict.fromkeys([renderer.closing.strip() or renderer.closing, *stops]))


def sentence_of(choice: RenderingChoice) -> str:
    """A choice in a line."""
    known = [
        f"{name} {value:.2f}"
        for name, value in (
            ("targets", choice.tried[0].targets if choice.tried else math.nan),
            ("answers", choice.tried[0].answers if choice.tried else math.nan),
        )
        if not math.isnan(value)
    ]
    why = {
        GIVEN: " (as given)",
        RECORDED: " (recorded beside the adapter)",
        NOTHING: ", unchecked: there are neither targets nor answers to tell by. Give a --target, "
        "prompts with answers, or --template",
        LIKELIEST: f" (log-probability that the adapter gives there: {', '.join(known)} nats a "
        "token; 0 is certain)",
    }[choice.reason]
    text = f"rendering: {choice.chosen}{why}"
    if len(choice.tried) > 1:
        other = min(choice.tried[1:], key=lambda t: t.behind)
        gap = other.behind - choice.tried[0].behind
        text += f"; next: {other.about}, {abs(gap):.2f} {'worse' if gap >= 0 else 'better'}"
        if choice.close:
            error = max(other.error, choice.tried[0].error)
            text += f", too close to tell (standard error {error:.2f}): try it with --template too"
    if choice.end_log_prob < UNLEARNED:
        text += (
            f"; the adapter has not learned to end its answers with {choice.ends[0]!r} "
            f"(probability {math.exp(choice.end_log_prob):.1g} after known ones): it may go on"
        )
    return text
