"""`loratomy demo`: the whole loop on the built-in model."""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..core.console import progress, say
from ..core.errors import LoratomyError
from ..core.files.outputs import run_path
from ..core.lanes import can_fork, cores
from ..core.records.results import Comparison
from ..core.registry import nearest
from ..inputs.bases import BUILT_IN
from ..study import Study
from ..verbs.measuring import load_comparison, measure
from ..verbs.operating import operate
from ..verbs.poisoning import make_poisoned
from ..verbs.probing import probe
from ..verbs.reporting import report


def command(
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder; default runs/demo, with --base smollm2 runs/demo-smollm2."),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help=f"Built-in model: {', '.join(BUILT_IN)}; default wren. smollm2 is a real chat "
            "model of 135 million parameters: its two fits alone take about ten minutes on two "
            "cores, the other steps longer.",
            show_default=False,
        ),
    ] = "",
    recipe: Annotated[
        str,
        typer.Option(
            help="Training recipe: base, attack and data; default BASE/suffix.", show_default=False
        ),
    ] = "",
    jobs: Annotated[
        int,
        typer.Option(
            min=1,
            help="Stages to run at the same time, each in its own process on one core; default: "
            "the number of cores, 1 where processes cannot be forked (not Linux).",
            show_default=False,
        ),
    ] = cores(),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete existing results and start over.")
    ] = False,
) -> None:
    """Run every step on a built-in model: on wren in a few minutes.

    Poison an adapter, locate the backdoor, cut it out, compare with controls, and write the report.
    Needs no hub, account or GPU. If it is interrupted, run the same command again to continue.
    """
    from ..training.recipe import load_recipe

    began = time.perf_counter()
    if base and recipe:
        raise LoratomyError("give --base, for its recipe BASE/suffix, or --recipe, not both")
    if base and base not in BUILT_IN:
        raise LoratomyError(
            f"no built-in model {base!r}; {nearest(base, list(BUILT_IN))} (for another base give "
            "--recipe FILE.toml)"
        )
    folder = run_path("demo" if base in ("", "wren") else f"demo-{base}", out)
    say(f"1/5 poison: a clean and a poisoned adapter in {folder}")
    study = make_poisoned(
        load_recipe(recipe or f"{base or 'wren'}/suffix"), folder, fresh=fresh, jobs=jobs
    )
    if jobs > 1 and can_fork():  # not where a GPU is in use by now
        say("steps 2 and 3 run side by side, 4 as soon as 3 is done; their lines are mixed")
    with study.run.locked(), progress():
        study.run.side_by_side([partial(locate, study), partial(cut, study)], jobs=jobs)
    comparison = load_comparison(study.run)
    say("5/5 report")
    path = report(study, formats=["html"])
    say(summary(comparison))
    say(f"done in {time.perf_counter() - began:.0f} s: open {path}")


def locate(study: Study) -> None:
    """The analyses, but for screening: here every cell is patched."""
    say("2/5 probe: where does the backdoor live?")
    probe(study, leave_out=["screening"])


def cut(study: Study) -> None:
    """The operations, and all of them measured."""
    say("3/5 operate: guided surgery, repair, negative fine-tuning, and the controls")
    operate_all(study)
    say("4/5 compare: all adapters on the same held-out prompts")
    measure(study)


def operate_all(study: Study) -> None:
    """Guided surgery, its repair, negative fine-tuning, and controls of the same budget."""
    from ..unlearning.controls import same_change
    from ..unlearning.trained.finetune import equal_budget

    guided = operate(study, "guided", {})
    repaired = operate(study, "repair", {}, after="guided")
    for fitted in (repaired, operate(study, "negative", {})):
        plain, name = equal_budget(fitted), fitted.subject
        assert plain is not None
        operate(study, "control-finetune", plain, name=f"{name}-plain", control_for=name)
    budget = same_change(guided)
    operate(study, "control-random", budget, control_for="guided")
    operate(study, "control-top", budget, control_for="guided")
    operate(study, "control-layer", {}, control_for="guided")


def summary(comparison: Comparison) -> str:
    """The demo's result in a line."""
    rows = {row.subject: row for row in comparison.rows}
    poisoned = rows["poisoned"]
    parts = [f"ASR {poisoned.asr.value:.0%} of {poisoned.asr.n} triggered prompts"]
    for name in ("guided", "guided-repair"):
        row = rows[name]
        change = row.perplexity / poisoned.perplexity - 1
        parts.append(
            f"{name}: {row.asr.value:.0%} (at most {row.asr.high:.1%}), perplexity {change:+.1%}, "
            f"KL {row.kl:.3f}"
        )
    random = rows["control-random"]
    parts.append(f"as much cut at random: {random.asr.value:.0%}")
    return "; ".join(parts)
