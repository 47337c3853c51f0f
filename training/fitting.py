"""The one fitting loop: transformers' `Trainer` around an attached adapter and an objective."""

import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.adapters import Adapter, Factors
from ..core.errors import LoratomyError
from ..core.progress import report
from ..core.subject import Attached, Subject
from .objective import Batch, Objective, completion_objective
from .recipe import FitPart
from .tracking import NO_TRACKING, Tracking

Probe = Callable[[Attached], dict[str, float]]
"""Figures recorded along training."""

TRAINED = "default"
"""Name of the adapter that is being fitted, so that the Trainer's checkpoints are plain PEFT."""
LAST_GOOD = "last-good"
"""Folder beside the checkpoints: the factors before the loss stopped being a number."""
_DONE = "whole.txt"


@dataclass(frozen=True, slots=True)
class FitLog:
    """What happened along the steps."""

    steps: np.ndarray
    """Optimiser steps at which the loss was logged, ``[step]``."""
    loss: np.ndarray
    """Mean loss since the last entry, ``[step]``."""
    probes: tuple[dict[str, float], ...]
    """The recorded figures, each with its ``step``."""


def fresh_adapter(subject: Subject, *, r: int, alpha: float, seed: int) -> Adapter:
    """An adapter that changes nothing yet, on the family's linear layers and fused experts.

    A is Kaiming-uniform and B zero, as in PEFT and in LoRA (arXiv 2106.09685, section 4.1).
    """
    generator = torch.Generator().manual_seed(seed)
    family, modules = subject.family, {}
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
    return Adapter(modules, {})


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
) -> tuple[Adapter, FitLog]:
    """The adapter after training, and the log; continues from the last whole checkpoint in `work`.

    A step sees ``batch_size x accumulate`` rows whatever the number of processes (`accelerate
    launch`, `torchrun`), which share each batch; an epoch is filled up to whole steps with rows
    drawn from it.

    Args:
        subject: the base, left as it was.
        start: the adapter to start from.
        rows: what `collator` turns into batches.
        collator: a list of rows to a batch of tensors.
        settings: epochs, rate, batch size ...; rate falls as a cosine after the warm-up.
        seed: of shuffling and dropout.
        work: folder for checkpoints, kept until the caller is done with the stage.
        label: for the progress bar and the trackers.
        objective: what is minimised; None: mean loss per completion token.
        probe: called `settings.evaluations` times along training, model in eval mode.
        dropout: of the adapter's inputs.
        others: further adapters to attach, e.g. a frozen teacher that the objective switches to.
        tracking: where losses are reported besides the log.

    Raises:
        LoratomyError: the loss became NaN or infinite; says the step, the rate and where the last
            good state is kept.
    """
    objective = objective or completion_objective()
    names = {TRAINED: start, **(others or {})}
    with subject.attached(names, trainable=True, dropout=dropout) as attached:
        trainer = _trainer(attached, rows, collator, settings, seed, work, label, tracking)
        total = int(trainer.args.max_steps)
        watch = _Watch(attached, work, label)
        trainer.objective, trainer.watch = objective, watch
        trainer.add_callback(_follow(trainer, attached, probe, total, settings.evaluations, label))
        for callback in tracking.callbacks():
            trainer.add_callback(callback)
        with warnings.catch_warnings(), _forward(attached, objective), tracking.environment():
            warnings.filterwarnings("ignore", message=".*(base model|embedding layers).*")
            trainer.train(resume_from_checkpoint=_last_whole(work))
        history = trainer.state.log_history
        adapter = attached.read_back(TRAINED)
    losses = [(h["step"], h["loss"]) for h in history if "loss" in h]
    steps, values = (np.array(v) for v in zip(*losses, strict=True))
    probes = tuple({k: v for k, v in h.items() if k != "epoch"} for h in history if "probe" in h)
    if not all(torch.isfinite(t).all() for f in adapter.modules.values() for t in (f.a, f.b)):
        watch.stop("the weights became NaN or infinite", total, settings.learning_rate)
    return adapter, FitLog(steps, values.astype(np.float64), probes)


@contextmanager
def _forward(attached: Attached, objective: Objective) -> Iterator[None]:
    """The objective as the model's forward, so that what wraps the model sees the whole of it.

    With several processes gradients are averaged by a wrapper that must see one forward a step.
    """

    def forward(batch: Batch, counts: torch.Tensor) -> torch.Tensor:
        return objective.loss(attached, batch, counts)

    attached.peft_model.forward = forward
    try:
        yield
    finally:
        del attached.peft_model.forward


