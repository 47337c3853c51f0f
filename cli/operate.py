"""`loratomy operate`: change the adapter, into a new one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.console import say
from ..study import load
from ..verbs.operating import operate, previewed
from ..verbs.options import FOLLOWED, FOLLOWS, chosen, plan_name
from .options import REPORT_HELP, Plugin, parse_pairs
from .tables.preview import show

if TYPE_CHECKING:
    pass


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder made by poison or open.")],
    method: Annotated[
        str,
        typer.Argument(
            metavar="METHOD",
            help="Method to apply (loratomy methods lists them); default: guided, or --plan.",
        ),
    ] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set an option of the method, e.g. --set goal=0.05."
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            help="What the cut may cost on clean calibration rows: rise of perplexity, e.g. 1% or "
            "0.01; after kl= nats per token of KL divergence from the poisoned adapter on its own "
            "answers; or both, e.g. 1%,kl=.05. With kl= alone perplexity may rise by 5%."
        ),
    ] = "",
    plan: Annotated[
        str,
        typer.Option(
            help="Instead of a method, apply the cuts and scales of a TOML file, or where:N: cut "
            "the N directions that the analysis `where` ranks first."
        ),
    ] = "",
    after: Annotated[
        str, typer.Option(help="Start from the result of an earlier operation, e.g. guided.")
    ] = "",
    as_: Annotated[
        str, typer.Option("--as", help="Name of the result; default: that of the method or plan.")
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show what would be cut, its size and its effect; write nothing."
        ),
    ] = False,
    report_to: Annotated[str, typer.Option(help=REPORT_HELP)] = "",
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace an existing result.")] = False,
    plugin: Plugin = None,
) -> None:
    """Apply a method to the poisoned adapter to remove the backdoor.

    The result goes to RUN/operations/NAME, for most methods as a new adapter in plain PEFT format.
    guided finds and cuts a smallest set of directions; repair fine-tunes after that cut; negative
    is negative fine-tuning; truncate, prune, mask, project and project-difference cut by a rule;
    needle cuts the trigger's direction out of what layers write, without training; control-* are
    controls that a method has to beat. Existing results are kept without --fresh.

    --dry-run shows what a plan, or a method whose options alone decide the cut, would do: norms,
    bytes, and, on up to 16 calibration rows of each kind, the probability of the target's first
    token and clean perplexity with and without the cut, from forward passes alone. The gradients'
    estimate beside them is unreliable for large cuts.

    A plan is a TOML file of [[cut]] and [[scale]] entries. An entry applies to the singular
    directions that match all of its selectors: layers, modules, directions (module:number),
    beyond_rank (all but the strongest N) and beyond_energy (all but the fewest with this share of
    the squared singular values). All entries select from the adapter as it was before the plan;
    factors for the same direction multiply.

    \b
    [[cut]]
    layers = "2-4"
    modules = ["down_proj", "o_proj"]
    beyond_rank = 1
    [[cut]]
    directions = ["model.layers.5.mlp.down_proj:0"]
    [[scale]]
    layers = [0, 1]
    factor = 0.5

    \b
    Examples:
      loratomy operate runs/x guided --budget 1%
      loratomy operate runs/x truncate --budget 1%,kl=.05
      loratomy operate runs/x repair --after guided
      loratomy operate runs/x mask --set layers=[2,3] --as no-2-3
      loratomy operate runs/x --plan mine.toml --dry-run
    """
    from ..training.tracking import trackers_of

    trackers = trackers_of(report_to)
    study = load(run)
    method, options = chosen(method, parse_pairs(set_ or []), budget, plan, study=study)
    name = as_ or (plan_name(plan, after) if plan else "")
    if dry_run:
        found = previewed(study, method, options, after=after)
        if isinstance(found, str):
            say(found)
        else:
            show(found)
            say("dry run: nothing was written")
        return
    record = operate(study, method, options, after=after, name=name, trackers=trackers, fresh=fresh)
    say(f"{record.subject}: {record.summary}")
    say(f"it took {record.seconds:.0f} s and at most {record.peak_bytes / 2**30:.1f} GiB of memory")
    if trackers and record.fit is None:
        say(f"{record.method} trains nothing, so nothing was logged to {', '.join(trackers)}")
    if not record.reached:
        say(f"{record.subject} did not reach its goal; the best result is kept and marked as such")
    later = f"loratomy operate {run} {FOLLOWS} --after {record.subject}, "
    later = later if record.method in FOLLOWED else ""
    folder = run / "operations" / record.subject / "adapter"
    say(f"done: {folder}; next: {later}loratomy compare {run}")
