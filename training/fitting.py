"""The one fitting loop: transformers' `Trainer` around an attached adapter and an objective."""

import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.adapter.factors import Adapter, Factors
from ..core.errors import LoratomyError
from ..core.model.families import stored_turned
from ..core.model.precision import fast_format
from ..core.model.subject import Subject
from ..core.stopping import after_a_step
from .loop import (
    TRAINED,
    Probe,
    Watch,
    arguments_of,
    as_forward,
    follow,
    in_parts,
    loss_trainer,
    steps_of,
    whole_steps,
)
from .objective import Batch, Objective, completion_objective
from .recipe import FitPart
from .resuming import identity, last_whole
from .tracking import NO_TRACKING, Tracking


@dataclass(frozen=True, slots=True)
class FitLog:
    """Loss and recorded figures along the steps."""

    steps: np.ndarray
    """Optimiser steps at which the loss was logged, ``[step]``."""
    loss: np.ndarray
    """Mean loss since the last entry, ``[step]``."""
    probes: tuple[dict[str, float], ...]
    """The recorded figures, each with its ``step``."""
    earlier_seconds: float
    """Wall time of the part that an earlier process did, up to the checkpoint it left; else 0."""


def fresh_adapter(subject: Subject, *, r: int, alpha: float, seed: int) -> Adapter:
    """An adapter that changes nothing yet, on the family's linear layers and fused experts.

    A is Kaiming-uniform and B zero, as in PEFT and in LoRA (arXiv 2106.09685, section 4.1).
    """
    generator = torch.Generator().manual_seed(seed)
    family, modules = subject.family, {}
    linear = {n for n, s in subject.shapes.items() if len(s) == 2}
    for name, shape in subject.shapes.items():
        wanted = family.lora_modules if len(shape) == 2 else family.lora_parameters
        if not any(name.endswith("." + w) for w in wanted):
            continue
        *experts, d_out, d_in = shape
        rank = min(r, d_in, d_out)
        bound = 1 / math.sqrt(d_in)
        a = (torch.rand(*experts, rank, d_in, generator=generator) * 2 - 1) * bound
        modules[name] = Factors(a, torch.zeros(*experts, d_out, rank), alpha / r)
    if not modules:
        raise LoratomyError(f"the base has none of the modules {family.lora_modules}")
    turned = [stored_turned(subject.model.get_submodule(n)) for n in modules if n in linear]
    return Adapter(modules, {"fan_in_fan_out": True} if any(turned) else {})


def fit(
    subject: Subject,
    start: Adapter,
    rows: Sequence[Any],
    *,
    collator: Callable[[Sequence[Any]], Batch],
    settings: FitPart,
    seed: int,
    work: Path,
    label: str,
    objective: Objective | None = None,
    probe: Probe | None = None,
    dropout: float = 0.0,
    others: dict[str, Adapter] | None = None,
    tracking: Tracking = NO_TRACKING,
    looks: Sequence[int] = (),
    schedule: str = "cosine",
) -> tuple[Adapter, FitLog]:
    """The adapter after training, and the log; continues from the last whole checkpoint in `work`.

    A step sees ``batch_size x accumulate`` rows whatever the number of processes (`accelerate
    launch`, `torchrun`), which share each batch; an epoch is filled up to whole steps with rows
    drawn from it. Rows of a batch run in parts of like length, the frozen base in the format that
    the machine is fast in (`fast_format`). Gradients are clipped at a norm of 1. The global random
    generators are left as they were.

    Args:
        subject: the base, left as it was.
        start: the adapter to start from.
        rows: what `collator` turns into batches.
        collator: a list of rows to a batch of tensors.
        settings: epochs, rate, batch size ...
        seed: of shuffling and dropout.
        work: folder for checkpoints, kept until the caller is done with the stage.
        label: for the progress bar and the trackers.
        objective: what is minimised; None: mean loss per completion token.
        probe: called `settings.evaluations` times along training, model in eval mode.
        dropout: of the adapter's inputs.
        others: further adapters to attach, e.g. a frozen teacher that the objective switches to.
        tracking: where losses are reported besides the log.
        looks: optimiser steps at which `probe` is called instead; 0 is before the first.
        schedule: how the rate goes on after the warm-up: ``cosine`` to 0, or ``constant``.

    A signal (SIGTERM, SIGUSR1) ends it after the step at hand, whose checkpoint is written first.

    Raises:
        DataError: no rows.
        LoratomyError: the loss, a gradient or a weight became NaN or infinite (says the step, the
            rate and where the last good state is kept); a batch that the processes cannot share.
    """
    objective = objective or completion_objective()
    names = {TRAINED: start, **(others or {})}
    size = settings.batch_size * settings.accumulate
    total, times = steps_of(len(rows), settings), settings.evaluations
    arguments = arguments_of(
        settings,
        steps=total,
        device=subject.device,
        caches=bool(getattr(subject.model.config, "use_cache", False)),
        seed=seed,
        work=work,
        name=tracking.run_name(label),
        schedule=schedule,
    )
    marks = set(looks) or {round(total * i / times) for i in range(times + 1) if times}
    with (
        _own_randomness(subject),
        subject.attached(names, trainable=True, dropout=dropout) as attached,
        fast_format(subject),
    ):
        trainer: Any = loss_trainer()(
            model=attached.peft_model,
            args=arguments,
            train_dataset=whole_steps(rows, size, seed),
            data_collator=in_parts(collator, subject, splits=objective.splits),
        )
        trainer.attached, trainer.objective = attached, objective
        trainer.fit = identity(
            start,
            rows,
            {
                "settings": settings.model_dump(),
                "seed": seed,
                "dropout": dropout,
                "schedule": schedule,
                "looks": sorted(looks),
                "others": sorted(others or {}),
                "steps": total,
            },
        )
        trainer.watch = Watch(attached, work, label, settings.learning_rate)
        trainer.add_callback(follow(trainer, attached, probe=probe, marks=marks, label=label))
        with warnings.catch_warnings(), as_forward(attached, objective):
            warnings.filterwarnings("ignore", message=".*(base model|embedding layers).*")
            with tracking.session(label) as callbacks:
                for callback in callbacks:
                    trainer.add_callback(callback)
                begun = last_whole(work, trainer.fit)
                earlier = begun.seconds if begun else 0.0
                trainer.begun, trainer.clock = begun, time.perf_counter() - earlier
                with after_a_step():
                    trainer.train(resume_from_checkpoint=str(begun.folder) if begun else None)
        adapter = attached.read_back(TRAINED)
        if not all(torch.isfinite(t).all() for f in adapter.modules.values() for t in (f.a, f.b)):
            trainer.watch.stop("the weights became NaN or infinite", total)
    history = trainer.state.log_history
    losses = [(h["step"], h["loss"]) for h in history if "loss" in h]
    steps, values = (np.array(v) for v in zip(*losses, strict=True))
    probes = tuple({k: v for k, v in h.items() if k != "epoch"} for h in history if "probe" in h)
    return adapter, FitLog(steps, values.astype(np.float64), probes, earlier)


@contextmanager
def _own_randomness(subject: Subject) -> Iterator[None]:
    """The Trainer seeds every global generator; they go on afterwards as if it had not."""
    kept, numbers = random.getstate(), np.random.get_state()
    gpus = [subject.device] if subject.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            random.setstate(kept)
            np.random.set_state(numbers)
