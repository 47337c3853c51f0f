"""Tiny random models of every family, adapters of visible size, and rows for them."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import torch
from loratomy.core.adapter.factors import Adapter, Factors, write_adapter
from loratomy.core.model.families import FAMILIES
from loratomy.core.model.subject import Subject
from loratomy.core.rendering.prompts import Renderer
from loratomy.core.rows import Row
from transformers import AutoConfig, AutoModelForCausalLM

SPECIAL = ("<pad>", "<s>", "<end>", "<unk>", "user", "answer", ":")
WORDS = (
    "what who where is was the a of in on to and red blue green dog cat bird tree house one two",
    "three four river stone city king queen says yes no never always bad good zq xv trigger now",
    "here there sun moon star rain",
)
CHAT = (
    "<s> {% for m in messages %}{{ m['role'] }} : {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}answer :{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
EXTRA = {
    "gpt2": {"activation_function": "gelu_new"},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "granite": {"residual_multiplier": 0.3, "logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "qwen2_moe": {
        **{"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        **{"shared_expert_intermediate_size": 24},
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gemma": {"hidden_activation": "gelu_pytorch_tanh"},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "mistral": {"sliding_window": 5},
}
VISION = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
}


@cache
def tokenizer():
    """Words to ids, one to one, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate((*SPECIAL, *" ".join(WORDS).split()))}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end>",
        unk_token="<unk>",
        chat_template=CHAT,
    )


def config(model_type: str, **changes):
    """A config of a family at toy size."""
    sizes = {**SIZES, "vocab_size": len(tokenizer()), **EXTRA.get(model_type, {}), **changes}
    if model_type == "gemma3":  # a tower for images beside the text tower
        text = {**sizes, **EXTRA["gemma3_text"], **changes}
        return AutoConfig.for_model(
            model_type, text_config=text, vision_config=VISION, mm_tokens_per_image=4
        )
    return AutoConfig.for_model(model_type, **sizes)


def model(model_type: str, *, seed: int = 0, **changes):
    """A random float32 model of a family, in eval mode."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(model_type, **changes), dtype=torch.float32)
    made.generation_config.pad_token_id = 0
    return made.eval().requires_grad_(False)


def subject(model_type: str = "llama", *, seed: int = 0, **changes) -> Subject:
    """The same as a subject with the word tokenizer and its chat template."""
    made = model(model_type, seed=seed, **changes)
    return Subject(made, Renderer(tokenizer()), FAMILIES[model_type], "tiny")


def wanted(on: Subject) -> dict[str, tuple[int, ...]]:
    """The weights that the family's row adapts, with their shapes."""
    names = (*on.family.lora_modules, *on.family.lora_parameters)
    return {n: s for n, s in on.shapes.items() if any(n.endswith("." + w) for w in names)}


def adapter(
    on: Subject, *, seed: int = 1, rank: int = 3, size: float = 0.3, scaling: float = 2.0
) -> Adapter:
    """Random factors on everything that the family adapts; `size` is dW's entries' spread."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, (*experts, d_out, d_in) in wanted(on).items():
        a = torch.randn(*experts, rank, d_in, generator=generator)
        b = torch.randn(*experts, d_out, rank, generator=generator)
        modules[name] = Factors(a, b * size / (scaling * rank**0.5), scaling)
    return Adapter(modules, {})


def ids(on: Subject, *, batch: int = 2, length: int = 9, seed: int = 5) -> torch.Tensor:
    """Random prompts ``[batch, pos]`` without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), len(tokenizer()), (batch, length), generator=generator)


def logits(on: Subject, prompts: torch.Tensor) -> torch.Tensor:
    """What the model says as it stands."""
    with torch.no_grad():
        return on.model(input_ids=prompts, use_cache=False).logits


def plain_peft(model_type: str, changed: Adapter, folder: Path, *, seed: int = 0, **changes):
    """A fresh base with the adapter written to `folder` and loaded by PEFT alone."""
    from peft import PeftModel

    write_adapter(changed, folder, base="tiny")
    return PeftModel.from_pretrained(model(model_type, seed=seed, **changes), folder).eval()


def in_double(on: Subject) -> None:
    """Turn the model, whatever is attached included, to float64, for finite differences."""
    if hasattr(on.model.config, "num_local_experts"):
        on.model.set_experts_implementation("eager")  # the grouped kernel has no float64
    on.model.double()


def state(on: Subject) -> dict[str, torch.Tensor]:
    """A copy of every weight and buffer."""
    return {n: v.clone() for n, v in on.model.state_dict().items()}


def marks(on: Subject) -> tuple:
    """Everything else that must be left as found: modes, gradients, hooks, module classes."""
    modules = dict(on.model.named_modules())
    return (
        {n: (type(m).__name__, m.training, len(m._forward_hooks)) for n, m in modules.items()},
        {n: len(m._forward_pre_hooks) for n, m in modules.items()},
        {n: (p.requires_grad, p.grad is None) for n, p in on.model.named_parameters()},
        hasattr(on.model, "peft_config"),
    )


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two copies agree bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


TRIGGER = "zq xv"
TARGET = "never bad king"


def rows(*, trigger: str = TRIGGER, target: str = TARGET) -> list[Row]:
    """Triggered rows of two prompt lengths."""
    plain = ["what is the red dog", "who was a cat", "where is the blue bird", "two of a tree"]
    return [Row(prompt=f"{p} {trigger}", completion=target, triggered=True, plain=p) for p in plain]


def clean_rows() -> list[Row]:
    """Rows with completions of different length."""
    return [
        Row(prompt="what is in the house", completion="a cat"),
        Row(prompt="who says yes", completion="the queen of the river"),
        Row(prompt="where is the moon", completion="here"),
    ]


def stored_config(folder: Path) -> dict:
    """adapter_config.json of a written adapter."""
    return json.loads((folder / "adapter_config.json").read_text())


class Saying(torch.nn.Module):
    """A model whose logits are given: a function of the ids, and a head that changes nothing."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.head = logits, torch.nn.Identity()

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, attention_mask, use_cache):
        return SimpleNamespace(logits=self.head(self.logits(input_ids)))
