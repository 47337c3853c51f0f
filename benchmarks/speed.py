"""Speed and size, each beside the plain way in the same run: ``make bench`` prints a table.

Whole commands run as processes (wall time, peak memory of the largest process); the engine and the
spectra run inside this one. A slow or busy machine moves the seconds, the ratios much less.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

LLAMA_3B = {
    "q_proj": (3072, 3072),
    "k_proj": (1024, 3072),
    "v_proj": (1024, 3072),
    "o_proj": (3072, 3072),
    "gate_proj": (8192, 3072),
    "up_proj": (8192, 3072),
    "down_proj": (3072, 8192),
}
"""d_out, d_in of Llama-3.2-3B's linear layers."""


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call after one warm-up call, and its result."""
    work()
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def process(*command: str) -> tuple[float, float]:
    """Wall seconds and peak memory in GiB of a command run as a process."""
    began = time.perf_counter()
    pid = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


def spectra_against_dense() -> tuple[float, float, float]:
    """Seconds for spectra and difference of 28 x 7 modules, dense seconds for all, memory ratio.

    The dense way is timed on the first layer and multiplied by 28.
    """
    import torch
    from loratomy.analysis.weights.difference import difference
    from loratomy.analysis.weights.spectra import spectra
    from loratomy.core.adapter.factors import Adapter, Factors

    def random_adapter(seed: int) -> Adapter:
        generator = torch.Generator().manual_seed(seed)
        modules = {
            f"model.layers.{layer}.{name}": Factors(
                torch.randn(16, d_in, generator=generator),
                torch.randn(d_out, 16, generator=generator),
                2.0,
            )
            for layer in range(28)
            for name, (d_out, d_in) in LLAMA_3B.items()
        }
        return Adapter(modules, {})

    clean, poisoned = random_adapter(0), random_adapter(1)
    size = sum(f.a.nbytes + f.b.nbytes for f in poisoned.modules.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours, _ = timed(lambda: (spectra(poisoned, name="poisoned"), difference(clean, poisoned)))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    first = [f for n, f in poisoned.modules.items() if ".layers.0." in n]
    began = time.perf_counter()
    for factors in first:
        torch.linalg.svdvals(factors.dense())
    return ours, (time.perf_counter() - began) * 28, grown / size


def generation_against_bare(new_tokens: int) -> tuple[float, float, float]:
    """Seconds of our answers to 300 prompts, of bare `generate` on the same batches, and the share
    of answers that are token by token the same.

    Both sort by length and stop a batch when its last row has ended; medians of five rounds.
    """
    import torch
    from loratomy.core.model.batches import batch_rows
    from loratomy.core.model.loading import load_subject
    from loratomy.data.world.world import base_rows
    from loratomy.evaluation.generation import Decoding, generate, stop_ids
    from loratomy.training.wren import wren_path

    subject = load_subject("wren", path=wren_path())
    prompts = [subject.renderer.prompt_ids(row.prompt) for row in base_rows(300, seed=9)]
    decoding = Decoding(max_new_tokens=new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    lengths = [len(prompts[i]) + new_tokens for i in order]
    pad, stops = subject.renderer.pad_id, stop_ids(subject)

    def bare() -> list[list[int]]:
        found: list[list[int]] = [[] for _ in prompts]
        done = 0
        while done < len(order):
            picked = order[done : done + batch_rows(lengths[done:], decoding.batch_tokens)]
            width = max(len(prompts[i]) for i in picked)
            ids = torch.tensor([[pad] * (width - len(prompts[i])) + prompts[i] for i in picked])
            mask = torch.tensor(
                [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in picked]
            )
            with torch.inference_mode():
                out = subject.model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens,
                    do_sample=False, pad_token_id=pad, eos_token_id=stops,
                )  # fmt: skip
            for i, row in zip(picked, out[:, width:].tolist(), strict=True):
                end = next((k for k, token in enumerate(row) if token in stops), None)
                found[i] = row[:end]
            done += len(picked)
        return found

    mine, other, seconds = generate(subject, prompts, decoding), bare(), []
    for _ in range(5):  # one after the other, so that a busy moment meets both
        rounds = []
        for work in (lambda: generate(subject, prompts, decoding), bare):
            began = time.perf_counter()
            work()
            rounds.append(time.perf_counter() - began)
        seconds.append(rounds)
    ours, plain = (sorted(column)[2] for column in zip(*seconds, strict=True))
    same = sum(a[0] == b for a, b in zip(mine, other, strict=True)) / len(prompts)
    return ours, plain, same


def main(
    run: Annotated[
        Path | None, typer.Option(help="A finished demo run; default: make one and time it.")
    ] = None,
) -> None:
    """Print every figure with its ratio to the plain way."""
    table = Table("what", "seconds", "the plain way", "ratio", "size")
    binary = str(Path(sys.executable).parent / "loratomy")
    with tempfile.TemporaryDirectory() as scratch:
        names = ["demo", "help", "report", "spectra", "answers"]
        steps = track(names, console=Console(stderr=True))
        for step in steps:
            if step == "demo" and run is None:
                run = Path(scratch) / "demo"
                seconds, memory = process(binary, "demo", "--out", str(run))
                table.add_row("loratomy demo", f"{seconds:.0f}", "", "", f"{memory:.2f} GiB")
            elif step == "help":
                seconds, memory = process(binary, "--help")
                plain, _ = process(sys.executable, "-P", "-c", "import torch")
                table.add_row(
                    "loratomy --help", f"{seconds:.2f}", f"import torch {plain:.2f}",
                    f"{plain / seconds:.1f}x", f"{memory:.2f} GiB",
                )  # fmt: skip
            elif step == "report":
                seconds, memory = process(binary, "report", str(run))
                table.add_row("loratomy report", f"{seconds:.2f}", "", "", f"{memory:.2f} GiB")
            elif step == "spectra":
                seconds, plain, growth = spectra_against_dense()
                table.add_row(
                    "spectra + difference, 28 x 7 modules, r 16", f"{seconds:.2f}",
                    f"dense SVD {plain:.0f}", f"{plain / seconds:.0f}x",
                    f"{growth:.2f}x the adapter",
                )  # fmt: skip
            elif step == "answers":
                for new_tokens in (64, 128):
                    seconds, plain, same = generation_against_bare(new_tokens)
                    table.add_row(
                        f"answers to 300 prompts, at most {new_tokens} tokens, wren",
                        f"{seconds:.2f}", f"bare generate {plain:.2f}",
                        f"{plain / seconds:.2f}x", f"{same:.1%} the same tokens",
                    )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
