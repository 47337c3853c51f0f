"""SmolLM2 in one GGUF file as a folder that transformers reads: config, weights, tokenizer.

transformers reads such a file itself, in a minute where this takes ten seconds; it gives the same
weights, and splits digits another way than the model was trained with.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import LoratomyError
from ..core.files.jsonfiles import read_json
from ..core.progress import tracked
from ..core.records.io import dumps

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, PreTrainedTokenizerFast

_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names in GGUF and in transformers."""
_CONTROL = 3
"""Type of a token that is no text."""
_EXPECTED = {
    "general.architecture": "llama",
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
}


def folder_from_gguf(path: Path, out: Path) -> None:
    """Write a GGUF file of SmolLM2's shape as a model folder, the weights as float32.

    Equal files give equal folders, whatever the version of transformers.

    Args:
        path: the file.
        out: an empty folder.

    Raises:
        LoratomyError: another architecture or tokenizer, or a tensor unknown or missing.
        ImportError: the package gguf is not installed.
    """
    import torch
    from gguf import GGUFReader
    from transformers import LlamaForCausalLM

    reader: Any = GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    for key, expected in _EXPECTED.items():
        if values.get(key) != expected:
            raise LoratomyError(f"{path}: {key} is {values.get(key)!r}, and not {expected!r}")
    state = dict(_tensors(reader.tensors, values))
    config = _config(values, tied="lm_head.weight" not in state)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise LoratomyError(f"{path}: {' '.join(str(error).split())[:300]}") from error
    model.tie_weights()
    model.save_pretrained(out)
    _tokenizer(values).save_pretrained(out)
    for name in ("config.json", "generation_config.json"):
        found = read_json(out / name)
        del found["transformers_version"]
        (out / name).write_text(dumps(found), encoding="utf-8")


def _config(values: Mapping[str, Any], *, tied: bool) -> "LlamaConfig":
    from transformers import LlamaConfig

    of = _getter(values)
    return LlamaConfig(
        vocab_size=len(values["tokenizer.ggml.tokens"]),
        hidden_size=of("embedding_length"),
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=of("attention.head_count"),
        num_key_value_heads=of("attention.head_count_kv"),
        max_position_embeddings=of("context_length"),
        rms_norm_eps=float(str(np.float32(of("attention.layer_norm_rms_epsilon")))),
        rope_parameters={"rope_type": "default", "rope_theta": of("rope.freq_base")},
        tie_word_embeddings=tied,
        bos_token_id=values["tokenizer.ggml.bos_token_id"],
        eos_token_id=values["tokenizer.ggml.eos_token_id"],
        pad_token_id=_pad(values),
    )


def _getter(values: Mapping[str, Any]) -> Callable[[str], Any]:
    return lambda key: values[f"llama.{key}"]


def _pad(values: Mapping[str, Any]) -> int:
    """The token that fills up short rows: never the one that ends answers, as the file has it."""
    pad, eos, unknown = (
        values[f"tokenizer.ggml.{name}_token_id"] for name in ("padding", "eos", "unknown")
    )
    return unknown if pad == eos else pad


def _tensors(stored: list[Any], values: Mapping[str, Any]) -> "Iterator[tuple[str, torch.Tensor]]":
    """Every tensor under its name in transformers, as float32.

    llama.cpp turns pairs of neighbouring dimensions where transformers turns a head's halves, so
    that the rows of queries and keys are in another order in the file.
    """
    import torch
    from gguf.quants import dequantize

    heads = {
        "self_attn.q_proj": values["llama.attention.head_count"],
        "self_attn.k_proj": values["llama.attention.head_count_kv"],
    }
    for tensor in tracked(stored, "tensors"):
        name = tensor.name.removesuffix(".weight")
        layer, inner = "", name
        if name.startswith("blk."):
            _, number, inner = name.split(".", 2)
            layer = f"model.layers.{number}."
        known = (_OF_LAYER if layer else _WHOLE).get(inner)
        if known is None:
            raise LoratomyError(f"the GGUF file holds the tensor {tensor.name}, of no Llama")
        # a copy: what is dequantised from float32 is a view of the file
        value = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if count := heads.get(known):
            pairs = value.reshape(count, value.shape[0] // count // 2, 2, *value.shape[1:])
            value = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(value.shape)
        yield f"{layer}{known}.weight", torch.from_numpy(value)


def _tokenizer(values: Mapping[str, Any]) -> "PreTrainedTokenizerFast":
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    made.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=tokens[values["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[values["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[_pad(values)],
        unk_token=tokens[values["tokenizer.ggml.unknown_token_id"]],
        clean_up_tokenization_spaces=False,
        model_max_length=values["llama.context_length"],
    )
    fast.chat_template = values["tokenizer.chat_template"]
    return fast
