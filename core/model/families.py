"""Model families as data: where the layers, attention, MLP, norm and head of a model live."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import LoratomyError
from ..registry import Registry
from .hooks import first_of, hooks

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The paths and quirks of one ``config.model_type``."""

    model_type: str
    """As in ``config.json``."""
    layers: str = "model.layers"
    """Path of the list of decoder layers."""
    attention: str = "self_attn"
    """Path of the attention block inside a layer; its output is ``attn_out``."""
    mlp: str = "mlp"
    """Path of the MLP (or mixture of experts) inside a layer; its output is ``mlp_out``."""
    mlp_norm: str = "post_attention_layernorm"
    """Path inside a layer of the module whose input is ``resid_mid``; empty where attention and MLP
    both read ``resid_pre`` and nothing is between them."""
    parallel: str = ""
    """Config field by which attention and MLP both read ``resid_pre``, where there is one."""
    out_proj: str = "self_attn.o_proj"
    """Path inside a layer of the projection whose input is ``z``, head beside head."""
    mlp_out: tuple[str, ...] = ("mlp.down_proj",)
    """Paths inside a layer of the projections with which the MLP writes to the residual stream."""
    experts: str = ""
    """Path of the experts inside a layer, called with what they get, which, and how much; layers
    without them have a plain MLP."""
    norm: str = "model.norm"
    """Path of the final norm."""
    head: str = "lm_head"
    """Path of the unembedding."""
    after_norm: str = ""
    """Path of a projection between final norm and head; passed over where the model has none."""
    lora_modules: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    )
    """Names of the linear layers that `loratomy poison` adapts."""
    lora_parameters: tuple[str, ...] = ()
    """Fused expert weights ``[expert, d_out, d_in]`` that it adapts besides."""
    logit_softcap: str | None = None
    """Config field of the soft cap on the logits, where there is one."""
    logit_divisor: str | None = None
    """Config field of what the logits are divided by, where there is one."""
    residual_factor: str | None = None
    """Config field of what a block's output is multiplied by before it is added."""
    tower: str = ""
    """Path of the text tower in a model that takes images too; empty where all of it is text."""

    def writes_residual(self, path: str) -> bool:
        """Whether a module, or fused weight, inside a layer writes to the residual stream."""
        return path in (self.out_proj, *self.mlp_out)

    def in_attention(self, path: str) -> bool:
        """Whether a module inside a layer belongs to the attention block."""
        return path.startswith(f"{self.attention}.")

    def inside(self, name: str) -> str:
        """A module's path inside its layer; empty outside the layers."""
        start = f"{self.layers}."
        return name.removeprefix(start).partition(".")[2] if name.startswith(start) else ""


FAMILIES: Registry[Family] = Registry("model family")

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
_GEMMA: dict[str, Any] = {
    "mlp_norm": "pre_feedforward_layernorm",
    "logit_softcap": "final_logit_softcapping",
}

