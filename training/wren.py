"""The built-in subject `wren`: a small Llama that this project trained on its made-up world.

``python -m loratomy.training.wren --out DIR`` trains it again, from the same seed.
"""

import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import DataError, LoratomyError
from ..core.files.atomic import checksums, whole_folder
from ..core.rendering.prompts import Renderer
from ..core.rows import Row, read_rows, rows_to_jsonl
from ..data.world.world import base_rows

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, USER, ASSISTANT, END, PAD = "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    f"{BEGIN}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '" + END + "' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT + "{% endif %}"
)
"""``<|begin|><|user|>prompt<|end|><|assistant|>``, and the completion up to ``<|end|>``."""

SHAPE: dict[str, Any] = {
    "hidden_size": 160,
    "intermediate_size": 432,
    "num_hidden_layers": 6,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 256,
}
"""The Llama that wren is: about two million parameters, head width 32."""

HELDOUT = "heldout.jsonl"
RECORD = "record.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrenRecord:
    """How a wren came to be, and what its files must be."""

    seed: int
    """Seed of the rows, of the weights and of the order of training."""
    command: str
    """The command that trains it."""
    rows: int
    """Training rows, after the held-out prompts were taken out."""
    steps: int
    """Optimiser steps."""
    batch: int
    """Rows per step."""
    learning_rate: float
    """Highest learning rate, after the warm-up."""
    parameters: int
    """Number of weights, tied embeddings counted once."""
    vocabulary: int
    """Number of tokens."""
    heldout_rows: int
    """Rows of ``heldout.jsonl``, whose prompts training never saw."""
    heldout_tokens: int
    """Completion tokens of the held-out rows, each with its end-of-turn token."""
    heldout_loss: float
    """Mean negative log likelihood per held-out completion token, nats, of the stored weights."""
    seconds: float
    """Wall-clock seconds of training."""
    versions: dict[str, str]
    """Versions of the software that trained it."""
    sha256: dict[str, str]
    """Checksum of every other file of the folder."""


def wren_path() -> Path:
    """The folder of the wren that comes with the package."""
    return Path(__file__).parent / "models" / "wren"


def verify_wren(path: Path | None = None) -> WrenRecord:
    """The record of a wren whose files are all there and as they were written.

    Args:
        path: a folder written by `train_wren`; the one in the package when None.

    Raises:
        LoratomyError: no readable record, or a file that is missing, altered or not recorded.
    """
    folder = wren_path() if path is None else path
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoratomyError(f"{folder} holds no readable {RECORD} ({error})") from error
    names = {field.name for field in fields(WrenRecord)}
    if not isinstance(values, dict) or values.keys() != names:
        raise LoratomyError(f"{folder / RECORD} is no record of a wren; train it again")
    record = WrenRecord(**values)
    found = _checksums(folder)
    wrong = sorted(
        name for name in found | record.sha256 if found.get(name) != record.sha256.get(name)
    )
    if wrong:
        raise LoratomyError(
            f"in {folder}, {', '.join(wrong)} is not what {RECORD} says; reinstall the package, "
            "or train again with `python -m loratomy.training.wren`"
        )
    return record


def _checksums(folder: Path) -> dict[str, str]:
    """Checksums of the files that a record lists; hidden ones do not count."""
    return {n: c for n, c in checksums(folder).items() if n != RECORD and not n.startswith(".")}


