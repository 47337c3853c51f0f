"""TSBD's two observations, for LoRA: which neurons unlearning changes, and which are active."""

import random
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from ...core.adapter.factors import Adapter
from ...core.config import Config
from ...core.errors import DataError
from ...core.model.batches import Encoded
from ...core.model.subject import Subject
from ...core.records.neurons import Association, NeuronActivity, NeuronChange, Unlearning
from ..analyses import ANALYSES, CLEAN_ROWS, TRIGGER, Analysis
from ..localisation.gates import Directions, directions_of
from ..material import Material
from ..weights.spectra import expanded, names_and_layers
from .activity import activity, trainable_weights
from .ascent import Ascent, balanced, direction_change, row_change, row_sums, unlearn
from .correlation import association

ABOUT = {
    "clean": "clean prompts with their completions",
    "poison": "triggered prompts with the target's first tokens",
    "control": "the clean prompts with the tokens of all their completions dealt out at random",
}


def dealt(rows: Sequence[Encoded], *, seed: int) -> list[Encoded]:
    """The same prompts and completion lengths with all completion tokens shuffled among them."""
    tokens = [token for row in rows for token in row.completion]
    random.Random(seed).shuffle(tokens)
    rest = iter(tokens)
    return [Encoded(row.prompt, [next(rest) for _ in row.completion]) for row in rows]


def neuron_change(
    subject: Subject,
    adapter: Adapter,
    triggered: Sequence[Encoded],
    clean: Sequence[Encoded],
    *,
    ascent: Ascent,
    seed: int,
) -> NeuronChange:
    """Neuron weight change under clean, poison and control unlearning, and how far they agree.

    TSBD (arXiv 2405.20291, section 3) finds that in CNNs the neurons that poison unlearning changes
    most are those that clean unlearning changes most. Here what is unlearned are the adapter's
    factors. The control unlearns no behaviour, in as many steps as clean unlearning: what it
    shares with poison unlearning is a matter of the adapter's weights. NWC has no sign: clean
    unlearning can also change the backdoor's neurons by bringing the target out, hence the signed
    change of the singular directions beside it.

    Args:
        subject: the base.
        adapter: the poisoned adapter.
        triggered: triggered prompts with the target's first tokens.
        clean: clean prompts with completions.
        ascent: how to unlearn.
        seed: of the control's tokens and of the resampling.

    Raises:
        AdapterError: dW is zero everywhere.
        DataError, LoratomyError: see `unlearned.unlearn`.
    """
    if not triggered or not clean:
        raise DataError("unlearning needs triggered and clean prompts; one of the sets is empty")
    trainable_weights(subject, list(adapter.modules))  # what cannot be done is said at once
    start = balanced(adapter)
    directions = directions_of(start)
    sets = {"clean": clean, "poison": triggered, "control": dealt(clean, seed=seed)}
    unlearnings: list[Unlearning] = []
    changes: list[_Changes] = []
    for name, rows in sets.items():
        how = ascent
        if name == "control":  # there is nothing to collapse
            how = Ascent(
                steps=max(1, unlearnings[0].steps),
                stride=ascent.stride,
                collapse=0.0,
                batch_size=ascent.batch_size,
            )
        # A target is gone with its first token, an answer is not: hence tokens against whole ones.
        made, record = unlearn(
            subject,
            start,
            rows,
            name=name,
            about=ABOUT[name],
            ascent=how,
            whole=name == "poison",
        )
        unlearnings.append(record)
        changes.append(_changes(start, made, directions, some=record.steps > 0))
    nwc, strength, off = (np.stack(part) for part in zip(*changes, strict=True))
    modules, kinds, layers = names_and_layers(list(expanded(start)))
    sizes = [row_sums(f) for f in expanded(start).values()]
    neuron_module = np.repeat(np.arange(len(sizes)), [len(s) for s in sizes])
    size = np.concatenate([s.numpy() for s in sizes])
    direction_module = _module_of(directions, modules)
    tables = {
        "neurons": (nwc, size, neuron_module),
        "strength": (np.abs(strength), directions.sigma, direction_module),
        "signed": (strength, directions.sigma, direction_module),
        "off": (off, directions.sigma, direction_module),
    }
    return NeuronChange(
        modules=modules,
        kinds=kinds,
        layers=layers,
        unlearnings=tuple(unlearnings),
        neuron_module=neuron_module,
        size=size.astype(np.float32),
        nwc=nwc.astype(np.float32),
        direction_module=direction_module,
        direction_place=directions.place,
        direction_sigma=directions.sigma,
        strength=strength,
        off=off,
        associations=_associations(tables, unlearnings, layers, seed=seed),
        undefined="; ".join(
            f"{u.name} unlearning: none of the {'completions' if u.whole else 'tokens'} is the "
            "model's first choice, so there is nothing to unlearn"
            for u in unlearnings
            if u.steps == 0
        ),
    )


