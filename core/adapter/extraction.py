"""A merged model back to LoRA: factors of ``dW = W' - W``, as far as it exceeds rounding.

Singular directions come from a randomised SVD whose rank is doubled until what is left cannot
be told from rounding (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ..errors import LoratomyError
from ..progress import tracked
from ..registry import nearest
from .algebra import Svd, from_svd
from .factors import Adapter, Factors, Shapes
from .rounding import Change, alike, change_of, coarser, holds, rows

START, OVERSAMPLING, ITERATIONS = 16, 8, 3
"""First rank tried, directions beyond it, power iterations."""
RANK_LIMIT = 256
"""Highest rank that is taken for an adapter where no limit is given."""


class Tensors(Protocol):
    """A model's weights, read one at a time; see `loratomy.core.model.checkpoints.Checkpoint`."""

    @property
    def linear(self) -> Shapes:
        """Weights that LoRA can adapt: module, or fused parameter -> shape."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name of every weight -> shape."""
        ...

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Name of every weight -> number format."""
        ...

    def read(self, name: str, expert: int | None = None) -> torch.Tensor:
        """A weight, or one expert of a fused one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """What was found in one weight matrix that changed."""

    module: str
    """Name of the module, or of the fused parameter."""
    expert: int
    """Number of the expert in a fused parameter, else -1."""
    rank: int
    """Directions kept; 0 where nothing but rounding changed."""
    frobenius: float
    """``||dW||``, rounding included."""
    energy: float
    """Share of ``||dW||**2`` in the directions kept, exact."""
    residual: float
    """``||dW - B A|| / ||dW||``, of the factors as they are written."""
    floor: float
    """Expected ``||rounding|| / ||dW||``; a residual of this size is explained by rounding."""
    edge: float
    """Singular values below this cannot be told from rounding."""
    strongest: float
    """Largest singular value of dW."""
    weakest: float
    """Smallest singular value kept; NaN where none is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extraction:
    """The way from a base and a merged model to an adapter, matrix by matrix."""

    base: str
    """The base, as given."""
    merged: str
    """The merged model, as given."""
    model_type: str
    """Of both."""
    dtypes: tuple[str, ...]
    """Number formats of base and merged weights."""
    energy: float
    """Share of the energy above rounding to keep."""
    rank_limit: int
    """Most directions of a matrix."""
    found: tuple[Extracted, ...]
    """Matrices with directions above rounding: the adapter."""
    rounding: tuple[Extracted, ...]
    """Matrices in which nothing but rounding changed; left out."""
    unchanged: int
    """Weight matrices that are equal bit by bit."""
    ignored: tuple[str, ...]
    """Weights that changed and were left out because they were named."""


def _leading(dw: torch.Tensor, rank: int, seed: int) -> Svd:
    """The `rank` strongest directions of a matrix; exact where it is hardly larger."""
    if 2 * (rank + OVERSAMPLING) >= min(dw.shape):
        return Svd(*torch.linalg.svd(dw, full_matrices=False))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, s, v = torch.svd_lowrank(dw, q=rank + OVERSAMPLING, niter=ITERATIONS)
    return Svd(u[:, :rank], s[:rank], v[:, :rank].mT)


def _enough(s: torch.Tensor, change: Change, energy: float) -> int:
    """How many of these directions hold `energy` of what exceeds rounding."""
    strong = s[s > change.edge].double().square().cumsum(0)
    if not len(strong):
        return 0
    if len(strong) < len(s):  # all above rounding are here, so their sum is known
        whole = float(strong[-1])
    else:
        whole = max(change.energy - change.floor, float(strong[-1]))
    wanted = energy * whole
    return min(len(strong), int((strong < wanted * (1 - 1e-12)).sum()) + 1)


def _directions(name: str, change: Change, energy: float, limit: int | None, seed: int) -> Svd:
    """The directions to keep; rank doubled until rounding or the energy is reached."""
    most = RANK_LIMIT if limit is None else limit
    rank = START
    while True:
        svd = _leading(change.dw, rank, seed)
        keep = _enough(svd.s, change, energy)
        done = keep < len(svd.s) or len(svd.s) == min(change.dw.shape)
        if done or keep > most:
            break
        rank *= 2
    if keep > most and limit is None:
        share = float(svd.s[:most].double().square().sum()) / change.energy
        raise LoratomyError(
            f"{name} changed in more than {most} directions ({most} hold {share:.1%} of its "
            "energy): no LoRA adapter, or one merged into another base than this; to take the "
            f"strongest all the same, give --rank-limit {most} or --energy 0.99"
        )
    keep = min(keep, most)
    return Svd(svd.u[:, :keep], svd.s[:keep], svd.vh[:keep])


def _residual(change: Change, factors: Factors) -> float:
    """``||dW - B A||**2`` of the factors as they are written."""
    a = factors.a.double() * factors.scaling
    return sum(float((dw - b @ a).square().sum()) for dw, b in rows(change.dw, factors.b))


@dataclass
class _Search:
    """What has been found so far."""

    base: Tensors
    merged: Tensors
    energy: float
    limit: int | None
    other_dtype: bool
    seed: int
    found: list[Extracted] = field(default_factory=list)
    rounding: list[Extracted] = field(default_factory=list)
    unchanged: int = 0

    def matrix(self, module: str, key: str, expert: int | None) -> Factors | None:
        """Factors of one matrix; None where nothing, or nothing but rounding, changed."""
        where = module if expert is None else f"{module}, expert {expert}"
        before, after = self.base.read(key, expert), self.merged.read(key, expert)
        dtype = coarser(before.dtype, after.dtype) if self.other_dtype else after.dtype
        change = change_of(where, before, after, dtype)
        if change is None:
            self.unchanged += 1
            return None
        svd = _directions(where, change, self.energy, self.limit, self.seed)
        factors, rank = from_svd(svd), len(svd.s)
        left = _residual(change, factors)
        strongest = svd.s[0] if rank else torch.linalg.matrix_norm(change.dw, 2)
        found = Extracted(
            module=module,
            expert=-1 if expert is None else expert,
            rank=rank,
            frobenius=change.energy**0.5,
            energy=float(svd.s.double().square().sum()) / change.energy,
            residual=(left / change.energy) ** 0.5,
            floor=(change.floor / change.energy) ** 0.5,
            edge=change.edge,
            strongest=float(strongest),
            weakest=float(svd.s[-1]) if rank else float("nan"),
        )
        (self.found if rank else self.rounding).append(found)
        return factors if rank else None

    def module(self, module: str, shape: tuple[int, ...]) -> Factors | None:
        """Factors of a linear layer, or of all experts of a fused weight."""
        if len(shape) == 2:
            return self.matrix(module, f"{module}.weight", None)
        experts = [self.matrix(module, module, e) for e in range(shape[0])]
        rank = max((f.rank for f in experts if f is not None), default=0)
        if not rank:
            return None
        a, b = torch.zeros(shape[0], rank, shape[2]), torch.zeros(shape[0], shape[1], rank)
        for e, f in enumerate(experts):
            if f is not None:
                a[e, : f.rank], b[e, :, : f.rank] = f.a, f.b
        return Factors(a, b, 1.0)


def _named(name: str, names: Iterable[str]) -> bool:
    """Whether a weight, or the module that it is of, is among `names` or ends in one of them."""
    stem = name.removesuffix(".weight").removesuffix(".bias")
    return any(n == part or n.endswith("." + part) for part in names for n in (name, stem))


def _check_ignored(base: Tensors, merged: Tensors, ignore: Iterable[str]) -> None:
    """Raise where a name that is to be left out is of no weight in either model."""
    known = dict.fromkeys([*base.shapes, *merged.shapes])
    for part in ignore:
        if not any(_named(name, [part]) for name in known):
            stems = (n.removesuffix(".weight").removesuffix(".bias") for n in known)
            ends = dict.fromkeys(stem.rsplit(".", 1)[-1] for stem in stems)
            raise LoratomyError(
                f"--ignore-module {part}: neither model has a weight of that name; "
                f"{nearest(part, list(ends))}"
            )


def _check_alike(
    base: Tensors, merged: Tensors, ignore: list[str], *, other_dtype: bool
) -> list[str]:
    """Raise unless both hold the same weights in the same shapes and number format.

    Returns:
        Those that only one of them has, or that have another shape, and are to be left out.
    """
    left_out = []
    for one, other, what in ((base, merged, "merged model"), (merged, base, "base")):
        missing = sorted(set(one.shapes) - set(other.shapes))
        left_out += [n for n in missing if _named(n, ignore)]
        if missing := [n for n in missing if not _named(n, ignore)]:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise LoratomyError(
                f"the {what} has no {', '.join(missing[:3])}{more}; where a head was untied or a "
                f"module added, leave it out with --ignore-module {_short(missing[0])}"
            )
    for name, shape in base.shapes.items():
        if name not in merged.shapes:
            continue
        if merged.shapes[name] != shape:
            if _named(name, ignore):
                left_out.append(name)
                continue
            sized = [n for n, s in base.shapes.items() if merged.shapes.get(n, s) != s]
            raise LoratomyError(
                f"{name} has shape {shape} in the base and {merged.shapes[name]} in the merged "
                "model; was it merged into another base? Where the vocabulary was resized, add "
                f"{_options([n for n in sized if not _named(n, ignore)])}"
            )
        one, other = base.dtypes[name], merged.dtypes[name]
        if not (other_dtype or holds(other, one)):
            raise LoratomyError(
                f"{name} is {one} in the base and {other} in the merged model, so that every "
                "weight was rounded; to go on down to the coarser one's rounding, add --other-dtype"
            )
    return left_out


def _options(names: list[str]) -> str:
    """The options that leave some weights out."""
    more = " ..." * (len(names) > 3)
    return " ".join(f"--ignore-module {n.removesuffix('.weight')}" for n in names[:3]) + more


def _short(name: str) -> str:
    """What to call a weight for leaving it out."""
    return name.removesuffix(".weight").rsplit(".", 1)[-1] if "layers." not in name else name


def _changed_beyond(base: Tensors, merged: Tensors, names: list[str], other: bool) -> list[str]:
    """Those of the weights that LoRA cannot change which did change."""
    changed = []
    for name in tracked(names, "other weights"):
        before, after = base.read(name), merged.read(name)
        coarse = coarser(before.dtype, after.dtype)
        if alike(before, after, coarse if other else None):
            continue
        if not other and before.dtype != after.dtype and alike(before, after, coarse):
            raise LoratomyError(
                f"{name} differs by the rounding to {before.dtype} in which the base is stored: it "
                "was merged from finer weights; give those, or add --other-dtype"
            )
        changed.append(name)
    return changed


def extract(
    base: Tensors,
    merged: Tensors,
    *,
    names: tuple[str, str],
    model_type: str,
    energy: float = 1.0,
    rank_limit: int | None = None,
    ignore_modules: Iterable[str] = (),
    other_dtype: bool = False,
    seed: int = 0,
) -> tuple[Adapter, Extraction]:
    """The LoRA adapter that lies between a base and a merged model, and what it leaves out.

    One matrix of each is in memory at a time. Directions are kept where their singular value
    exceeds what rounding alone would have, so that a merge in float32 comes back exactly and
    one in bfloat16 down to its rounding.

    Args:
        base: weights W.
        merged: weights W'.
        names: what base and merged model are called, for the record.
        model_type: of both.
        energy: share of the squared norm above rounding to keep, in (0, 1].
        rank_limit: most directions of a matrix; None: more than `RANK_LIMIT` are an error.
        ignore_modules: weights that may differ and are left out.
        other_dtype: one of the two was rounded to another number format on the way; the coarser
            one's rounding counts. Else it is that of the merged weights, which must be able to
            hold the base's.
        seed: of the randomised SVD.

    Raises:
        LoratomyError: weights that do not correspond, NaN, a change that LoRA cannot express, too
            high a rank, or nothing changed but rounding.
    """
    ignore = list(ignore_modules)
    _check_ignored(base, merged, ignore)
    left_out = _check_alike(base, merged, ignore, other_dtype=other_dtype)
    linear = {n: s for n, s in base.linear.items() if not _named(n, ignore)}
    adaptable = {n if len(s) == 3 else f"{n}.weight" for n, s in linear.items()}
    others = [n for n in base.shapes if n not in adaptable and n not in left_out]
    changed = _changed_beyond(base, merged, others, other_dtype)
    if beyond := [n for n in changed if not _named(n, ignore)]:
        more = f" and {len(beyond) - 3} more" if len(beyond) > 3 else ""
        raise LoratomyError(
            f"{', '.join(beyond[:3])}{more} changed, which LoRA cannot express; to leave it out, "
            f"and what it does with it, add {_options(beyond)}"
        )
    search = _Search(base, merged, energy, rank_limit, other_dtype, seed)
    modules = {}
    for name, shape in tracked(list(linear.items()), "matrices"):
        if (factors := search.module(name, shape)) is not None:
            modules[name] = factors
    if not modules:
        many = len(search.rounding)
        raise LoratomyError(
            f"nothing but rounding changed in {many} matrices ({search.rounding[0].module} ...); "
            "that is no adapter"
            if many
            else "the merged model's weights are the base's, bit by bit; there is no adapter"
        )
    return Adapter(modules, {}), Extraction(
        base=names[0],
        merged=names[1],
        model_type=model_type,
        dtypes=tuple(_formats(t) for t in (base, merged)),
        energy=energy,
        rank_limit=RANK_LIMIT if rank_limit is None else rank_limit,
        found=tuple(search.found),
        rounding=tuple(search.rounding),
        unchanged=search.unchanged,
        ignored=(*left_out, *changed),
    )


def _formats(tensors: Tensors) -> str:
    return ", ".join(sorted({str(d).removeprefix("torch.") for d in tensors.dtypes.values()}))
