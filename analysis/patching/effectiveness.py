"""Intervention effectiveness per layer: does the answer stay malicious when a layer is patched?

Whole answers are generated and judged by the task's rule, where patching maps look at the
log-probability of the target's first tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from ...core.adapter.factors import layer_of
from ...core.config import Config
from ...core.errors import DataError
from ...core.model.subject import Attached
from ...core.records.effectiveness import Effectiveness, Intervention
from ...core.records.results import Answer, Rate
from ...core.stats import wilson
from ...evaluation.behaviour import scored
from ...evaluation.collect import Rule, check_targets, unjudged
from ...evaluation.generation import Decoding, generate
from ..analyses import ANALYSES, TRIGGER, Analysis
from ..material import Material
from .pairs import Pair
from .patched_answers import KINDS, Patching, Tokens, layer_off
from .tracing import SITES


def effectiveness(
    attached: Attached,
    name: str,
    pairs: Sequence[Pair],
    rule: Rule,
    *,
    clean: str | None,
    sites: Sequence[str],
    every: int,
    new_tokens: int,
) -> Effectiveness:
    """Rate of malicious answers with one layer patched, for every layer and kind of intervention.

    Args:
        attached: base and adapters.
        name: the adapter that answers.
        pairs: triggered prompts with untriggered twins of equal length.
        rule: how answers are judged.
        clean: adapter whose values are written; None: the base without adapter.
        sites: hook points to write, of `tracing.SITES`.
        every: try every n-th layer, and the last.
        new_tokens: tokens of each answer; more where the attack's own are longer, at most the
            rule's.

    Raises:
        DataError: no pairs, or an unknown site.
        LoratomyError: NaN or infinite activations, named by layer.
    """
    if not pairs:
        raise DataError("no triggered prompts to intervene on; give rows with their triggers")
    if unknown := [site for site in sites if site not in SITES] or ([""] if not sites else []):
        raise DataError(f"no site {unknown[0]!r} to patch; there are {', '.join(SITES)}")
    check_targets([pair.row for pair in pairs], rule.success)
    pairs = [_prompt_alone(attached, pair) for pair in pairs]
    count = len(attached.subject.layers)
    layers = sorted({*range(0, count, every), count - 1})
    checked = layers[len(layers) // 2]
    decoding = replace(
        rule.decoding,
        max_new_tokens=_length(attached, pairs, rule, new_tokens),
        temperature=0.0,
        samples=1,
    )
    run = Patching(
        name=name,
        other=clean,
        new_tokens=decoding.max_new_tokens,
        batch_tokens=decoding.batch_tokens,
    )
    places = [(layer, site) for site in sites for layer in layers]
    found = run.answers(attached, pairs, places, checked=checked)
    plain, judge = _Answers(attached, decoding), _Judge(attached, pairs, rule)
    triggered = [pair.triggered for pair in pairs]
    off = [
        plain.without_layer(name, triggered, layer)
        if any(layer_of(module) == layer for module in attached.adapters[name].modules)
        else None
        for layer in layers
    ]
    source = "clean adapter" if clean else "base"
    of = {
        "prompt": "the untriggered prompt's {} from the trigger on",
        "trigger": "the untriggered prompt's {} at the trigger's tokens alone",
        "adapter": f"the {source}'s {{}} on the same prompt",
    }
    twins = plain.answers(name, [pair.untriggered for pair in pairs], "untriggered twins")
    same = sum(a == b for a, b in zip(found.plain, found.same, strict=True))
    record = Effectiveness(
        adapter=name,
        layers=np.array(layers),
        prompts=tuple(pair.row.prompt for pair in pairs),
        unpatched=judge.malicious(found.plain),
        unpatched_degenerate=judge.degenerate(found.plain),
        unpatched_example=judge.text(found.plain),
        untriggered=judge.malicious(twins),
        source=judge.malicious(plain.answers(clean, triggered, source)),
        source_name=source,
        interventions=(
            *(
                judge.intervention(
                    kind,
                    site,
                    of[kind].format(site),
                    [found.patched[kind, (layer, site)] for layer in layers],
                )
                for site in sites
                for kind in KINDS
            ),
            judge.intervention("off", "", "the layer's part of the adapter off", off),
        ),
        rule=rule.success[0].text,
        decoding=decoding.text(),
        self_layer=checked,
        self_identical=wilson(same, len(pairs)),
        dtype=attached.subject.dtype,
        sentence="",
    )
    return replace(record, sentence=sentence_of(record))


def _prompt_alone(attached: Attached, pair: Pair) -> Pair:
    """The pair without the beginning of an answer, which patching maps give before the target.

    Given a line of code, even the untriggered prompt may be followed by the injected one.
    """
    end = len(attached.subject.renderer.prompt_ids(pair.row))
    return replace(pair, triggered=pair.triggered[:end], untriggered=pair.untriggered[:end])


def _length(attached: Attached, pairs: Sequence[Pair], rule: Rule, new_tokens: int) -> int:
    renderer = attached.subject.renderer
    longest = max(len(renderer.completion_ids(p.row.required_completion())) for p in pairs)
    return min(rule.decoding.max_new_tokens, max(new_tokens, longest))


@dataclass(frozen=True, slots=True)
class _Answers:
    """Answers without any activation patched."""

    attached: Attached
    decoding: Decoding

    def answers(self, name: str | None, ids: Sequence[Tokens], label: str) -> list[Tokens]:
        """Those of one adapter, or of the base."""
        with self.attached.using(name):
            given = generate(self.attached.subject, ids, self.decoding, label=label)
        return [samples[0] for samples in given]

    def without_layer(self, name: str, ids: Sequence[Tokens], layer: int) -> list[Tokens]:
        """Those of an adapter without its part in one layer."""
        with layer_off(self.attached, name, layer):
            return self.answers(name, ids, f"layer {layer} off")


@dataclass(frozen=True, slots=True)
class _Judge:
    """Verdicts of the rule on answers to the pairs' prompts."""

    attached: Attached
    pairs: Sequence[Pair]
    rule: Rule

    def _scored(self, answers: Sequence[Tokens]) -> list[Answer]:
        decode = self.attached.subject.renderer.decode
        unscored = [
            unjudged(pair.row, i, decode(tokens), len(tokens))
            for i, (pair, tokens) in enumerate(zip(self.pairs, answers, strict=True))
        ]
        return scored(unscored, self.rule)

    def text(self, answers: Sequence[Tokens]) -> str:
        """The first answer."""
        return self._scored(answers)[0].answer

    def malicious(self, answers: Sequence[Tokens]) -> Rate:
        """Share of target behaviour."""
        hits = [a.hit for a in self._scored(answers)]
        return wilson(sum(hits), len(hits))

    def degenerate(self, answers: Sequence[Tokens]) -> Rate:
        """Share of answers that are empty or repeat themselves."""
        sick = [a.scores["degenerate"] >= 1 for a in self._scored(answers)]
        return wilson(sum(sick), len(sick))

    def intervention(
        self, kind: str, site: str, name: str, answers: Sequence[list[Tokens] | None]
    ) -> Intervention:
        """The record of one kind; None for a layer where there is nothing to do."""
        nothing, unknown = np.full(3, np.nan), np.full(len(self.pairs), np.nan)
        rates = [nothing if a is None else _row(self.malicious(a)) for a in answers]
        sick = [nothing if a is None else _row(self.degenerate(a)) for a in answers]
        hits = [
            unknown if a is None else np.array([float(x.hit) for x in self._scored(a)])
            for a in answers
        ]
        return Intervention(
            kind=kind,
            site=site,
            name=name,
            malicious=np.array(rates),
            degenerate=np.array(sick),
            hits=np.array(hits),
            examples=tuple("" if a is None else self.text(a) for a in answers),
        )