_Changes = tuple[np.ndarray, np.ndarray, np.ndarray]


def _changes(start: Adapter, made: Adapter, directions: Directions, *, some: bool) -> _Changes:
    """NWC by neuron, change of strength and the rest by direction; NaN where nothing was done."""
    nwc, strength, off = [], [], []
    for m, (name, before) in enumerate(start.modules.items()):
        after = made.modules[name]
        nwc.append(row_change(before, after).flatten().numpy())
        own, rest = direction_change(before, after)
        here = np.flatnonzero(directions.module == m)
        place = directions.place[here]
        spots = (directions.expert[here], place) if before.fused else (place,)
        strength.append(own.numpy()[spots])
        off.append(rest.numpy()[spots])
    out = np.concatenate(nwc), np.concatenate(strength), np.concatenate(off)
    if not some:
        for part in out:
            part.fill(np.nan)
    return out


def _module_of(directions: Directions, modules: tuple[str, ...]) -> np.ndarray:
    """Index of each direction's module among the expanded names, ``[direction]``."""
    place = {name: i for i, name in enumerate(modules)}
    return np.array(
        [
            place[directions.names[m] + (f"#e{e}" if e >= 0 else "")]
            for m, e in zip(directions.module, directions.expert, strict=True)
        ]
    )


def _associations(
    tables: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    unlearnings: Sequence[Unlearning],
    layers: np.ndarray,
    *,
    seed: int,
) -> tuple[Association, ...]:
    """Clean with poison, control with poison, clean with control, for each table."""
    place = {u.name: i for i, u in enumerate(unlearnings) if u.steps}
    pairs = [("clean", "poison"), ("control", "poison"), ("clean", "control")]
    return tuple(
        association(
            over,
            (first, second),
            (values[place[first]], values[place[second]]),
            size=size,
            control=values[place["control"]] if "control" not in (first, second) else None,
            module=module,
            layers=layers,
            seed=seed,
        )
        for over, (values, size, module) in tables.items()
        for first, second in pairs
        if first in place and second in place
    )


class NeuronsConfig(Config):
    """Options of the analysis of neurons."""

    steps: int = Field(50, ge=1)
    """Most steps of an ascent."""
    stride: float = Field(0.02, gt=0, le=1)
    """Length of a step over the norm of all factors."""
    collapse: float = Field(0.1, gt=0, lt=1)
    """Stop when the share of right clean tokens, or of right targets, falls to this fraction of
    its start."""
    batch_size: int = Field(8, ge=1)
    """Rows at a time."""


def _run(material: Material, config: NeuronsConfig) -> dict[str, NeuronChange | NeuronActivity]:
    return {
        "change": neuron_change(
            material.subject,
            material.poisoned,
            material.targets,
            material.encoded_clean,
            ascent=Ascent(**config.model_dump()),
            seed=material.seed,
        ),
        "activity": activity(
            material.subject, material.poisoned, material.clean, material.encoded_clean
        ),
    }


ANALYSES.register("neurons")(
    Analysis(
        about="Neurons that clean and poison unlearning change most, and how active neurons are.",
        needs=(TRIGGER, CLEAN_ROWS),
        cost="up to 150 gradient steps over the prompts, then a backward pass for each clean one",
        source="TSBD, arXiv 2405.20291",
        config=NeuronsConfig,
        run=_run,
    )
)