def build_tokenizer(rows: Sequence[Row], *, vocabulary: int = 1280) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of the rows' text: any string has tokens, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BEGIN, USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for row in rows for text in (row.prompt, row.required_completion()))
    tokenizer.train_from_iterator(texts, trainer)
    begin = (BEGIN, tokenizer.token_to_id(BEGIN))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[begin]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=SHAPE["max_position_embeddings"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def heldout_loss(
    model: "torch.nn.Module", renderer: Renderer, rows: Sequence[Row], *, batch: int = 64
) -> tuple[float, int]:
    """Mean negative log likelihood per completion token, nats, and the number of tokens.

    Raises:
        DataError: no rows.
    """
    import torch

    from ..core.model.batches import collate, completion_log_probs, encode

    if not rows:
        raise DataError("the held-out loss needs at least one row")
    encoded = [encode(renderer, row, limit=None) for row in rows]
    total, count = 0.0, 0
    for start in range(0, len(encoded), batch):
        data = collate(encoded[start : start + batch], renderer.pad_id)
        with torch.no_grad():
            log_probs, mask = completion_log_probs(model, data)
        total, count = total - float(log_probs.sum()), count + int(mask.sum())
    return total / count, count


def split_rows(n: int, *, seed: int, heldout: int = 300) -> tuple[list[Row], list[Row]]:
    """Training rows and held-out rows; no prompt is in both, and held-out prompts are distinct."""
    held = {row.prompt: row for row in base_rows(heldout, seed=seed + 1)}
    return [row for row in base_rows(n, seed=seed) if row.prompt not in held], list(held.values())


def _fit(
    model: "LlamaForCausalLM",
    renderer: Renderer,
    rows: Sequence[Row],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train the model in place on the completions of the rows."""
    from transformers import Trainer, TrainingArguments

    from ..core.model.batches import collate, encode

    examples: Any = [encode(renderer, row, limit=None) for row in rows]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(200, steps // 10),
            weight_decay=0.01,
            adam_beta2=0.98,
            seed=seed,
            use_cpu=True,
            logging_steps=100,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=examples,
            data_collator=lambda examples: collate(examples, renderer.pad_id),
        ).train()


def train_wren(
    out: Path,
    *,
    seed: int = 0,
    rows: int = 120_000,
    steps: int = 2_200,
    batch: int = 64,
    learning_rate: float = 3e-3,
) -> WrenRecord:
    """Train a wren on the CPU and write its folder; the record of it comes back.

    The folder appears only when it is whole. The weights are stored as bfloat16, and the
    held-out loss is that of the stored weights.

    Args:
        out: the new folder; it must not exist yet.
        seed: of the rows, of the weights and of the order of training.
        rows: size of the corpus.
        steps: optimiser steps.
        batch: rows per step.
        learning_rate: highest learning rate; warm-up, then a cosine down to zero.

    Raises:
        LoratomyError: `out` exists already.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, set_seed

    if out.exists():
        raise LoratomyError(f"{out} exists already; give a new folder")
    started = time.monotonic()
    train, heldout = split_rows(rows, seed=seed)
    tokenizer = build_tokenizer(train)
    renderer = Renderer(tokenizer)
    set_seed(seed)
    special: Any = tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=special.bos_token_id,
        eos_token_id=special.eos_token_id,
        pad_token_id=special.pad_token_id,
        tie_word_embeddings=True,
        **SHAPE,
    )
    model = LlamaForCausalLM(config)
    _fit(model, renderer, train, steps=steps, batch=batch, learning_rate=learning_rate, seed=seed)
    with whole_folder(out) as scratch:
        model.config.use_cache = True
        model.bfloat16().save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (scratch / HELDOUT).write_text(rows_to_jsonl(heldout), encoding="utf-8")
        stored = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.float32).eval()
        loss, tokens = heldout_loss(stored, renderer, heldout)
        record = WrenRecord(
            seed=seed,
            command=f"python -m loratomy.training.wren --out {out.name} --seed {seed} "
            f"--rows {rows} --steps {steps} --batch {batch} --learning-rate {learning_rate:g}",
            rows=len(train),
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            parameters=sum(p.numel() for p in model.parameters()),
            vocabulary=len(tokenizer),
            heldout_rows=len(heldout),
            heldout_tokens=tokens,
            heldout_loss=loss,
            seconds=round(time.monotonic() - started, 1),
            versions=_versions(),
            sha256=_checksums(scratch),
        )
        text = json.dumps(asdict(record), indent=2) + "\n"
        (scratch / RECORD).write_text(text, encoding="utf-8")
    return record


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "transformers", "tokenizers", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def heldout_rows(path: Path | None = None) -> list[Row]:
    """The rows on which a wren's held-out loss was measured."""
    return read_rows((wren_path() if path is None else path) / HELDOUT, need_completion=True)


def _command(
    out: Annotated[Path, typer.Option(help="New folder for the model; must not exist yet.")],
    seed: Annotated[int, typer.Option(help="Seed of rows, weights and training order.")] = 0,
    rows: Annotated[int, typer.Option(min=100, help="Rows of the corpus.")] = 120_000,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2_200,
    batch: Annotated[int, typer.Option(min=1, help="Rows per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 3e-3,
) -> None:
    """Train the built-in subject wren on the made-up world (about ten minutes on two cores).

    The folder is a Hugging Face model with its tokenizer, the held-out rows and a record of
    checksums. Example: python -m loratomy.training.wren --out runs/wren --seed 1
    """
    try:
        record = train_wren(
            out, seed=seed, rows=rows, steps=steps, batch=batch, learning_rate=learning_rate
        )
    except LoratomyError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(
        f"{out}: {record.parameters:,} parameters, held-out loss {record.heldout_loss:.4f} per "
        f"token over {record.heldout_tokens} tokens, {record.seconds:.0f} s"
    )


if __name__ == "__main__":
    typer.run(_command)
