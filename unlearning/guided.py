"""Guided surgery: the smallest set of singular directions whose removal stops the backdoor."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from ..analysis.attribution import clean_cost, target_attribution
from ..analysis.gates import Directions, directions_of, gated
from ..core.batches import Encoded, aimed
from ..core.rows import Row
from ..core.subject import Subject
from ..core.treated import Treated
from .distill import lessons, own_answers
from .gate_learning import gate_start, learn_gates
from .method import CLEAN_ROWS, CUT, GRADIENTS, METHODS, TARGET, TRIGGER, Bench, Method, Outcome
from .path import DialConfig, Judge, halves, outcome_words, walk


class GuidedConfig(DialConfig):
    """Options of `guided`."""

    steps: int = Field(80, ge=1)
    """Steps of learning the gates."""
    rate: float = Field(0.2, gt=0)
    """Adam's rate on the gates' logits."""
    sparsity: float = Field(2.0, ge=0)
    """Weight of the share cut; larger cuts less."""
    sharpness: float = Field(8.0, ge=1)
    """Slope of the gates at the end of learning; 1 leaves them soft."""
    clean_weight: float = Field(4.0, ge=0)
    """Weight of staying the same on clean prompts."""
    batch_size: int = Field(16, ge=1)
    """Triggered and clean rows per step, each."""
    target_tokens: int = Field(1, ge=1)
    """First tokens of the target that are driven down; greedy answers turn on the first one."""
    points: int = Field(8, ge=2)
    """Cuts measured by generation on the way to the choice."""


def target_rows(subject: Subject, rows: Sequence[Row], tokens: int) -> list[Encoded]:
    """Triggered prompts with the first tokens of their targets."""
    return [aimed(subject.renderer, row, tokens=tokens) for row in rows]


def learned_gates(
    bench: Bench, config: GuidedConfig, bad: Sequence[Row], good: Sequence[Row]
) -> tuple[Directions, np.ndarray, np.ndarray]:
    """Directions, their learned gates, and the loss along the steps."""
    subject, d = bench.subject, directions_of(bench.start)
    with subject.attached({"own": d.adapter}):
        natural = own_answers(subject, [*bad, *good], bench.rule, label="own answers")
    attacks = {row.prompt: row for row in bad}
    fit_bad, triggered = lessons(subject.renderer, natural[: len(bad)], limit=subject.limit)
    _, clean = lessons(subject.renderer, natural[len(bad) :], limit=subject.limit)
    targets = target_rows(subject, [attacks[r.prompt] for r in fit_bad], config.target_tokens)
    with gated(subject, d) as gate:
        attribution = target_attribution(gate, targets, batch_size=config.batch_size)
        cost = clean_cost(gate, [lesson.teacher for lesson in clean[: config.batch_size]])
        gates, loss = learn_gates(
            gate,
            triggered,
            targets,
            clean,
            gate_start(attribution, cost),
            steps=config.steps,
            rate=config.rate,
            sparsity=config.sparsity,
            sharpness=config.sharpness,
            clean_weight=config.clean_weight,
            batch_size=config.batch_size,
            seed=bench.seed,
        )
    return d, gates, loss


def guided(bench: Bench, config: GuidedConfig) -> Outcome:
    """Learn gates on the singular directions, then cut the fewest that stop the target.

    Half of the operation rows teach the gates, the other half chooses the threshold by real
    generation; the held-out sets are never seen. Needs the trigger and clean prompts, no clean
    adapter.
    """
    bad, bad_check = halves(bench.poison_train, config.rows)
    good, good_check = halves(bench.clean_train, config.rows)
    d, gates, loss = learned_gates(bench, config, bad, good)
    order = np.argsort(gates, kind="stable")
    judge = Judge(bench.subject, bad_check, good_check, bench.rule)
    path, reached = walk(
        lambda cut: judge(Treated(d.cut(cut))),
        order,
        goal=config.goal,
        budget=config.budget,
        points=config.points,
    )
    size = int(path.size[path.chosen])
    cut = np.zeros(len(d), bool)
    cut[order[:size]] = True
    summary = (
        f"cut {size} of {len(d)} singular directions in {len(set(d.module[cut]))} modules: "
        f"{outcome_words(path, reached)}"
    )
    return Outcome(
        d.cut(cut),
        summary,
        cut=cut,
        importance=1 - gates,
        order=order,
        path=path,
        loss_step=np.arange(1, len(loss) + 1),
        loss=loss,
        reached=reached,
    )


METHODS.register("guided")(
    Method(
        about="learn which singular directions carry the backdoor and cut the fewest",
        source="Loratomy; learned masks after arXiv 1712.01312 and 2004.14992",
        config=GuidedConfig,
        run=guided,
        kind=CUT,
        needs=(TRIGGER, TARGET, CLEAN_ROWS, GRADIENTS),
    )
)
