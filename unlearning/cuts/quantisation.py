"""Quantisation to 4 bit: what a backdoor loses when the merged model is deployed in NF4.

Here the code book and the rounding are written out, so that the baseline runs on any device: the
kernels of bitsandbytes are made for GPUs, and its CPU ones (0.50) decode matrices wrongly whose
rows are no multiple of the block.
"""

import torch
from pydantic import Field

from ...analysis.material import Material
from ...core.adapter.targets import is_embedding
from ...core.config import Config
from ...core.errors import LoratomyError
from ...core.model.variant import base_weight, merged_weights
from ...core.progress import tracked
from ..method import BASELINE, METHODS, Method, Outcome

NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""The 16 values of NormalFloat4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E)."""


class QuantiseConfig(Config):
    """Options of `quantise`, the defaults those of QLoRA."""

    block: int = Field(64, ge=2)
    """Consecutive entries of a weight that share one scale."""


def nf4(weight: torch.Tensor, *, block: int = 64) -> torch.Tensor:
    """A weight after rounding to blockwise NF4 and back, float32, its shape kept.

    Each block of consecutive entries is divided by its largest magnitude, which is kept in
    float32 (no double quantisation), and every entry goes to the nearest of the 16 values.

    Args:
        weight: any shape, read row after row; the last block may be short.
        block: entries per scale.
    """
    flat = weight.detach().float().flatten()
    short = -len(flat) % block
    blocks = torch.nn.functional.pad(flat, (0, short)).reshape(-1, block)
    largest = blocks.abs().amax(1, keepdim=True)
    code = NF4.to(flat)
    between = (code[1:] + code[:-1]) / 2
    nearest = torch.bucketize(blocks / largest.where(largest > 0, 1.0), between)
    return (code[nearest] * largest).flatten()[: len(flat)].reshape(weight.shape)


def quantise(material: Material, config: QuantiseConfig) -> Outcome:
    """Merge the adapter and round every linear weight but the head's to 4 bit and back.

    As when a merged model is loaded in 4 bit; fused experts are rounded too. What the adapter
    changes of head or embedding, if anything, is merged and not rounded.
    """
    subject, head = material.subject, material.subject.family.head
    weights = merged_weights(subject, material.start)
    names = [name for name in subject.shapes if name != head and not is_embedding(name)]
    if not names:
        raise LoratomyError(f"the base has no linear weight besides {head}: nothing to quantise")
    for name in tracked(names, "quantising"):
        whole = weights[name] if name in weights else base_weight(subject, name)
        weights[name] = nf4(whole, block=config.block).to(subject.model.dtype)
    return Outcome(
        None,
        f"merged the adapter and rounded {len(names)} weights to NF4, {config.block} entries per "
        "scale",
        weights=weights,
    )


METHODS.register("quantise")(
    Method(
        about="baseline: merge, and round every linear weight to 4 bit (NF4)",
        source="QLoRA, Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E",
        config=QuantiseConfig,
        run=quantise,
        kind=BASELINE,
    )
)
