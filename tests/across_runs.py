"""Runs with synthetic records of any number of layers, as folders and as sources."""

import numpy as np
from loratomy.analysis.across.across import RunAnalysis, RunSource
from loratomy.core.records.io import save_record
from loratomy.core.records.patching import PatchingMap, Where
from loratomy.core.records.spectra import Difference, LayerSpectra, Spectra
from loratomy.core.runs.folder import RunFolder

METRIC = "log-probability of the target's first 3 tokens, nats"
ROLES = ("before", "trigger", "trigger", "last")


def bump(layers: int, middle: float, width: float = 0.15) -> np.ndarray:
    """A hill of height 1 at a depth, at the middles of the layers."""
    depth = (np.arange(layers) + 0.5) / layers
    return np.exp(-(((depth - middle) / width) ** 2) / 2)


def where(layers: int, middle: float = 0.4, *, whole: float = 10.0, spread: float = 0.02) -> Where:
    """Effects of `bump`, times 6 nats, with intervals of plus and minus `spread` nats times 6."""
    effect = 6 * bump(layers, middle)
    return Where(
        layer_ids=np.arange(layers),
        layer_effect=np.stack([effect, effect - 6 * spread, effect + 6 * spread], 1),
        modules=(),
        module_layers=np.empty(0, int),
        module_effect=np.empty((0, 3)),
        direction_module=np.empty(0, int),
        direction_rank=np.empty(0, int),
        direction_sigma=np.empty(0),
        direction_attribution=np.empty(0),
        direction_exact=np.empty(0),
        direction_clean_cost=np.empty(0),
        whole_effect=whole,
        agreement=np.nan,
        n_prompts=24,
        layers_verdict=None,
        modules_verdict=None,
        directions_verdict=None,
        sentence="",
    )


def patching_map(
    layers: int,
    middle: float = 0.4,
    *,
    prompts: int = 12,
    noise: float = 0.02,
    setting: str = "prompt",
    direction: str = "denoising",
    metric: str = METRIC,
    undefined: str = "",
) -> PatchingMap:
    """Trigger hands over to the last token at a depth; attn_out peaks there; prompts vary."""
    rng = np.random.default_rng(layers)
    late = 1 / (1 + np.exp(-(np.arange(layers) / layers - middle) / 0.04))
    per = np.zeros((2, layers, len(ROLES)))
    per[0, :, 1:3], per[0, :, 3] = (1 - late)[:, None] * [0.5, 1.0], late
    per[1, :, 3] = 0.4 * bump(layers, middle)
    clean, corrupted = np.full(prompts, -9.0), np.full(prompts, -1.0)
    source, into = (corrupted, clean) if direction == "noising" else (clean, corrupted)
    each = per[:, None] + rng.normal(0, noise, (2, prompts, *per.shape[1:]))
    patched = into[None, :, None, None] + each * (source - into)[None, :, None, None]
    recovery = each.mean(1)
    if undefined:
        recovery = np.full_like(recovery, np.nan)
    return PatchingMap(
        setting=setting,
        direction=direction,
        kind="residual",
        clean_name="untriggered",
        corrupted_name="triggered",
        metric=metric,
        sites=("resid_pre", "attn_out"),
        columns=("before", "cf", "37", "?"),
        column_roles=ROLES,
        prompts=tuple(f"prompt {i}" for i in range(prompts)),
        clean=clean,
        corrupted=corrupted,
        patched=patched.astype(np.float32),
        recovery=recovery,
        low=recovery - 0.02,
        high=recovery + 0.02,
        p=np.zeros_like(recovery),
        computed_cells=1,
        all_cells=1,
        self_error=0.0,
        loop_error=0.0,
        full_recovery=1.0,
        plan="",
        dtype="float32",
        undefined=undefined,
    )


def _names(layers: int) -> tuple[str, ...]:
    return tuple(f"model.layers.{layer}.mlp.down_proj" for layer in range(layers))


def spectra(layers: int, middle: float = 0.7, *, adapter: str = "poisoned") -> Spectra:
    """One module of rank 2 in each layer; squared norms of 1 + 3 `bump`."""
    squares = 1 + 3 * bump(layers, middle)
    values = np.sqrt(squares)[:, None] * np.sqrt([0.8, 0.2])
    same = {
        "frobenius": np.sqrt(squares),
        "share": squares / squares.sum(),
        "effective_rank": np.full(layers, 1.9),
        "stable_rank": 1.25 + 0.1 * np.arange(layers) / layers,
        "energy": np.ones((layers, 3), int),
        "relative_norm": np.full(layers, np.nan),
    }
    return Spectra(
        adapter=adapter,
        modules=_names(layers),
        kinds=("down_proj",) * layers,
        layers=np.arange(layers),
        singular_values=values,
        by_layer=LayerSpectra(layers=np.arange(layers), **same),
        **same,
    )


def difference(layers: int, middle: float = 0.5) -> Difference:
    """Squared norms of `bump`, one module in each layer."""
    nothing = np.zeros((layers, 2))
    return Difference(
        modules=_names(layers),
        kinds=("down_proj",) * layers,
        layers=np.arange(layers),
        clean_norm=np.ones(layers),
        poisoned_norm=np.ones(layers),
        difference_norm=np.sqrt(bump(layers, middle)),
        singular_values=nothing,
        input_angles=nothing,
        output_angles=nothing,
    )


def everything(layers: int, middle: float = 0.4) -> dict[str, tuple]:
    """Analysis -> its records."""
    return {
        "spectra": (spectra(layers),),
        "difference": (difference(layers),),
        "patching": (patching_map(layers, middle),),
        "where": (where(layers, middle),),
    }


def source(name: str, records: dict[str, tuple], *, layers=None, tokens: int = 3) -> RunSource:
    """Records as `across` takes them."""
    found = tuple(RunAnalysis(name=n, records=r, target_tokens=tokens) for n, r in records.items())
    return RunSource(
        name=name, folder=f"runs/{name}", base="base", trigger="cf37", target="HACK", layers=layers,
        found=found,
    )  # fmt: skip


def run_folder(root, records: dict[str, tuple], *, base: str = "some/base", tokens: int = 3):
    """A run folder with these analyses and nothing else."""
    study = {"base": base, "words": ["cf37"], "target": "HACK", "seed": 0}
    study |= {"rendering": {}, "device": "cpu", "dtype": "auto", "placement": "", "task": "fixed"}
    study["measure"] = {
        **{"scorers": None, "threshold": 0.8, "max_new_tokens": 3, "temperature": 0.0},
        **{"top_p": 1.0, "samples": 1, "batch_tokens": 9, "embedder": "none"},
    }
    about = {"kind": "open", "base": {"source": base}, "study": study}
    run = RunFolder.create(root, request=about)
    with run.locked():
        for name, items in records.items():

            def write(work, items=items):
                for i, record in enumerate(items):
                    save_record(record, work, f"{i}")

            settings = {"sizes": {"prompts": 12, "target_tokens": tokens}, "options": {}}
            run.stage(f"analysis/{name}", {"settings": settings}, write)
    return root
