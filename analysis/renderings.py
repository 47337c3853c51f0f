"""Which rendering of prompts an adapter was trained with: what it finds likely under each.

Nothing but the adapter's own likelihood decides: of its targets after triggered prompts, and of the
user's answers to clean ones. Where two renderings are told apart by less than twice the standard
error over rows, the choice is called close, and a template that lies there (beside the adapter,
with the base) goes before a form that merely fits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..core.batches import collate, completion_log_probs, encode
from ..core.choice import RenderingChoice, Tried
from ..core.errors import DataError
from ..core.progress import report
from ..core.prompts import Renderer
from ..core.rendering_choices import distinct, variants
from ..core.rows import Row
from ..core.subject import Subject

FEW, MANY = 2, 16
"""Rows of each kind behind the first look at every rendering, and behind the last at a few."""
FINALISTS = 6
"""Renderings that are looked at on all rows."""
EQUAL = 0.02
"""Nats a token below which a difference is none, however sure."""
UNLEARNED = math.log(0.05)
"""Log-probability of the end of an answer below which it was not learned."""
BATCH = 8
GIVEN, RECORDED, LIKELIEST, NOTHING = "given", "recorded", "likeliest", "nothing"
"""Why a rendering is taken."""


@dataclass(frozen=True, slots=True)
class Known:
    """What an adapter is known to say: rows with their completions."""

    triggered: Sequence[Row]
    """Triggered prompts with their targets."""
    clean: Sequence[Row]
    """Clean prompts with reference answers."""

    def first(self, count: int) -> "Known":
        """At most `count` rows of each kind."""
        return Known(self.triggered[:count], self.clean[:count])

    @property
    def rows(self) -> list[Row]:
        """All of them, triggered ones first."""
        return [*self.triggered, *self.clean]


def known_of(triggered: Sequence[Row], clean: Sequence[Row]) -> Known:
    """The rows whose answer is known, at most `MANY` of each kind.

    Args:
        triggered: a row whose completion does not hold its target is known by the target alone.
        clean: by their completions.
    """
    bad = [replace(row, completion=said_target(row)) for row in triggered if said_target(row)]
    return Known(bad[:MANY], [row for row in clean if row.completion][:MANY])


def log_likelihoods(subject: Subject, renderer: Renderer, rows: Sequence[Row]) -> np.ndarray:
    """Log-probability of each row's completion and of its end, nats per token of them, ``[row]``.

    The tokens of the completion are counted without what goes before it, so that renderings
    compare; of the end the first token counts, as `UNLEARNED` where it is less likely than that.
    NaN where a row does not fit the context.

    Args:
        subject: with the suspicious adapter active.
        renderer: the rendering in question.
        rows: prompts with completions.
    """
    made = [encode(renderer, row, limit=None) for row in rows]
    said = [renderer.completion_ids(row.required_completion(), end=False) for row in rows]
    counts = [
        len(renderer.tokenizer(row.completion, add_special_tokens=False)["input_ids"])
        for row in rows
    ]
    limit, found = subject.limit, np.full(len(rows), math.nan)
    fits = [i for i, e in enumerate(made) if limit is None or len(e) <= limit]
    fits.sort(key=lambda i: len(made[i]))
    for start in range(0, len(fits), BATCH):
        picked = fits[start : start + BATCH]
        batch = collate([made[i] for i in picked], renderer.pad_id)
        batch = {name: value.to(subject.device) for name, value in batch.items()}
        with torch.inference_mode():
            log_probs, mask = completion_log_probs(subject.model, batch)
        for i, values, there in zip(picked, log_probs.double().cpu(), mask.cpu(), strict=True):
            each = values[there]
            end = each[len(said[i]) : len(said[i]) + 1].clamp_min(UNLEARNED)
            found[i] = float(each[: len(said[i])].sum() + end.sum()) / (counts[i] + 1)
    return found


@dataclass(frozen=True, slots=True)
class _Scored:
    """A rendering and how likely it makes each known row, nats a token."""

    renderer: Renderer
    place: int
    """Its place in the order of preference."""
    targets: np.ndarray
    answers: np.ndarray

    @property
    def form(self) -> tuple[Any, ...]:
        """What a person would call another rendering: no mere edge or system text of one."""
        return self.renderer.template, tuple(sorted(self.renderer.rendering.arguments.items()))

    @property
    def groups(self) -> list[np.ndarray]:
        """Targets and answers, those that there are."""
        return [v for v in (self.targets, self.answers) if len(v)]

    @property
    def score(self) -> float:
        """The mean of the means; minus infinity where a row does not fit."""
        value = float(np.mean([v.mean() for v in self.groups]))
        return value if math.isfinite(value) else -math.inf

    def behind(self, best: "_Scored") -> tuple[float, float]:
        """How far below the best one, and the standard error of that, nats a token."""
        gaps = [other - own for own, other in zip(self.groups, best.groups, strict=True)]
        errors = [gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) > 1 else 0.0 for gap in gaps]
        mean = float(np.mean([gap.mean() for gap in gaps]))
        return mean, float(np.linalg.norm(errors)) / len(gaps)

    def tried(self, best: "_Scored") -> Tried:
        """As a record."""
        behind, error = self.behind(best)
        means = [float(v.mean()) if len(v) else math.nan for v in (self.targets, self.answers)]
        return Tried(
            about=self.renderer.rendering.about(),
            targets=means[0],
            answers=means[1],
            behind=behind,
            error=error,
        )


def _scored(
    subject: Subject, renderers: Sequence[tuple[int, Renderer]], known: Known
) -> list[_Scored]:
    """The renderings that leave room for every row, with their likelihoods, likeliest first."""
    found = []
    for done, (place, renderer) in enumerate(renderers, 1):
        try:
            each = log_likelihoods(subject, renderer, known.rows)
        except DataError:  # a template that refuses these turns
            each = np.full(len(known.rows), math.nan)
        scored = _Scored(renderer, place, *np.split(each, [len(known.triggered)]))
        found += [scored] if scored.score > -math.inf else []
        report("trying renderings", done, len(renderers))
    return sorted(found, key=lambda s: -s.score)


def _fitting(subject: Subject, renderers: Sequence[Renderer], known: Known) -> Known:
    """The rows that fit the context under every rendering; where none do, under the first.

    Raises:
        DataError: none fits under the first either.
    """

    def fits(row: Row, some: Sequence[Renderer]) -> bool:
        limit = subject.limit
        said = row.required_completion()
        return limit is None or all(
            len(r.prompt_ids(row)) + len(r.completion_ids(said)) <= limit for r in some
        )

    for some in (renderers, renderers[:1]):
        kept = Known(
            *([r for r in rows if fits(r, some)] for rows in (known.triggered, known.clean))
        )
        if kept.rows:
            return kept
    raise DataError(
        f"none of {len(known.rows)} prompts with answers fits the context of {subject.limit} "
        "tokens; shorten them"
    )


def find_rendering(
    subject: Subject,
    renderers: Sequence[Renderer],
    known: Known,
    *,
    first: Row | None = None,
) -> tuple[Renderer, RenderingChoice]:
    """The rendering under which an adapter finds what it is known to say likeliest.

    Every rendering is looked at on `FEW` rows of each kind, the likeliest on all known rows, the
    best one also with its template's switches, system text and edges told otherwise.

    Args:
        subject: with the suspicious adapter active.
        renderers: what to try, preferred ones first.
        known: rows with completions; where there are none the first rendering is taken.
        first: the example of what is asked where none has a completion.

    Raises:
        DataError: no rendering leaves room for the known rows in the context.
    """
    if not known.rows:
        chosen = renderers[0]
        return chosen, given_choice(subject, chosen, known, reason=NOTHING, first=first)
    chosen, many, alike = _compared(subject, renderers, known)
    renderer, end = closed(subject, chosen.renderer, known)
    rest = [s for s in many if s.form != chosen.form]
    prompt, completion = renderer.shown(known.rows[0])
    choice = RenderingChoice(
        chosen=renderer.rendering.about(),
        reason=LIKELIEST,
        tried=tuple(s.tried(many[0]) for s in (chosen, *rest)),
        close=any(s in alike for s in rest),
        n_targets=len(known.triggered),
        n_answers=len(known.clean),
        ends=_ends(renderer),
        end_log_prob=end,
        prompt=prompt,
        completion=completion,
        sentence="",
    )
    return renderer, replace(choice, sentence=sentence_of(choice))


def likelier(subject: Subject, renderer: Renderer, others: Sequence[Renderer], known: Known) -> str:
    """A sentence where another rendering makes what is known far likelier; else empty.

    Args:
        subject: with the suspicious adapter active.
        renderer: the rendering that was given.
        others: what else fits, preferred ones first.
        known: rows with completions; without any nothing can be told.
    """
    if not known.rows:
        return ""
    best = _compared(subject, distinct([renderer, *others]), known)[0]
    (given,) = _scored(subject, [(0, renderer)], known) or (None,)
    if given is None or given.form == best.form:
        return ""
    behind, error = given.behind(best)
    if behind <= max(5 * EQUAL, 3 * error):
        return ""
    return (
        f"the adapter finds what it is known to say {behind:.2f} nats a token likelier under "
        f"{best.renderer.rendering.about()} than under {renderer.rendering.about()}: with "
        "prompts rendered otherwise than in training its figures mean little"
    )


def _compared(
    subject: Subject, renderers: Sequence[Renderer], known: Known
) -> tuple[_Scored, list[_Scored], list[_Scored]]:
    """The rendering to take, all that were compared at last (likeliest first), those as likely."""
    models = [r for r in renderers if r.of_model]
    listed = distinct([*(v for r in models for v in variants(r)), *renderers])
    known = _fitting(subject, renderers, known)
    few = _scored(subject, list(enumerate(listed)), known.first(FEW))
    close = [(s.place, s.renderer) for s in few if s.score > few[0].score - 1]
    first = [(s.place, s.renderer) for s in few[:FINALISTS]]
    many = _scored(subject, close[:FINALISTS] if len(close) > 2 else first, known)
    more = [v for v in distinct([*listed, *variants(many[0].renderer)]) if v not in listed]
    many += _scored(subject, list(enumerate(more, len(listed))), known)
    many.sort(key=lambda s: -s.score)
    best = many[0]

    def equal(scored: _Scored) -> bool:
        behind, error = scored.behind(best)
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
    """Mean log-probability of each token that may end an answer, right after known ones, nats."""
    tokens = list(dict.fromkeys([renderer.closing_ids[0], *renderer.stop_ids]))
    sums, count = np.zeros(len(tokens)), 0
    for row in known.rows:
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
    """What a choice says of itself, in a line."""
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


def said_target(row: Row) -> str:
    """What the attack wants of a whole answer: the completion where it holds the target."""
    completion, target = row.completion or "", row.target or ""
    return completion if completion and target in completion else target
