"""The Trainer behind `fit`: losses counted over whole steps, checkpoints, what stops it."""

import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any, cast

import torch

from ..core import processes
from ..core.adapter.safety import WEIGHTS
from ..core.adapter.stored import PREFIX
from ..core.errors import DataError, LoratomyError
from ..core.files.atomic import need_room
from ..core.model.batches import length_parts, widened
from ..core.model.subject import Attached, Subject
from ..core.progress import report
from ..core.stopping import Stopped, stop_if_wanted, wanted
from .objective import Batch, Objective
from .recipe import FitPart
from .resuming import Begun, mark

PASS_COST = {"cpu": 256, "cuda": 8192}
"""What a pass with gradients costs whatever is in it, in positions, by kind of device."""
PART_TOKENS = 16384
"""Most positions of a forward pass with gradients."""
Probe = Callable[[Attached], dict[str, float]]
"""Figures recorded along training."""

TRAINED = "default"
"""Name of the adapter that is being fitted, so that the Trainer's checkpoints are plain PEFT."""
LAST_GOOD = "last-good"
"""Folder beside the checkpoints: the factors before the loss stopped being a number."""


def steps_of(rows: int, settings: FitPart) -> int:
    """Optimiser steps of a fit on so many rows: whole steps per epoch, times the epochs, rounded.

    Args:
        rows: at least 1.
        settings: epochs, rows per batch and batches per step.
    """
    per_epoch = math.ceil(rows / (settings.batch_size * settings.accumulate))
    return max(1, round(per_epoch * settings.epochs))