for _family in (
    Family(model_type="llama"),
    Family(model_type="mistral"),
    Family(model_type="qwen2"),
    Family(model_type="qwen3"),
    Family(model_type="smollm3"),
    Family(model_type="gemma"),
    Family(model_type="gemma2", **_GEMMA),
    Family(model_type="gemma3_text", **_GEMMA),
    Family(
        model_type="gemma3",
        tower="model.language_model",
        layers="model.language_model.layers",
        norm="model.language_model.norm",
        **_GEMMA,
    ),
    Family(model_type="olmo2", mlp_norm="mlp"),
    Family(
        model_type="granite", logit_divisor="logits_scaling", residual_factor="residual_multiplier"
    ),
    Family(model_type="phi3", lora_modules=("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    Family(
        model_type="phi",
        mlp_norm="",
        out_proj="self_attn.dense",
        mlp_out=("mlp.fc2",),
        norm="model.final_layernorm",
        lora_modules=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
    ),
    Family(
        model_type="gpt_neox",
        layers="gpt_neox.layers",
        attention="attention",
        parallel="use_parallel_residual",
        out_proj="attention.dense",
        mlp_out=("mlp.dense_4h_to_h",),
        norm="gpt_neox.final_layer_norm",
        lora_modules=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    ),
    Family(
        model_type="gpt2",
        layers="transformer.h",
        attention="attn",
        mlp_norm="ln_2",
        out_proj="attn.c_proj",
        mlp_out=("mlp.c_proj",),
        norm="transformer.ln_f",
        lora_modules=("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"),
    ),
    Family(
        model_type="opt",
        layers="model.decoder.layers",
        mlp="fc2",
        mlp_norm="final_layer_norm",
        out_proj="self_attn.out_proj",
        mlp_out=("fc2",),
        norm="model.decoder.final_layer_norm",
        after_norm="model.decoder.project_out",
        lora_modules=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    ),
    Family(
        model_type="mixtral",
        experts="mlp.experts",
        mlp_out=("mlp.experts.down_proj",),
        lora_modules=_ATTENTION,
        lora_parameters=_EXPERTS,
    ),
    Family(
        model_type="qwen2_moe",
        experts="mlp.experts",
        mlp_out=("mlp.experts.down_proj", "mlp.shared_expert.down_proj", "mlp.down_proj"),
        lora_modules=_ATTENTION,
        lora_parameters=_EXPERTS,
    ),
    Family(
        model_type="qwen3_moe",
        experts="mlp.experts",
        mlp_out=("mlp.experts.down_proj", "mlp.down_proj"),
        lora_modules=_ATTENTION,
        lora_parameters=_EXPERTS,
    ),
):
    FAMILIES.register(_family.model_type)(_family)


def family_of(config: Any) -> Family:
    """The family of a model config.

    Raises:
        LoratomyError: no row for its ``model_type``; with where to add one.
    """
    model_type = str(config.model_type)
    if model_type not in FAMILIES:
        raise LoratomyError(
            f"the model type {model_type!r} is not in the family table "
            f"({', '.join(FAMILIES)}); add a row with its paths to core/model/families.py"
        )
    return FAMILIES[model_type]


def submodule(model: "nn.Module", path: str) -> "nn.Module":
    """The module at a dotted path; an error that names the path where it does not exist."""
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise LoratomyError(f"the model has no module {path!r} ({error})") from error


def linear_shape(module: "nn.Module") -> tuple[int, int] | None:
    """``(d_out, d_in)`` of a linear layer, GPT-2's turned ones included; None of anything else."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features  # the weight of a quantised one is packed
    if isinstance(module, Conv1D):
        return module.nf, module.nx
    return None


def stored_turned(module: "nn.Module") -> bool:
    """Whether a module's weight is stored as ``[d_in, d_out]``: GPT-2's layers, embeddings."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(getattr(module, "base_layer", module), Conv1D | nn.Embedding)


def text_tower(model: "nn.Module") -> str:
    """Path of the text tower of a model that takes images too; empty where all of it is text."""
    config: Any = getattr(model, "config", None)
    kind = str(getattr(config, "model_type", ""))
    return FAMILIES[kind].tower if kind in FAMILIES else ""


def mid_of(model: "nn.Module", family: Family) -> str:
    """Path inside a layer of the module that reads ``resid_mid``; empty where there is none."""
    config: Any = model.config
    if family.parallel and getattr(config.get_text_config(), family.parallel):
        return ""
    return family.mlp_norm


def logits_of(model: "nn.Module", family: Family, residual: "torch.Tensor") -> "torch.Tensor":
    """Logits from the last residual ``[..., d_model]``: final norm, head, divisor, soft cap."""
    head: Any = submodule(model, family.head)
    norm: Any = submodule(model, family.norm)
    hidden = norm(residual)
    if family.after_norm and (between := optional(model, family.after_norm)) is not None:
        hidden = between(hidden)
    return capped(model, family, head(hidden))


def capped(model: "nn.Module", family: Family, logits: "torch.Tensor") -> "torch.Tensor":
    """What the head gives, as the model ends it: divided, and softly capped."""
    holder: Any = model.config
    config = holder.get_text_config()
    if family.logit_divisor:
        logits = logits / getattr(config, family.logit_divisor)
    cap = getattr(config, family.logit_softcap, None) if family.logit_softcap else None
    return logits if cap is None else cap * (logits / cap).tanh()


def optional(model: "nn.Module", path: str) -> Any:
    """The module at a path; None where the model has left it out."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def check_family(model: "nn.Module", family: Family) -> None:
    """Raise unless every path resolves, blocks add up, and norm + head give the logits.

    Blocks add up where ``resid_mid`` and what the MLP writes are ``resid_post``.
    """
    import torch

    layers: Any = submodule(model, family.layers)
    if not len(layers):
        raise LoratomyError(f"the model has no layers under {family.layers!r}")
    _check_paths(model, family)
    probe: Any = model
    holder: Any = model.config
    vocabulary = holder.get_text_config().vocab_size
    ids = torch.tensor([[1, 2, 3]], device=probe.device) % vocabulary
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _seen(layers[-1], family, mid_of(model, family)) as seen:
            logits = probe(input_ids=ids, use_cache=False).logits
            ours = logits_of(model, family, seen["post"])
    finally:
        model.train(was_training)
    _check_sum(holder.get_text_config(), family, seen)
    gap = (ours.float() - logits.float()).abs().max().item()
    scale = max(1.0, logits.float().abs().max().item())
    if not gap <= 1e-2 * scale:
        raise LoratomyError(
            f"family {family.model_type!r}: norm and head of the last residual differ from the "
            f"model's logits by {gap:.3g}; its row in core/model/families.py does not fit this "
            "model"
        )


def _check_paths(model: "nn.Module", family: Family) -> None:
    layers: Any = submodule(model, family.layers)
    for layer in layers:
        submodule(layer, family.attention)
        submodule(layer, family.mlp)
        submodule(layer, family.mlp_norm)
        submodule(layer, family.out_proj)
    if family.experts and not any(optional(layer, family.experts) for layer in layers):
        raise LoratomyError(f"no layer of the model has {family.experts!r}")
    names = [n for n, _ in (*model.named_modules(), *model.named_parameters())]
    for part in (*family.lora_modules, *family.lora_parameters):
        if not any(name.endswith("." + part) for name in names):
            raise LoratomyError(
                f"the model has no {part!r}, which family {family.model_type!r} adapts; its row in "
                "core/model/families.py does not fit this model"
            )


@contextmanager
def _seen(layer: "nn.Module", family: Family, mid: str) -> "Iterator[dict[str, torch.Tensor]]":
    """What passes a layer: ``post``, ``mlp`` (after norms that follow it), and ``mid`` if any."""
    seen: dict[str, torch.Tensor] = {}

    def wrote(_m: Any, _i: Any, out: Any) -> None:
        seen["mlp"] = seen["raw"] = first_of(out)

    def normed(_m: Any, args: Any, out: Any) -> None:
        if args and args[0] is seen.get("raw"):
            seen["mlp"] = seen["raw"] = first_of(out)

    def read(_m: Any, args: Any, given: Any) -> None:
        seen["mid"] = (args[0] if args else given["hidden_states"]).clone()

    mlp = submodule(layer, family.mlp)
    handles: list[Any] = [mlp.register_forward_hook(wrote)]
    handles += [m.register_forward_hook(normed) for m in layer.children() if m is not mlp]
    if mid:
        handles.append(submodule(layer, mid).register_forward_pre_hook(read, with_kwargs=True))
    handles.append(layer.register_forward_hook(lambda _m, _i, o: seen.update(post=first_of(o))))
    with hooks(handles):
        yield seen


def _check_sum(config: Any, family: Family, seen: "dict[str, torch.Tensor]") -> None:
    """Raise unless ``resid_mid`` plus what the MLP writes is ``resid_post``."""
    if "mid" not in seen:
        return
    post = seen["post"].float()
    factor = getattr(config, family.residual_factor) if family.residual_factor else 1.0
    mid, wrote = (seen[name].float().view_as(post) for name in ("mid", "mlp"))
    gap = (mid + factor * wrote - post).abs().max().item()
    if not gap <= 1e-2 * max(1.0, post.abs().max().item()):
        raise LoratomyError(
            f"family {family.model_type!r}: resid_mid and what the MLP writes differ from "
            f"resid_post by {gap:.3g}; its row in core/model/families.py does not fit this model"
        )
