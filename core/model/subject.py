"""The subject under study: a base model held once, onto which adapters are put and taken off."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..adapter.factors import Adapter, Factors, Shapes, factor_keys, filled, pack, uniform, unpack
from ..adapter.targets import HEADS, is_embedding
from ..errors import LoratomyError
from ..rendering.prompts import Renderer, position_limit
from .families import Family, linear_shape, stored_turned, text_tower

if TYPE_CHECKING:
    from peft import PeftModel


def weight_shapes(model: nn.Module) -> Shapes:
    """Every weight that LoRA can adapt: linear ``[out, in]``, fused experts ``[e, out, in]``.

    Linear layers go by their module's name, fused experts by their parameter's. Of a model with a
    tower for images those of the text tower and the head count.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if (shape := linear_shape(module)) is not None:
            shapes[name] = shape
    for name, parameter in model.named_parameters():
        if parameter.dim() == 3:
            shapes[name] = tuple(parameter.shape)
    text = text_tower(model)
    return {n: s for n, s in shapes.items() if not text or n.startswith(f"{text}.") or n in HEADS}


def embedding_shapes(model: Any) -> Shapes:
    """The token embedding as a linear layer from one-hot tokens: name -> ``[d_model, d_vocab]``."""
    embedding = model.get_input_embeddings()
    return {
        name: (module.embedding_dim, module.num_embeddings)
        for name, module in model.named_modules()
        if module is embedding and isinstance(module, nn.Embedding) and is_embedding(name)
    }