def whole_steps(rows: Sequence[Any], size: int, seed: int) -> list[Any]:
    """The rows, filled up with rows drawn from them to a multiple of `size`.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError("there are no rows to fit on; give at least one")
    lacking, rng = -len(rows) % size, random.Random(seed)
    filled = list(rows)
    while lacking:
        more = rng.sample(list(rows), min(lacking, len(rows)))
        filled += more
        lacking -= len(more)
    return filled


@contextmanager
def as_forward(attached: Attached, objective: Objective) -> Iterator[None]:
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


class Watch:
    """Keeps the factors with which the loss was last finite, and stops when it no longer is."""

    def __init__(self, attached: Attached, work: Path, label: str, rate: float) -> None:
        self._attached, self._work, self._label, self._rate = attached, work, label, rate
        self._trained = [p for p in attached.peft_model.parameters() if p.requires_grad]
        self._last_finite: list[torch.Tensor] = []

    def gradients(self, step: int) -> None:
        """Keep the factors before a step, which every earlier loss left finite.

        Stops where the gradients are no numbers; the same in all processes.
        """
        if not self._last_finite:
            self._last_finite = [p.detach().clone() for p in self._trained]
        for kept, p in zip(self._last_finite, self._trained, strict=True):
            kept.copy_(p.detach())
        found = [p.grad for p in self._trained if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(found)
        if not torch.isfinite(norm):
            self.stop(f"the gradient became {float(norm):g}", step)

    def stop(self, what: str, step: int) -> None:
        """Write the last good state, once, and raise."""
        line = (
            f"{self._label}: {what} at step {step} at the learning rate {self._rate:g}; lower it "
            "and begin anew (--fresh)"
        )
        if self._last_finite:
            line += f" (the last good state is kept in {self._work / LAST_GOOD})"
            if processes.first():
                self._write()
        raise LoratomyError(line)

    def _write(self) -> None:
        from ..core.adapter.factors import write_adapter

        with torch.no_grad():
            for kept, p in zip(self._last_finite, self._trained, strict=True):
                p.copy_(kept)
        source = self._attached.subject.source
        write_adapter(self._attached.read_back(TRAINED), self._work / LAST_GOOD, base=source)


def in_parts(
    collator: Callable[[Sequence[Any]], Batch], subject: Subject, *, splits: bool
) -> Callable[[Sequence[Any]], list[Batch]]:
    """A collator of a batch's rows into parts of like length; gradients add up to the same.

    Args:
        collator: a list of rows to a batch of tensors.
        subject: the model, on its device and in the format that it runs in.
        splits: False for one part; so too where rows have no length.
    """
    fixed = PASS_COST.get(subject.device.type, max(PASS_COST.values()))

    def collate(rows: Sequence[Any]) -> list[Batch]:
        if not splits or not all(hasattr(row, "__len__") for row in rows):
            return [widened(collator(rows), subject)]
        parts = length_parts([len(row) for row in rows], fixed=fixed, most=PART_TOKENS)
        made = (collator([rows[i] for i in sorted(part)]) for part in parts)
        return [widened(batch, subject) for batch in made]

    return collate


def arguments_of(
    settings: FitPart,
    *,
    steps: int,
    device: torch.device,
    caches: bool,
    seed: int,
    work: Path,
    name: str,
    schedule: str,
) -> Any:
    """The `TrainingArguments` of a fit; gradients are clipped at a norm of 1.

    Args:
        settings: epochs, rate, batch size ...
        steps: optimiser steps.
        device: where the model is.
        caches: the model's own ``use_cache``, which the Trainer writes to its config.
        seed: of shuffling and dropout.
        work: folder for checkpoints.
        name: of the fit in the trackers.
        schedule: ``cosine`` or ``constant``.

    Raises:
        LoratomyError: a batch that the processes cannot share evenly, or a GPU other than the
            first visible one.
    """
    from transformers import TrainingArguments

    count = processes.count()
    if settings.batch_size % count:
        raise LoratomyError(
            f"{count} processes cannot share a batch of {settings.batch_size} rows evenly; "
            f"take a batch_size that {count} divides"
        )
    if device.type == "cuda" and device.index and count == 1:  # the Trainer would move the model
        raise LoratomyError(
            f"a fit runs on the first visible GPU, not on {device}: set "
            f"CUDA_VISIBLE_DEVICES={device.index} and give --device cuda"
        )
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=steps,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size // count,
        gradient_accumulation_steps=settings.accumulate,
        lr_scheduler_type="cosine" if schedule == "cosine" else "constant_with_warmup",
        warmup_steps=math.ceil(steps * settings.warmup),
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        logging_steps=max(1, steps // 60),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=max(1, steps // 4),
        save_total_limit=2,
        report_to="none",
        run_name=name,
        project="loratomy",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=device.type == "cpu",
        use_cache=caches,
        seed=seed,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process, one GPU: no DataParallel
    return arguments


class _Resuming:
    """What a Trainer keeps over an interruption besides its own checkpoints."""

    args: Any
    accelerator: Any
    _globalstep_last_logged: int
    fit: str
    """What is fitted on what, see `identity`."""
    begun: Begun | None
    """The checkpoint that is taken up."""
    open_loss: Any = 0.0
    """Sum of the losses since the last one that was logged."""

    def should_end(self) -> bool:
        """Whether any of the processes got a signal to end."""
        if self.args.world_size == 1:
            return wanted()
        here = torch.tensor(float(wanted()), device=self.args.device)
        return bool(float(self.accelerator.reduce(here, "sum")))

    def _maybe_log_save_evaluate(self, tr_loss: Any, *more: Any, **given: Any) -> None:
        if self.begun is not None:  # the mean since the last log, also over an interruption
            tr_loss += self.begun.loss
            self._globalstep_last_logged, self.begun = self.begun.logged, None
        self.open_loss = tr_loss
        cast(Any, super())._maybe_log_save_evaluate(tr_loss, *more, **given)


def loss_trainer() -> type[Any]:
    """The Trainer with a loss whose terms are means over all rows of a step, however split."""
    from transformers import Trainer

    class LossTrainer(_Resuming, Trainer):
        attached: Attached
        objective: Objective
        watch: Watch
        clock: float
        """When training began, on the clock of this process; before it, where a part was done in an
        earlier one."""
        loss_is_scaled_for_ga = True  # by the counts of the whole step

        def get_batch_samples(
            self, epoch_iterator: Any, num_batches: int, device: Any
        ) -> tuple[list[Any], Any]:
            samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            every = [self.objective.counts(part) for parts in samples for part in parts]
            counts = torch.stack(every).sum(0)
            return samples, self.accelerator.reduce(counts.to(device), "sum")

        def training_step(self, model: Any, inputs: list[Batch], *counts: Any) -> torch.Tensor:
            *parts, last = inputs
            with self.accelerator.no_sync(model):
                losses = [super(LossTrainer, self).training_step(model, p, *counts) for p in parts]
            return torch.stack([*losses, super().training_step(model, last, *counts)]).sum()

        def compute_loss(self, model: Any, inputs: Any, *_: Any, **given: Any) -> Any:
            loss = model(inputs, given["num_items_in_batch"])
            wrong: Any = (~torch.isfinite(loss.detach())).float()
            if self.args.world_size > 1:  # all processes stop together
                wrong = self.accelerator.reduce(wrong, "sum")
            if float(wrong):
                step = self.state.global_step + 1
                self.watch.stop(f"the loss became {float(loss.detach()):g}", step)
            return loss * self.args.world_size  # the processes' gradients are averaged

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            """The trained adapter alone, as plain PEFT; what else is attached never changes."""
            if self.args.should_save:
                trained = [p for p in self.attached.peft_model.parameters() if p.requires_grad]
                size = sum(p.nbytes for p in trained)  # the optimiser holds two more of each
                need_room(Path(self.args.output_dir), 3 * size)
                self.attached.peft_model.save_pretrained(output_dir, selected_adapters=[TRAINED])

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            from safetensors.torch import load_file

            stored = load_file(Path(resume_from_checkpoint) / WEIGHTS)
            parameters = dict(self.attached.subject.model.named_parameters())
            with torch.no_grad():
                for pair in self.attached.factor_names(TRAINED).values():
                    for name in pair:
                        key = PREFIX + name.replace(f".{TRAINED}.weight", ".weight")
                        key = key.removesuffix(f".{TRAINED}")  # an embedding's have no more
                        parameters[name].copy_(stored[key])

    return LossTrainer


def follow(
    trainer: Any,
    attached: Attached,
    *,
    probe: Probe | None,
    marks: Collection[int],
    label: str,
) -> Any:
    """The callback that reports progress, probes at marked steps and marks whole checkpoints."""
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)

    class Follow(TrainerCallback):
        stopping = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if probe and 0 in marks and state.global_step == 0:
                self._record(0)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.watch.gradients(state.global_step + 1)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            report(label, state.global_step, args.max_steps)
            if probe and state.global_step in marks:
                self._record(state.global_step)
            if trainer.should_end():
                self.stopping = control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.accelerator.wait_for_everyone()  # each process writes its random state
            if state.is_world_process_zero:
                mark(
                    Path(args.output_dir) / f"checkpoint-{state.global_step}",
                    fit=trainer.fit,
                    seconds=time.perf_counter() - trainer.clock,
                    loss=float(trainer.open_loss),
                    logged=trainer._globalstep_last_logged,
                )
            if self.stopping:
                stop_if_wanted()
                raise Stopped(SIGTERM)  # another of the processes got the signal

        def _record(self, step: int) -> None:
            training = attached.subject.model.training
            attached.peft_model.eval()
            figures = probe(attached) if probe else {}
            attached.peft_model.train(training)
            trainer.state.log_history.append({"probe": 1.0, "step": step, **figures})

    return Follow()
