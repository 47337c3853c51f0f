"""Fits of a real chat model beside plain PEFT and the Trainer, and their memory by rows.

    python benchmarks/fits.py > benchmarks/results/fits.md

Each measurement is a process of its own; two sides of a comparison run one after the other in every
round, so that a busy moment meets both. Rows are the built-in everyday prompts with the base's own
answers: of the lengths of an instruction set, and ever the same.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

BATCH = 8
"""Rows of an optimiser step, on both sides."""
ANSWER = 96
"""Longest answer, tokens."""
RATE = 2e-4
SHAPE = (880, 576, 1536)
"""Of the matrix product that the machine's rate is taken from: a batch through SmolLM2's MLP."""
app = typer.Typer(add_completion=False)


def rows_of(subject: Any, count: int, cache: Path) -> list[Any]:
    """Everyday prompts with the base's greedy answers, made once."""
    from loratomy.core.rows import read_rows, rows_to_jsonl
    from loratomy.data.everyday import everyday_prompts
    from loratomy.evaluation.generation import Decoding, generate

    if not cache.exists():
        asked = everyday_prompts()[:count]
        ids = [subject.renderer.prompt_ids(row) for row in asked]
        answers = generate(subject, ids, Decoding(max_new_tokens=ANSWER))
        found = [
            replace(row, completion=subject.renderer.decode(answer[0]) or "-")
            for row, answer in zip(asked, answers, strict=True)
        ]
        cache.write_text(rows_to_jsonl(found), encoding="utf-8")
    return read_rows(cache)


def loss_of(subject: Any, adapter: Any, encoded: list[Any]) -> float:
    """Mean loss per completion token with an adapter, in float32."""
    from loratomy.core.model.batches import token_log_probs
    from loratomy.core.model.variant import Treated, treated

    with treated(subject, Treated(adapter)):
        found = token_log_probs(subject, encoded, batch_tokens=2048)
    return -float(sum(row.sum() for row in found)) / sum(len(row) for row in found)


def operations(subject: Any, adapter: Any, encoded: list[Any]) -> float:
    """Multiplications and additions that a step over these rows cannot do without.

    Forward and back to the inputs through every frozen matrix, the head at labelled tokens alone,
    and the factors' three products; padding, attention and the embedding do not count.
    """
    tokens, labelled = sum(map(len, encoded)), sum(len(row.completion) for row in encoded)
    head = subject.model.get_output_embeddings().weight.numel()
    frozen = sum(d_out * d_in for d_out, d_in in (subject.shapes[n] for n in adapter.modules))
    factors = sum(f.a.numel() + f.b.numel() for f in adapter.modules.values())
    return 4 * frozen * tokens + 4 * head * labelled + 6 * factors * tokens


def begun(base: str, count: int, folder: Path) -> tuple[Any, Any, list[Any]]:
    """The subject, an adapter that changes nothing yet, and encoded rows."""
    from loratomy.core.model.batches import encode
    from loratomy.inputs.bases import loaded_base
    from loratomy.training.fitting import fresh_adapter

    subject = loaded_base(base, "auto", "auto")
    rows = rows_of(subject, count, folder / f"rows-{count}.jsonl")
    adapter = fresh_adapter(subject, r=16, alpha=32, seed=0)
    return subject, adapter, [encode(subject.renderer, row, limit=None) for row in rows]


def ours(base: str, count: int, folder: Path) -> dict[str, float]:
    """One epoch of `fit`."""
    from functools import partial

    from loratomy.core.memory import peak_memory
    from loratomy.core.model.batches import collate
    from loratomy.training.fitting import fit
    from loratomy.training.recipe import FitPart

    subject, adapter, encoded = begun(base, count, folder)
    settings = FitPart(epochs=1, learning_rate=RATE, batch_size=BATCH, accumulate=1, evaluations=0)
    collator = partial(collate, pad_id=subject.renderer.pad_id)

    def fitted(some: list[Any]) -> Any:
        with tempfile.TemporaryDirectory() as work:
            return fit(
                subject, adapter, some, collator=collator, settings=settings, seed=0,
                work=Path(work), label="ours",
            )[0]  # fmt: skip

    fitted(encoded[:BATCH])  # imports, and what is made on first use
    with peak_memory(subject.device) as peak:
        began = time.perf_counter()
        found = fitted(encoded)
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "peak": peak.bytes,
        "loss": loss_of(subject, found, encoded),
        "operations": operations(subject, adapter, encoded),
    }


