"""Patching side by side, in one process: ours, a loop of hooked forwards, nnsight, TransformerLens.

Random Llamas of 8 layers, d_model 256. Every way fills the same grid of resid_pre cells; medians of
the rounds, ratios to ours, and the greatest difference of any cell from ours.

    pip install transformer-lens    # only for its line
    python benchmarks/patching.py --out benchmarks/results/patching.md

With a GPU, --llama measures Llama-3.2-3B's shapes (random bfloat16 weights, 64 prompts of 64
tokens, whole resid_pre grid) beside the rate of a plain matrix product.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from loratomy.analysis.patching.engine.batching import GIB, budget
from loratomy.analysis.patching.engine.cells import SweptCells
from loratomy.analysis.patching.engine.runs import PatchRun, Sweep
from loratomy.analysis.patching.engine.sweep import sweep
from loratomy.analysis.patching.sites import places
from loratomy.core.model.families import FAMILIES
from loratomy.core.model.subject import Attached, Subject
from loratomy.core.rendering.prompts import Renderer
from loratomy.training.fitting import fresh_adapter
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

LAYERS, WIDTH = 8, 256
GRIDS = (
    (512, 1, 24, range(1, 24)),
    (32000, 1, 24, range(1, 24)),
    (512, 8, 24, range(1, 24)),
    (512, 1, 96, range(82, 86)),
    (32000, 1, 96, range(82, 86)),
)
"""Size of the vocabulary, prompts, tokens of each, positions that differ."""


def make_subject(
    config: LlamaConfig, *, device: str = "cpu", dtype: Any = torch.float32
) -> Subject:
    """A Llama of random weights as a subject; its tokenizer is never used."""
    from loratomy.training.wren import wren_path

    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    renderer = Renderer(AutoTokenizer.from_pretrained(wren_path()))
    return Subject(model.eval().requires_grad_(False), renderer, FAMILIES["llama"], "random")


def small(vocab: int) -> LlamaConfig:
    """8 layers, d_model 256, an MLP of Llama's proportions."""
    return LlamaConfig(
        vocab_size=vocab, hidden_size=WIDTH, intermediate_size=688, initializer_range=0.1,
        num_hidden_layers=LAYERS, num_attention_heads=8, num_key_value_heads=8, head_dim=32,
        max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip


def prompts(vocab: int, count: int, width: int, differ: range) -> tuple[Any, Any]:
    """Corrupted and clean ids ``[prompt, pos]`` that differ in a range of positions."""
    generator = torch.Generator().manual_seed(1)
    corrupted = torch.randint(3, vocab, (count, width), generator=generator)
    clean = corrupted.clone()
    clean[:, differ] = torch.randint(3, vocab, (count, len(differ)), generator=generator)
    return corrupted, clean


def ours(
    subject: Subject, attached: Attached, corrupted: Any, clean: Any, target: int
) -> SweptCells:
    """Our sweep over every position of resid_pre; the metric is one token's log-probability."""
    count, width = corrupted.shape
    what = Sweep(
        source=PatchRun(adapter=None, prompts=clean.tolist()),
        into=PatchRun(adapter=None, prompts=corrupted.tolist()),
        targets=[[target]] * count,
        columns=[[[p] for p in range(width)]] * count,
        aligned=[list(range(width))] * count,
        reference="source",
        metric="log_prob",
    )
    return sweep(
        subject, attached, what, places(subject, attached, ["resid_pre"]),
        memory=budget(subject, None), layers=range(len(subject.layers)), label="ours",
    )  # fmt: skip


def loop(model: Any, corrupted: Any, clean: Any, target: int) -> torch.Tensor:
    """A whole hooked forward pass for every cell, ``[prompt, layer, pos]``."""
    layers, kept = model.model.layers, []
    handles = [
        x.register_forward_pre_hook(lambda _m, a, k: kept.append((a or (k["hidden_states"],))[0]),
                                    with_kwargs=True)
        for x in layers
    ]  # fmt: skip
    with torch.inference_mode():
        model(input_ids=clean, use_cache=False)
    for handle in handles:
        handle.remove()
    out = torch.zeros(len(corrupted), len(layers), corrupted.shape[1])
    for index, layer in enumerate(layers):
        for place in range(corrupted.shape[1]):

            def write(_m: Any, args: Any, index: int = index, place: int = place) -> Any:
                hidden = args[0].clone()
                hidden[:, place] = kept[index][:, place]
                return (hidden, *args[1:])

            handle = layer.register_forward_pre_hook(write)
            with torch.inference_mode():
                logits = model(input_ids=corrupted, use_cache=False).logits
            handle.remove()
            out[:, index, place] = logits[:, -1].log_softmax(-1)[:, target]
    return out


def with_nnsight(model: Any, corrupted: Any, clean: Any, target: int) -> torch.Tensor:
    """A trace for every cell, only the last logits saved."""
    from nnsight import NNsight

    traced = NNsight(model)
    layers = traced.model.layers
    with torch.inference_mode(), traced.trace(input_ids=clean, use_cache=False):
        kept = list().save()
        for layer in layers:
            kept.append(layer.input.clone())
    out = torch.zeros(len(corrupted), len(layers), corrupted.shape[1])
    for index in range(len(layers)):
        for place in range(corrupted.shape[1]):
            with torch.inference_mode(), traced.trace(input_ids=corrupted, use_cache=False):
                layers[index].input[:, place] = kept[index][:, place]
                logits = traced.lm_head.output[:, -1].save()
            out[:, index, place] = logits.log_softmax(-1)[:, target]
    return out


def lens_model(config: LlamaConfig) -> Any:
    """The same weights as a TransformerLens model; None where it is not installed."""
    try:
        from transformer_lens.model_bridge.sources import build_bridge_from_module
    except ImportError:
        return None
    model = make_subject(config).model  # its own copy: the bridge changes modules in place
    lens = build_bridge_from_module(model, "LlamaForCausalLM", hf_config=config)
    lens.enable_compatibility_mode(disable_warnings=True, no_processing=True)
    return lens


def with_lens(lens: Any, corrupted: Any, clean: Any, target: int) -> torch.Tensor:
    """TransformerLens' own function; it averages over prompts, ``[layer, pos]``."""
    from transformer_lens import patching

    with torch.inference_mode():
        _, cache = lens.run_with_cache(clean)
        return patching.get_act_patch_resid_pre(
            lens, corrupted, cache, lambda logits: logits[:, -1].log_softmax(-1)[:, target].mean()
        )


def median(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Median seconds of a call after one call to warm up, and its result.

    Seconds of the processor on a CPU, so that other work on the machine does not count.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    result, times = work(), []
    for _ in range(rounds):
        began = clock()
        result = work()
        times.append(clock() - began)
    return statistics.median(times), result


def compare(vocab: int, count: int, width: int, differ: range, rounds: int) -> list[str]:
    """A line for every way to fill one grid."""
    subject = make_subject(small(vocab))
    corrupted, clean = prompts(vocab, count, width, differ)
    target, lines = 7, []
    lens = lens_model(small(vocab))
    adapter = fresh_adapter(subject, r=4, alpha=8, seed=0)
    with subject.attached({"adapter": adapter}) as attached:
        own, found = median(lambda: ours(subject, attached, corrupted, clean, target), rounds)
    grid = torch.tensor(found.patched[0])
    ways = {"loop of hooked forwards": lambda: loop(subject.model, corrupted, clean, target)}
    ways["nnsight traces"] = lambda: with_nnsight(subject.model, corrupted, clean, target)
    if lens is not None:
        ways["TransformerLens"] = lambda: with_lens(lens, corrupted, clean, target)
    name = f"{count} x {width} tokens, vocab {vocab}, {len(differ)} differ from {differ.start}"
    lines.append(
        f"| {name} | ours | {own:.3f} | 1.0 | self {found.self_error:.0e}, "
        f"loop {found.loop_error:.0e} |"
    )
    print(lines[-1], flush=True)
    for way, work in ways.items():
        seconds, other = median(work, max(1, rounds // 2))
        mine = grid if other.dim() == 3 else grid.mean(0)
        gap = (mine - other).abs().max().item()
        lines.append(f"| {name} | {way} | {seconds:.3f} | {seconds / own:.1f} | {gap:.1e} |")
        print(lines[-1], flush=True)
    return lines


def llama() -> list[str]:
    """Llama-3.2-3B's shapes on a GPU: seconds, and the share of the measured matmul rate."""
    config = LlamaConfig(
        vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28,
        num_attention_heads=24, num_key_value_heads=8, head_dim=128, max_position_embeddings=256,
    )  # fmt: skip
    subject = make_subject(config, device="cuda", dtype=torch.bfloat16)
    corrupted, clean = prompts(128256, 64, 64, range(1, 64))
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def product() -> None:
        for _ in range(20):
            a @ b
        torch.cuda.synchronize()

    rate = 20 * 2 * 8192**3 / median(product, 3)[0]
    with subject.attached({"adapter": fresh_adapter(subject, r=4, alpha=8, seed=0)}) as attached:
        torch.cuda.reset_peak_memory_stats()
        seconds, found = median(lambda: ours(subject, attached, corrupted, clean, 7), 1)
    layer = sum(p.numel() for p in subject.layers[0].parameters())
    flops = 2 * layer * found.positions
    return [
        f"Llama-3.2-3B shapes, bfloat16, 64 x 64 tokens, resid_pre grid of {found.cells:,} cells "
        f"({found.computed:,} computed): {seconds:.1f} s, {flops / seconds / 1e12:.0f} TFLOP/s of "
        f"{rate / 1e12:.0f} measured for a matrix product ({flops / seconds / rate:.0%}), peak "
        f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB on {torch.cuda.get_device_name()}"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama", action="store_true")
    parser.add_argument("--only", type=int, help="number of the grid, from 0")
    asked = parser.parse_args()
    if asked.llama:
        lines = llama()
    else:
        lines = [
            f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}",
            "",
            "| grid (8 layers, d_model 256, resid_pre) | way | seconds | times ours "
            "| greatest difference |",
            "|---|---|---|---|---|",
        ]
        for number, grid in enumerate(GRIDS):
            if asked.only in (None, number):
                lines += compare(*grid, rounds=asked.rounds)
    text = "\n".join(lines) + "\n"
    print(text)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