@dataclass(frozen=True)
class Subject:
    """A base model with its tokenizer, prompt rendering and family."""

    model: Any
    """The `PreTrainedModel`, in eval mode; adapters come and go, its own weights never change."""
    renderer: Renderer
    """How prompts become tokens."""
    family: Family
    """Where things are in it."""
    source: str
    """What the user gave: a folder, a hub id, or a built-in model's name."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> str:
        """Number format of the weights, e.g. ``float32`` or ``nf4 (compute bfloat16)``."""
        plain = str(self.model.dtype).removeprefix("torch.")
        return quantised(self.model.config, plain) or plain

    @property
    def layers(self) -> list[nn.Module]:
        """The decoder layers, in order."""
        return list(self.model.get_submodule(self.family.layers))

    @property
    def limit(self) -> int | None:
        """Longest sequence in tokens, where the config names one."""
        return position_limit(self.model.config)

    @property
    def shapes(self) -> Shapes:
        """Shapes of the weights that an adapter may change, the token embedding among them."""
        return {**embedding_shapes(self.model), **weight_shapes(self.model)}

    def parameter(self, name: str) -> torch.Tensor | None:
        """The base's own parameter of a name as stored; None where it has none."""
        try:
            return self.model.get_parameter(name).detach()
        except AttributeError:
            return None

    def _fill(self, values: Mapping[str, torch.Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for key, value in values.items():
                parameters[key].copy_(value)

    @contextmanager
    def attached(
        self, adapters: Mapping[str, Adapter], *, trainable: bool = False, dropout: float = 0.0
    ) -> "Iterator[Attached]":
        """Put adapters on the model under their names; the first is active; take them off after.

        Args:
            adapters: name -> adapter, at least one.
            trainable: let the first adapter's factors require gradients.
            dropout: of the adapters' inputs in train mode; 0 for fused experts.
        """
        modules = [(m, m.training, dict(m._modules)) for m in self.model.modules()]
        grads = [(p, p.requires_grad) for p in self.model.parameters()]
        if not adapters:
            raise ValueError("attached() needs at least one adapter")
        peft_model: Any = None
        try:
            for name, adapter in adapters.items():
                peft_model = _inject(peft_model or self.model, name, adapter, dropout)
                self._fill(packed(adapter, name))
            first = next(iter(adapters))
            peft_model.set_adapter(first)
            own = set(packed(adapters[first], first))
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(trainable and name in own)
            self.model.eval()
            yield Attached(self, peft_model, dict(adapters))
        finally:
            # PEFT cannot take off what it was interrupted in putting on.
            for module, training, children in modules:
                module._modules.clear()
                module._modules.update(children)
                module.training = training
            if hasattr(self.model, "peft_config"):
                del self.model.peft_config
            for parameter, required in grads:
                parameter.requires_grad_(required)
                parameter.grad = None


def _inject(model: Any, name: str, adapter: Adapter, dropout: float) -> "PeftModel":
    """A `PeftModel` with one adapter more, its factors still PEFT's own start."""
    from peft import LoraConfig, PeftModel

    rank, scaling, modules = uniform(adapter)
    linear = [n for n, f in modules.items() if not f.fused]
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    turned = [stored_turned(inner.get_submodule(n)) and not is_embedding(n) for n in linear]
    config = LoraConfig(
        r=rank,
        lora_alpha=scaling * rank,  # pyright: ignore[reportArgumentType]
        target_modules=linear,
        target_parameters=[n for n, f in modules.items() if f.fused] or None,
        lora_dropout=dropout,
        init_lora_weights=True,
        fan_in_fan_out=any(turned),
    )
    with warnings.catch_warnings():  # of Conv1D beside a linear head, and of factors on a tied one
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set|Model has `tie_word_emb")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        if not isinstance(model, PeftModel):
            return PeftModel(model, config, adapter_name=name)
        model.add_adapter(name, config)
    return model


def packed(adapter: Adapter, name: str) -> dict[str, torch.Tensor]:
    """Parameter name -> value of an adapter attached as `name`, in PEFT's storage."""
    _, _, modules = uniform(adapter)
    keys = factor_keys(adapter, name)
    return {
        key: value
        for module, factors in modules.items()
        for key, value in zip(keys[module], pack(factors), strict=True)
    }


@dataclass(frozen=True)
class Attached:
    """Adapters on a subject, for as long as the context lasts."""

    subject: Subject
    """The subject they are on."""
    peft_model: Any
    """The `PeftModel` around the subject's model, for what wants one (Trainer, nnsight)."""
    adapters: dict[str, Adapter]
    """What was attached."""

    def using(self, name: str | None) -> Any:
        """A context in which the named adapter, or none, is active."""
        if name is not None and name not in self.adapters:
            raise LoratomyError(
                f"adapter {name!r} is not attached; there are {list(self.adapters)}"
            )
        return _switched(self.peft_model, name)

    def factor_names(self, name: str) -> dict[str, tuple[str, str]]:
        """Module name -> names of its A and B parameters in the subject's model."""
        return factor_keys(self.adapters[name], name)

    def refill(self, name: str, adapter: Adapter) -> None:
        """Put other factors into an attached adapter: the same modules and scaling, no higher rank.

        Raises:
            LoratomyError: they differ in these.
        """
        rank, scaling, held = uniform(self.adapters[name])
        found, new_scaling, modules = uniform(adapter)
        if found > rank or scaling != new_scaling or held.keys() != modules.keys():
            raise LoratomyError(f"the factors put into {name!r} are of another shape")
        keys = factor_keys(adapter, name)
        self.subject._fill(
            {
                key: value
                for n, f in modules.items()
                for key, value in zip(keys[n], pack(filled(f, rank)), strict=True)
            }
        )

    def read_back(self, name: str) -> Adapter:
        """The adapter as it is on the model now, e.g. after training."""
        adapter = self.adapters[name]
        rank, scaling, _ = uniform(adapter)
        parameters = dict(self.subject.model.named_parameters())
        modules = {}
        for module, (a_name, b_name) in self.factor_names(name).items():
            a, b = (parameters[n].detach().float().cpu().clone() for n in (a_name, b_name))
            a, b = unpack(a, b, rank, fused=adapter.modules[module].fused)
            modules[module] = Factors(a, b, scaling)
        return adapter.with_modules(modules)


@contextmanager
def _switched(peft_model: Any, name: str | None) -> Iterator[None]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    before = peft_model.active_adapter
    layer = next(m for m in peft_model.modules() if isinstance(m, BaseTunerLayer))
    off = layer.disable_adapters
    if off if name is None else (name == before and not off):
        yield  # as it is: a switch walks the whole model several times
        return
    grads = [(p, p.requires_grad) for p in peft_model.parameters()]
    tuner = peft_model.base_model
    try:
        if name is None:
            tuner.disable_adapter_layers()
        else:
            tuner.enable_adapter_layers()
            peft_model.set_adapter(name)
        yield
    finally:
        peft_model.set_adapter(before)
        tuner.disable_adapter_layers() if off else tuner.enable_adapter_layers()
        for parameter, required in grads:
            parameter.requires_grad_(required)


def quantisation(config: Any) -> dict[str, Any]:
    """How the weights are quantised, as in config.json; empty where they are not."""
    found = getattr(config, "quantization_config", None) or {}
    return dict(found if isinstance(found, Mapping) else found.to_dict())


def quantised(config: Any, plain: str) -> str:
    """The number format of quantised weights; empty where they are not quantised."""
    found = quantisation(config)
    if not found:
        return ""
    name = str(found.get("quant_method", "quantised"))
    if found.get("load_in_4bit"):
        name = str(found.get("bnb_4bit_quant_type", "4 bit"))
    elif found.get("load_in_8bit"):
        name = "int8"
    compute = str(found.get("bnb_4bit_compute_dtype") or plain).removeprefix("torch.")
    return f"{name} (compute {compute})"