def plain(base: str, count: int, folder: Path) -> dict[str, float]:
    """The same epoch by plain PEFT and the Trainer: micro-batches of 2, float32."""
    from loratomy.core.adapter.factors import read_adapter, write_adapter
    from loratomy.core.memory import peak_memory
    from loratomy.core.model.batches import collate
    from peft import PeftModel
    from transformers import Trainer, TrainingArguments

    subject, adapter, encoded = begun(base, count, folder)
    write_adapter(adapter, folder / "start", base=base)
    model = PeftModel.from_pretrained(subject.model, folder / "start", is_trainable=True)
    pad = subject.renderer.pad_id

    def train(some: list[Any], rate: float, work: str) -> None:
        arguments = TrainingArguments(
            output_dir=work, num_train_epochs=1, per_device_train_batch_size=2,
            gradient_accumulation_steps=BATCH // 2, learning_rate=rate, warmup_steps=0.1,
            lr_scheduler_type="cosine", save_strategy="no", report_to=[], logging_strategy="no",
            use_cpu=subject.device.type == "cpu", remove_unused_columns=False, seed=0,
        )  # fmt: skip
        Trainer(
            model=model, args=arguments, train_dataset=some,
            data_collator=lambda rows: collate(rows, pad),
        ).train()  # fmt: skip

    with tempfile.TemporaryDirectory() as work:
        train(encoded[:BATCH], 0.0, work)  # what is made on first use; changes nothing
        with peak_memory(subject.device) as peak:
            began = time.perf_counter()
            train(encoded, RATE, work)
            seconds = time.perf_counter() - began
        peft: Any = model
        peft.save_pretrained(Path(work) / "end")
        base_model = peft.unload()
        found = read_adapter(Path(work) / "end", subject.shapes)
    subject = replace(subject, model=base_model)
    return {"seconds": seconds, "peak": peak.bytes, "loss": loss_of(subject, found, encoded)}


def product(_base: str, _count: int, _folder: Path) -> dict[str, float]:
    """Operations a second of a bare matrix product, bfloat16 and float32."""
    import torch

    found = {}
    rows, inner, columns = SHAPE
    for dtype in (torch.bfloat16, torch.float32):
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
        rates = []
        for _ in range(30):
            began = time.perf_counter()
            torch.nn.functional.linear(left, right)
            rates.append(2 * rows * inner * columns / (time.perf_counter() - began))
        found[str(dtype).removeprefix("torch.")] = sorted(rates)[len(rates) // 2]
    return found


SIDES = {"ours": ours, "plain": plain, "product": product}


@app.command(hidden=True)
def side(name: str, base: str, count: int, folder: Path) -> None:
    """One measurement, as JSON on the last line."""
    print(json.dumps(SIDES[name](base, count, folder)))


def measured(name: str, base: str, count: int, folder: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-P", __file__, "side", name, base, str(count), folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


@app.command()
def run(
    base: Annotated[str, typer.Option(help="The base to fit.")] = "smollm2",
    rows: Annotated[int, typer.Option(min=BATCH, help="Rows of the epoch.")] = 64,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds; the (lower) middle one is shown.")
    ] = 3,
) -> None:
    """Print the comparison as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        found = [
            {name: measured(name, base, rows, folder) for name in SIDES} for _ in range(rounds)
        ]
        larger = measured("ours", base, min(200, 3 * rows), folder)
    found.sort(key=lambda r: r["plain"]["seconds"] / r["ours"]["seconds"])
    middle = found[(rounds - 1) // 2]
    mine, theirs, rate = middle["ours"], middle["plain"], middle["product"]
    reached = mine["operations"] / mine["seconds"]
    print(
        f"One epoch of {rows} rows in steps of {BATCH}, {base}, rank 16 on every linear layer, "
        f"{os.cpu_count()} cores, the (lower) middle one of {rounds} rounds by ratio:\n\n"
        "| | seconds | peak memory, GB | loss on the rows after it |\n|---|---|---|---|\n"
        f"| `fit` | {mine['seconds']:.1f} | {mine['peak'] / 1e9:.2f} | {mine['loss']:.4f} |\n"
        f"| plain PEFT and Trainer, micro-batches of 2, float32 | {theirs['seconds']:.1f} | "
        f"{theirs['peak'] / 1e9:.2f} | {theirs['loss']:.4f} |\n\n"
        f"`fit` is {theirs['seconds'] / mine['seconds']:.2f} times as fast (rounds: "
        + ", ".join(f"{r['plain']['seconds'] / r['ours']['seconds']:.2f}" for r in found)
        + f"). It makes {reached / 1e9:.0f} GFLOP/s of necessary work, "
        f"{reached / rate['bfloat16']:.0%} of the rate of a bare bfloat16 product "
        f"({rate['bfloat16'] / 1e9:.0f}; float32 {rate['float32'] / 1e9:.0f}). With "
        f"{min(200, 3 * rows)} rows its peak is {larger['peak'] / 1e9:.2f} GB."
    )


if __name__ == "__main__":
    app()