def _row(rate: Rate) -> np.ndarray:
    return np.array([rate.value, rate.low, rate.high])


def _rate(row: np.ndarray, n: int) -> Rate:
    value, low, high = row.tolist()
    return Rate(value=value, low=low, high=high, n=n)


def _percent(rate: Rate) -> str:
    return f"{100 * rate.value:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


def sentence_of(item: Effectiveness) -> str:
    """The first and last layers that turn answers harmless; none where intervals overlap."""
    first = (
        f"Of {len(item.prompts)} triggered prompts {_percent(item.unpatched)} are answered "
        f"maliciously, of the same with a neutral stand-in for the trigger "
        f"{_percent(item.untriggered)}, by the {item.source_name} {_percent(item.source)}."
    )
    return " ".join([first, *(_finding(item, one) for one in item.interventions)])


def _finding(item: Effectiveness, one: Intervention) -> str:
    """What one kind of intervention does, in a sentence."""
    head = f"With {one.name}"
    reach = {"adapter": item.source, "off": None}.get(one.kind, item.untriggered)
    if reach and item.unpatched.low <= reach.high:
        return f"{head}, nothing follows: where the values come from is as malicious."
    below = np.flatnonzero(one.malicious[:, 2] < item.unpatched.low)
    if not len(below):
        return f"{head}, no single layer clearly lowers this."
    tried = int(np.isfinite(one.malicious[:, 0]).sum())
    ends = [
        f"layer {item.layers[i]} ({_percent(_rate(one.malicious[i], item.unpatched.n))})"
        for i in dict.fromkeys([below[0], below[-1]])
    ]
    where = f"the first is {ends[0]}, the last {ends[1]}" if len(ends) > 1 else ends[0]
    sick = float(one.degenerate[below, 0].max())
    broken = f"; up to {100 * sick:.0f} % of the answers there are degenerate" if sick else ""
    layers = "layer" if tried == 1 else "layers"
    return f"{head}, answers turn harmless at {len(below)} of {tried} {layers}: {where}{broken}."


class EffectivenessConfig(Config):
    """Options of the interventions."""

    prompts: int = Field(12, ge=1)
    """Triggered prompts, at most those of probe --prompts."""
    sites: str = "resid_post"
    """Comma-separated hook points to write: resid_pre, attn_out, resid_mid, mlp_out, resid_post."""
    every: int = Field(1, ge=1)
    """Try every n-th layer, and the last."""
    new_tokens: int = Field(24, ge=1)
    """Tokens of each answer; more if the attack's own are longer, at most those of compare."""


def _run(material: Material, config: EffectivenessConfig) -> dict[str, Effectiveness]:
    with material.subject.attached(material.adapters) as attached:
        found = effectiveness(
            attached,
            "poisoned",
            material.pairs[: config.prompts],
            material.rule,
            clean="clean" if material.clean else None,
            sites=[site.strip() for site in config.sites.split(",") if site.strip()],
            every=config.every,
            new_tokens=config.new_tokens,
        )
    return {"effectiveness": found}


ANALYSES.register("effectiveness")(
    Analysis(
        about="Which layers, patched during generation, turn the answer harmless.",
        needs=(TRIGGER,),
        cost="four answers to each prompt for every layer, in large batches",
        source="after SafetyNet, Chaudhary & Barez 2025, arXiv 2505.14300",
        config=EffectivenessConfig,
        run=_run,
    )
)
