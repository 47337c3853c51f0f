"""`loratomy across`: runs of different models at equal depth; reads records, never a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.console import out as stdout
from ..core.console import say, say_json
from ..core.errors import DataError, LoratomyError, RunError
from ..core.files.jsonfiles import read_json
from ..core.records.across import Across, Agreement, Profile
from ..core.runs.folder import RunFolder
from ..inputs.bases import base_folder
from ..verbs.probing import STAGE, finished, load_stage
from .attacks import table

if TYPE_CHECKING:
    from ..analysis.across.across import RunAnalysis, RunSource


def command(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run folders.", metavar="RUN...")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("across.html"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record as JSON instead of tables.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the permutations behind p.")] = 0,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Replace the file at --out even if loratomy did not write it."
        ),
    ] = False,
) -> None:
    """Compare runs of different models at equal relative depth.

    Shows the per-layer results of their finished analyses (causal effect, patching, weights, probes
    and more) side by side, at which depth each is largest, and whether the profiles agree. Models
    may differ in their number of layers. Runs no model.

    Example: loratomy across runs/wren runs/llama --out across.html
    """
    from ..analysis.across.across import across
    from ..figures.analysis.across.across import across_html
    from ..figures.base.export import check_page, write_page

    check_page(out, fresh=fresh)
    record = across(_sources(runs), seed=seed)
    write_page(across_html(record), out)
    if as_json:
        say_json(record)
    else:
        _show(record)
    say(f"done: {out}")


def _sources(folders: list[Path]) -> "list[RunSource]":
    """What is needed of every run.

    Raises:
        DataError: fewer than two runs, or one given twice.
        RunError: not a run, of another version, or with altered or outdated analyses.
    """
    if len(folders) < 2:
        raise DataError(f"give two runs or more to compare; {folders[0]} is one")
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (real := folder.resolve()) in seen:
            raise DataError(f"{folder} is the same run as {seen[real]}; give different runs")
        seen[real] = folder
    short = [folder.resolve().name for folder in folders]
    alike = len(set(short)) < len(short)
    names = [str(folder) if alike else name for folder, name in zip(folders, short, strict=True)]
    return [_source(RunFolder.open(f), name) for f, name in zip(folders, names, strict=True)]


def _source(run: RunFolder, name: str) -> "RunSource":
    from ..analysis.across.across import RunSource

    study = run.request.get("study")
    if not isinstance(study, dict):
        raise RunError(f"{run.root} does not say what it studies; remake it with --fresh")
    return RunSource(
        name=name,
        folder=str(run.root),
        base=study["base"],
        trigger=" / ".join(study["words"]) or "unknown",
        target=study["target"] or "each row's own target",
        layers=_layers(study["base"]),
        found=tuple(_found(run, analysis) for analysis in finished(run)),
    )


def _found(run: RunFolder, name: str) -> "RunAnalysis":
    from ..analysis.across.across import RunAnalysis

    inputs = run.manifest["stages"][STAGE + name]["inputs"]
    run.up_to_date(STAGE + name, inputs)  # an altered file is an error
    if old := run.stale(STAGE + name):
        raise RunError(f"{run.root}: {old}; make it again with loratomy probe --fresh")
    sizes: Any = inputs.get("settings", {}).get("sizes", {})
    return RunAnalysis(
        name=name,
        records=tuple(load_stage(run, STAGE + name)),
        target_tokens=sizes.get("target_tokens"),
    )


def _layers(base: str) -> int | None:
    """Layers of a base whose configuration is a file here; None for others."""
    try:
        config = read_json((base_folder(base) or Path(base)) / "config.json")
        count = config.get("text_config", config).get("num_hidden_layers")
    except (LoratomyError, AttributeError):  # a built-in base may be missing here
        return None
    return count if isinstance(count, int) and count > 0 else None


def _show(record: Across) -> None:
    """Tables, then what they support."""
    every = {(run.name, p.key): p for run in record.runs for p in run.profiles}
    keys = {p.key: p for p in every.values()}
    places: list[tuple[str, ...]] = []
    shapes: list[tuple[str, ...]] = []
    for question in dict.fromkeys(p.question for p in keys.values()):
        places.append((question, *[""] * len(record.runs)))
        shapes.append((question, *[""] * 5))
        for key, profile in keys.items():
            if profile.question == question:
                title = f"  {profile.title}"
                places.append((title, *(_place(every.get((r.name, key))) for r in record.runs)))
                shapes += [
                    (title, f"{a.first} · {a.second}", *_numbers(a))
                    for a in record.agreements
                    if a.key == key
                ]
    heads = [f"{run.name}\n{run.layers} layers" for run in record.runs]
    where = "depth at which each profile is largest, with 95 % band"
    stdout.print(table(where, ("profile", *heads), places))
    alike = "agreement: Spearman's rho over n layers, p among equally smooth profiles, q corrected"
    stdout.print(table(alike, ("profile", "runs", "n", "rho", "p", "q"), shapes))
    for line in record.findings or ("No agreement and no difference is supported by these runs.",):
        stdout.print(f"• {line}", markup=False, soft_wrap=True)
    for line in record.notes:
        say(f"note: {line}")


def _place(profile: Profile | None) -> str:
    if profile is None:
        return "–"
    mark = profile.landmark
    if mark.depth != mark.depth:
        return mark.how
    band = f"\n{mark.low:.2f}–{mark.high:.2f}" if mark.low == mark.low else ""
    return f"{mark.kind} {mark.depth:.2f}{band}"


def _numbers(item: Agreement) -> tuple[str, str, str, str]:
    if item.undefined:
        return str(item.n), item.undefined, "", ""
    return str(item.n), f"{item.rho:.2f}", _p(item.p), _p(item.q)


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"
