"""`loratomy extract`: from a merged model back to an adapter."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.console import out as stdout
from ..core.console import progress, say, say_json
from ..core.errors import LoratomyError
from ..core.files.outputs import check_folder_out, out_path
from ..core.runs.manifest import outside_runs
from ..inputs.adapters import ADAPTER_FILES, fetched
from ..inputs.bases import A_BASE, base_folder
from .tables.numbers import Numbers

if TYPE_CHECKING:
    from ..core.adapter.extraction import Extracted, Extraction
    from ..core.model.checkpoints import Checkpoint

RECORD = "extraction"
_FILES = (*ADAPTER_FILES, f"{RECORD}.json", f"{RECORD}.safetensors")
"""What an extraction writes."""
_OWN = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
"""Config fields that say nothing of what the weights do."""


def command(
    base: Annotated[str, typer.Option(help=f"Base model: {A_BASE}.")],
    merged: Annotated[str, typer.Option(help="Merged model: a folder or a hub id.")],
    out: Annotated[Path, typer.Option(help="Folder of the adapter to write.")],
    energy: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1,
            help="Share of each change's squared norm to keep, beyond rounding. Below 1 the "
            "weakest directions are lost, which may be those that matter.",
        ),
    ] = 1.0,
    rank_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="Keep at most this many directions of each matrix, the strongest; default: all, "
            "and more than 256 are an error.",
        ),
    ] = None,
    ignore_module: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Leave out this weight, which may differ in values or size or be missing in one "
            "model, e.g. embed_tokens, lm_head; repeat the option for several.",
        ),
    ] = None,
    other_dtype: Annotated[
        bool,
        typer.Option(
            "--other-dtype", help="Accept a base and a merged model in different number formats."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of a table.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace an earlier extraction.")] = False,
) -> None:
    """Recover a LoRA adapter that was merged into a model.

    Decomposes the change of every weight matrix into singular directions, keeps those that exceed
    rounding in the models' number format, and writes them as a plain PEFT adapter. Both models are
    read tensor by tensor.

    \b
    Example:
      loratomy extract --base ./llama --merged ./merged --out ./suspicious
    """
    from ..core.adapter.extraction import extract
    from ..core.model.checkpoints import open_checkpoint

    out = out_path(out)
    _check_out(out, fresh=fresh)
    sources = [open_checkpoint(_folder(name)) for name in (base, merged)]
    _check_configs(*sources)
    with progress():
        adapter, record = extract(
            *sources,
            names=(base, merged),
            model_type=str(sources[0].config.model_type),
            energy=energy,
            rank_limit=rank_limit,
            ignore_modules=ignore_module or [],
            other_dtype=other_dtype,
        )
    _write(adapter, record, sources[0], out)
    if as_json:
        say_json(record)
    else:
        _show(record)
    say(f"done: {out}; next: loratomy open --base {base} --adapter {out}")


def _check_out(out: Path, *, fresh: bool) -> None:
    check_folder_out(out)
    outside_runs(out)
    if not out.exists():
        return
    if not (out / f"{RECORD}.json").is_file():
        raise LoratomyError(f"{out} is there already and no extraction; give another --out")
    if not fresh:
        raise LoratomyError(f"{out} is there already; give another --out, or --fresh to replace it")


def _folder(source: str) -> Path:
    """Where a model's files are; a hub id is fetched, without pickles or code."""
    folder = base_folder(source) or Path(source)
    if folder.is_dir():
        return folder
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise LoratomyError(f"{source!r} is neither a model's folder nor a hub id (owner/name)")
    return fetched(source, ["*.json", "*.safetensors"], "model")


def _check_configs(base: "Checkpoint", merged: "Checkpoint") -> None:
    """Raise unless both are of one model type; say what else differs between their configs."""
    one, other = (c.config.to_dict() for c in (base, merged))
    if one["model_type"] != other["model_type"]:
        raise LoratomyError(
            f"the base is a {one['model_type']}, the merged model a {other['model_type']}"
        )
    fields = sorted((one.keys() | other.keys()) - set(_OWN))
    differ = [f for f in fields if one.get(f) != other.get(f)]
    for name in differ:
        say(
            f"warning: {name} is {one.get(name)} in the base's config and {other.get(name)} in the "
            "merged model's; no adapter carries that"
        )


def _write(adapter: Any, record: "Extraction", base: "Checkpoint", out: Path) -> None:
    """The adapter with its record, whole or not at all, once it has passed the gate."""
    from ..core.adapter.factors import read_adapter, write_adapter
    from ..core.files.atomic import own_files
    from ..core.records.io import save_record

    with own_files(out, own=_FILES, last=f"{RECORD}.json") as work:
        write_adapter(adapter, work, base=record.base)
        save_record(record, work, RECORD)
        read_adapter(work, base.linear)


def _show(record: "Extraction") -> None:
    from ..core.adapter.factors import kind_of

    one, other = record.dtypes
    kinds: dict[str, list[Extracted]] = {}
    for found in record.found:
        kinds.setdefault(kind_of(found.module), []).append(found)
    rows = [
        (
            kind,
            str(len(matrices)),
            _range([m.rank for m in matrices], "d"),
            _range([m.frobenius for m in matrices], ".3g"),
            f"{min(m.energy for m in matrices):.4%}",
            f"{max(m.residual for m in matrices):.1e}",
            f"{max(m.floor for m in matrices):.1e}",
        )
        for kind, matrices in kinds.items()
    ]
    Numbers(
        ("module", "matrices", "rank", "norm of dW", "kept", "left", "rounding"),
        rows,
        title=f"{len(record.found)} weight matrices changed above rounding",
        caption="kept: share of the squared norm; left: ||dW - BA|| / ||dW||; rounding: what of it "
        f"the number formats explain (base {one}, merged {other}); each "
        f"matrix is listed in {RECORD}.json",
    ).print(stdout)
    for line in _notes(record):
        say(line)


def _range(values: list[Any], form: str) -> str:
    low, high = (format(v, form) for v in (min(values), max(values)))
    return low if low == high else f"{low}–{high}"


def _notes(record: "Extraction") -> list[str]:
    """What the adapter leaves out, a line each."""
    lines = []
    if record.rounding:
        names = ", ".join(m.module for m in record.rounding[:3])
        lines.append(
            f"note: nothing but rounding changed in {len(record.rounding)} matrices, left out: "
            f"{names}{' ...' * (len(record.rounding) > 3)}"
        )
    if full := [m for m in record.found if m.rank == record.rank_limit and m.residual > m.floor]:
        lines.append(
            f"warning: {len(full)} matrices change in more than the {record.rank_limit} directions "
            f"kept; at least {min(m.energy for m in full):.1%} of their energy is in the adapter"
        )
    if record.ignored:
        lines.append(f"warning: changed and left out as requested: {', '.join(record.ignored)}")
    return lines
