"""How active each neuron is: the norm of the loss's gradient in its incoming weights."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from ...core.adapter.factors import Adapter
from ...core.errors import DataError, LoratomyError
from ...core.model.batches import Encoded
from ...core.model.families import stored_turned
from ...core.model.hooks import hooks
from ...core.model.subject import Subject
from ...core.progress import tracked
from ...core.records.neurons import NeuronActivity
from ...core.stats import bootstrap_weights, mean_interval
from ..localisation.gates import batches
from ..weights.spectra import expanded, names_and_layers


def gradient_norms(
    subject: Subject, adapter: Adapter | None, rows: Sequence[Encoded], names: Sequence[str]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Norms of the gradient in each row of the named weights, prompt by prompt, and the losses.

    The gradient in ``dW`` is that in ``W + dW``, and so the one that reaches the base weight
    itself. Autograd forms it densely, one module at a time: the row norms are taken and the
    gradient is dropped before the next one is made.

    Args:
        subject: the base, left as it was.
        adapter: what to attach; None for the base alone.
        rows: prompts with completions; the loss is the mean over a completion's tokens.
        names: of weights, as in `Subject.shapes`.

    Returns:
        Name -> ``[prompt, d_out]`` or ``[prompt, expert, d_out]``, nats per unit of weight; and
        the loss of each prompt, nats per token.

    Raises:
        DataError: no rows.
        LoratomyError: a gradient that is NaN or infinite, naming the weight; a weight that is
            shared with the embedding, whose gradient is not the module's own.
    """
    if not rows:
        raise DataError("activeness over no prompts; give clean rows")
    weights = trainable_weights(subject, names)
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    losses: list[float] = []
    turned = {n for n, s in subject.shapes.items() if n in weights and len(s) == 2}
    turned = {n for n in turned if stored_turned(subject.model.get_submodule(n))}
    here = subject.attached({"active": adapter}) if adapter else nullcontext()
    with here, _collecting(weights, turned, found):
        for row in tracked(rows, "activeness"):
            (batch,) = batches(subject, [row], 1)
            loss = subject.model(**batch, use_cache=False).loss
            loss.backward()
            losses.append(float(loss.detach()))
    return {name: np.stack(values) for name, values in found.items()}, np.array(losses)


def trainable_weights(subject: Subject, names: Sequence[str]) -> dict[str, torch.nn.Parameter]:
    """The base weights of some modules, those that a gradient can be had of.

    Raises:
        LoratomyError: one is packed by quantisation, or head and embedding are one weight.
    """
    model = subject.model
    every = list(model.named_parameters(remove_duplicate=False))
    out = {}
    for name in names:
        fused = len(subject.shapes[name]) == 3
        out[name] = model.get_parameter(name if fused else f"{name}.weight")
        if not out[name].is_floating_point():
            raise LoratomyError(
                f"the weight of {name} is packed by quantisation ({out[name].dtype}) and has no "
                "gradient; load the base unquantised for the analysis of neurons"
            )
        if sum(parameter is out[name] for _, parameter in every) > 1:
            raise LoratomyError(
                f"the weight of {name} is shared between head and embedding, so its gradient is "
                "not its own; leave the analysis of neurons out for this adapter"
            )
    return out


@contextmanager
def _collecting(
    weights: Mapping[str, torch.nn.Parameter],
    turned: Collection[str],
    found: Mapping[str, list[np.ndarray]],
) -> Iterator[None]:
    """Norms of every weight's gradient go to `found`, by output; the gradients are dropped.

    Args:
        weights: by name.
        turned: those that are stored as ``[d_in, d_out]``.
        found: filled.
    """
    before = {name: weight.requires_grad for name, weight in weights.items()}

    def collect(name: str, weight: torch.Tensor) -> None:
        assert weight.grad is not None
        side = -2 if name in turned else -1
        norms = torch.linalg.vector_norm(weight.grad, dim=side, dtype=torch.float32)
        weight.grad = None
        if not torch.isfinite(norms).all():
            raise LoratomyError(f"the gradient in {name} is NaN or infinite")
        found[name].append(norms.cpu().numpy())

    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        handles = (
            weight.register_post_accumulate_grad_hook(lambda w, name=name: collect(name, w))
            for name, weight in weights.items()
        )
        with hooks(handles), torch.enable_grad():
            yield
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(before[name])
            weight.grad = None


def activity(
    subject: Subject, poisoned: Adapter, clean: Adapter | None, rows: Sequence[Encoded]
) -> NeuronActivity:
    """Activeness of every neuron that the poisoned adapter changes, against a reference.

    TSBD (arXiv 2405.20291) sees backdoored networks more active on clean data than clean ones.
    The gradient also grows with the loss, hence both losses in the record.

    Args:
        subject: the base.
        poisoned: names the modules.
        clean: the reference; None: the base without adapter.
        rows: clean prompts with completions.

    Raises:
        DataError, LoratomyError: see `gradient_norms`.
    """
    names = list(poisoned.modules)
    ours, our_loss = gradient_norms(subject, poisoned, rows, names)
    theirs, their_loss = gradient_norms(subject, clean, rows, names)
    modules, kinds, layers = names_and_layers(list(expanded(poisoned)))
    one, other = (
        np.concatenate([found[n].reshape(len(rows), -1) for n in names], 1).astype(np.float64)
        for found in (ours, theirs)
    )
    module = np.repeat(
        np.arange(len(modules)),
        [f.b.shape[-2] for f in expanded(poisoned).values()],
    )
    layer_ids = np.unique(layers)
    by_layer = [
        np.stack([values[:, layers[module] == layer].mean(1) for layer in layer_ids], 1)
        for values in (one, other)
    ]
    weights = np.array([len(row.completion) for row in rows])
    return NeuronActivity(
        reference="clean adapter" if clean else "base without adapter",
        modules=modules,
        kinds=kinds,
        layers=layers,
        neuron_module=module,
        poisoned=one.mean(0).astype(np.float32),
        other=other.mean(0).astype(np.float32),
        layer_ids=layer_ids,
        layer_poisoned=mean_interval(by_layer[0]),
        layer_other=mean_interval(by_layer[1]),
        layer_ratio=_ratio(*by_layer),
        ratio=_ratio(one.mean(1, keepdims=True), other.mean(1, keepdims=True))[0],
        more_active=float((one.mean(0) > other.mean(0)).mean()),
        loss_poisoned=float(our_loss @ weights / weights.sum()),
        loss_other=float(their_loss @ weights / weights.sum()),
        n_prompts=len(rows),
        dtype=subject.dtype,
    )


def _ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Ratio of the means over prompts with its interval, prompts resampled together.

    Args:
        one: ``[prompt, layer]``.
        other: ``[prompt, layer]``.
    """
    draws = bootstrap_weights(len(one))
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = np.percentile((draws @ one) / (draws @ other), [2.5, 97.5], axis=0)
        return np.stack([one.mean(0) / other.mean(0), low, high], -1)
