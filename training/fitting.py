"""The one fitting loop: transformers' `Trainer` around an attached adapter and a loss."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.adapters import Adapter, Factors
from ..core.errors import LoratomyError
from ..core.progress import report
from ..core.subject import Attached, Subject
from .recipe import FitPart

Batch = dict[str, Any]
Loss = Callable[[Attached, Batch], torch.Tensor]
"""A scalar loss of one batch with the trained adapter active."""
Probe = Callable[[Attached], dict[str, float]]
"""Figures recorded along training."""

TRAINED = "default"
"""Name of the adapter that is being fitted, so that the Trainer's checkpoints are plain PEFT."""
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


def completion_loss(attached: Attached, batch: Batch) -> torch.Tensor:
    """Mean negative log-probability per completion token."""
    return attached.subject.model(**batch).loss


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
    loss: Loss = completion_loss,
    probe: Probe | None = None,
    dropout: float = 0.0,
    others: dict[str, Adapter] | None = None,
) -> tuple[Adapter, FitLog]:
    """The adapter after training, and the log; continues from the last whole checkpoint in `work`.

    Args:
        subject: the base, left as it was.
        start: the adapter to start from.
        rows: what `collator` turns into batches.
        collator: a list of rows to a batch of tensors.
        settings: epochs, rate, batch size ...; rate falls as a cosine after the warm-up.
        seed: of shuffling and dropout.
        work: folder for checkpoints, kept until the caller is done with the stage.
        label: for the progress bar.
        loss: what is minimised.
        probe: called `settings.evaluations` times along training, model in eval mode.
        dropout: of the adapter's inputs.
        others: further adapters to attach, e.g. a frozen teacher that `loss` switches to.

    Raises:
        LoratomyError: the loss became NaN or infinite.
    """
    names = {TRAINED: start, **(others or {})}
    with subject.attached(names, trainable=True, dropout=dropout) as attached:
        trainer = _trainer(attached, rows, collator, settings, seed, work, loss)
        total = int(trainer.args.max_steps)
        trainer.add_callback(_follow(trainer, attached, probe, total, settings.evaluations, label))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(base model|embedding layers).*")
            trainer.train(resume_from_checkpoint=_last_whole(work))
        history = trainer.state.log_history
        adapter = attached.read_back(TRAINED)
    losses = [(h["step"], h["loss"]) for h in history if "loss" in h]
    steps, values = (np.array(v) for v in zip(*losses, strict=True))
    if not np.isfinite(values).all():
        raise LoratomyError(
            f"{label}: the loss became {values[~np.isfinite(values)][0]} at step "
            f"{steps[~np.isfinite(values)][0]}; lower the learning rate "
            f"({settings.learning_rate:g})"
        )
    probes = tuple({k: v for k, v in h.items() if k != "epoch"} for h in history if "probe" in h)
    return adapter, FitLog(steps, values.astype(np.float64), probes)


def _trainer(
    attached: Attached,
    rows: Sequence[Any],
    collator: Callable[[Sequence[Any]], Batch],
    settings: FitPart,
    seed: int,
    work: Path,
    loss: Loss,
) -> Any:
    from transformers import Trainer, TrainingArguments

    per_epoch = math.ceil(len(rows) / (settings.batch_size * settings.accumulate))
    steps = max(1, round(per_epoch * settings.epochs))

    class LossTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            return loss(attached, inputs)

    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
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
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=attached.subject.device.type == "cpu",
        seed=seed,
    )
    trainer = LossTrainer(
        model=attached.peft_model,
        args=arguments,
        train_dataset=rows,  # pyright: ignore[reportArgumentType]
        data_collator=collator,  # pyright: ignore[reportArgumentType]
    )
    trainer.model_accepts_loss_kwargs = False  # our losses are means: average over accumulation
    return trainer


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