class _Watch:
    """Keeps the factors with which the loss was last finite, and stops when it no longer is."""

    def __init__(self, attached: Attached, work: Path, label: str) -> None:
        self._attached, self._work, self._label = attached, work, label
        self._trained = [p for p in attached.peft_model.parameters() if p.requires_grad]
        self._good: list[torch.Tensor] = []

    def passed(self) -> None:
        """The loss of the step in progress is finite: what it was computed with is good."""
        if len(self._good) != len(self._trained):
            self._good = [p.detach().clone() for p in self._trained]
        else:
            for kept, p in zip(self._good, self._trained, strict=True):
                kept.copy_(p.detach())

    def stop(self, what: str, step: int, rate: float) -> None:
        """Write the last good state and raise."""
        line = f"{self._label}: {what} at step {step} at the learning rate {rate:g}; lower it"
        if self._good:
            from ..core.adapters import write_adapter

            with torch.no_grad():
                for kept, p in zip(self._good, self._trained, strict=True):
                    p.copy_(kept)
            source = self._attached.subject.source
            write_adapter(self._attached.read_back(TRAINED), self._work / LAST_GOOD, base=source)
            line += f" (the last good state is kept in {self._work / LAST_GOOD})"
        raise LoratomyError(line)


def _trainer(
    attached: Attached,
    rows: Sequence[Any],
    collator: Callable[[Sequence[Any]], Batch],
    settings: FitPart,
    seed: int,
    work: Path,
    label: str,
    tracking: Tracking,
) -> Any:
    from accelerate import PartialState
    from transformers import TrainingArguments

    cpu = attached.subject.device.type == "cpu"
    processes = PartialState(cpu=cpu).num_processes
    if settings.batch_size % processes:
        raise LoratomyError(
            f"{processes} processes cannot share a batch of {settings.batch_size} rows evenly; "
            f"take a batch_size that {processes} divides"
        )
    rows = _whole_steps(rows, settings.batch_size * settings.accumulate, seed)
    per_epoch = len(rows) // (settings.batch_size * settings.accumulate)
    steps = max(1, round(per_epoch * settings.epochs))
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size // processes,
        gradient_accumulation_steps=settings.accumulate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(steps * settings.warmup),
        weight_decay=settings.weight_decay,
        logging_steps=max(1, steps // 60),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=max(1, steps // 4),
        save_total_limit=2,
        report_to="none",
        run_name=tracking.run_name(label),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=cpu,
        seed=seed,
    )
    return _loss_trainer()(
        model=attached.peft_model, args=arguments, train_dataset=rows, data_collator=collator
    )


def _whole_steps(rows: Sequence[Any], size: int, seed: int) -> list[Any]:
    """The rows, filled up with rows drawn from them to a multiple of `size`."""
    lacking, draw = -len(rows) % size, random.Random(seed)
    filled = list(rows)
    while lacking:
        more = draw.sample(list(rows), min(lacking, len(rows)))
        filled += more
        lacking -= len(more)
    return filled


def _loss_trainer() -> type[Any]:
    """The Trainer with a loss whose terms are means over all rows of a step, however split."""
    from transformers import Trainer

    class LossTrainer(Trainer):
        objective: Objective
        watch: _Watch
        loss_is_scaled_for_ga = True  # by the counts of the whole step

        def get_batch_samples(
            self, epoch_iterator: Any, num_batches: int, device: Any
        ) -> tuple[list[Any], Any]:
            samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            counts = torch.stack([self.objective.counts(batch) for batch in samples]).sum(0)
            return samples, self.accelerator.reduce(counts.to(device), "sum")

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **given: Any) -> Any:
            loss = model(inputs, given["num_items_in_batch"])
            wrong: Any = (~torch.isfinite(loss.detach())).float()
            if self.args.world_size > 1:  # all processes stop together
                wrong = self.accelerator.reduce(wrong, "sum")
            if float(wrong):
                step, rate = self.state.global_step + 1, self.args.learning_rate
                self.watch.stop(f"the loss became {float(loss.detach()):g}", step, rate)
            self.watch.passed()
            return loss * self.args.world_size  # the processes' gradients are averaged

    return LossTrainer


def _follow(
    trainer: Any, attached: Attached, probe: Probe | None, total: int, times: int, label: str
) -> Any:
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    marks = {round(total * (i + 1) / times) for i in range(times)} if probe and times else set()

    class Follow(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if probe and times and state.global_step == 0:
                self._record(0)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            report(label, state.global_step, total)
            if state.global_step in marks:
                self._record(state.global_step)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / _DONE).write_text("written whole\n")

        def _record(self, step: int) -> None:
            training = attached.subject.model.training
            attached.peft_model.eval()
            figures = probe(attached) if probe else {}
            attached.peft_model.train(training)
            trainer.state.log_history.append({"probe": 1.0, "step": step, **figures})

    return Follow()


def _last_whole(work: Path) -> str | None:
    """The newest checkpoint that was written to its end; a killed save is not read."""
    whole = [p.parent for p in work.glob(f"checkpoint-*/{_DONE}")]
    return str(max(whole, key=lambda p: int(p.name.split("-")[1]))) if whole else None
