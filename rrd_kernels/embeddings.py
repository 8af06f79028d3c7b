"""The two projections that every memory has."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rrd_kernels import checkpoint
from rrd_kernels import validation as check
from rrd_kernels.recomputation import Recomputations
from rrd_kernels.settings import Settings

PROJECTIONS = ("embed_s", "embed_t")


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """The dtype of a projection's weights; ``None`` if it has none, as ``nn.Identity``."""
    if type(module) is nn.Linear:
        return module.weight.dtype
    dtypes = (weight.dtype for weight in module.parameters() if weight.dtype.is_floating_point)
    return next(dtypes, None)


def _takes_maps(module: nn.Module, features: Tensor) -> bool:
    """Whether a projection gets [B, dim, h, w] as it is: larger maps, and 1×1 for a convolution."""
    if any(size != 1 for size in features.shape[2:]):
        return True
    first = next(module.parameters(), None)
    return first is not None and features.dim() == first.dim() == 4


def _project(name: str, module: nn.Module, features: Tensor) -> Tensor:
    """Projects pooled features [B, dim] or [B, dim, 1, 1] of any floating dtype."""
    if type(module) is nn.Linear or not _takes_maps(module, features):
        features = features.flatten(1)
    dtype = dtype_of(module)
    # Autocast casts features and weight to its own dtype, but leaves float64 alone.
    autocast = check.is_autocast(features.device.type)
    if dtype is not None and (not autocast or torch.float64 in (features.dtype, dtype)):
        features = features.to(dtype)
    try:
        projected: Tensor = module(features)
    except RuntimeError as error:  # of a width that is not known here, for one
        error.add_note(f"{name} was given features of shape {tuple(features.shape)}")
        raise
    return projected


class TakenByDDP:
    """Lets DistributedDataParallel wrap ``embed_t`` by itself, as the published ImageNet script
    does: it takes only modules with a parameter that requires a gradient.

    DDP reads the names of what it is to ignore from the module that it wraps, and from no other. So
    if these are read, ``embed_t`` is wrapped by itself. Nothing else asks for its gradients, and it
    never gets any.
    """

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        self._module, self._names = module, tuple(names)

    def __iter__(self) -> Iterator[str]:
        self._module.requires_grad_(True)
        return iter(self._names)


class Embeddings(Settings):
    """Projects student and teacher features to embeddings of one width.

    The student's projection is trained, the teacher's only by classes that say so.

    Args:
        s_dim: width of the student's features. Required without ``embed_s``.
        t_dim: width of the teacher's features. Required without ``embed_t``.
        feat_dim: width D of the embeddings.
        embed_s, embed_t: modules that map [B, s_dim] and [B, t_dim] to [B, D]; taken as they are,
            on their own device. Default: ``nn.Linear``.
        device, dtype: as in :class:`torch.nn.Linear`.

    Attributes:
        embed_s: projects the student's features and is trained. Another module may be assigned.
        embed_t: projects the teacher's features. Where it is not trained, its parameters get
            ``requires_grad=False``, except those that it shares with ``embed_s``. Another module
            may be assigned.

    Raises:
        TypeError, ValueError: a width is not a positive int, or a projection is not a module.

    Source: the published code of arXiv 2407.12073.
    """

    #: The projections that are trained.
    TRAINED: tuple[str, ...] = ("embed_s",)

    #: What a step calls its two inputs, for errors.
    INPUTS = ("f_s", "f_t")

    embed_s: nn.Module
    embed_t: nn.Module

    def __init__(
        self,
        s_dim: int | None,
        t_dim: int | None,
        feat_dim: int,
        *,
        embed_s: nn.Module | None = None,
        embed_t: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check.check_size("feat_dim", feat_dim)
        given = {"s_dim": (s_dim, embed_s), "t_dim": (t_dim, embed_t)}
        for name, (width, module) in given.items():
            if width is not None or module is None:
                check.check_size(name, width)
        # Numbers of NumPy's types are no constants to torch.compile.
        s_dim, t_dim = (None if width is None else int(width) for width, _ in given.values())
        for name, module in zip(PROJECTIONS, (embed_s, embed_t), strict=True):
            if module is not None:
                check.check_module(name, module)
        super().__init__()
        #: Widths of the features, where they are known.
        self._widths: dict[str, int | None] = {}
        # The published order of random draws (embed_s, embed_t, then the memory's rows): equal
        # seeds give equal state.
        for name, width, module in (("embed_s", s_dim, embed_s), ("embed_t", t_dim, embed_t)):
            if module is None and width is not None:
                module = self.make_projection(width, int(feat_dim), device=device, dtype=dtype)
            setattr(self, name, module)
            has = self._widths[name]
            if width is not None and has not in (None, width):
                raise ValueError(
                    f"{name[-1]}_dim must be {has}, the width that {name} takes; got {width}"
                )
            self._widths[name] = has or width
        self.recomputations = Recomputations()

    def __setattr__(self, name: str, value: object) -> None:
        if name in PROJECTIONS:
            check.check_module(name, value)
        super().__setattr__(name, value)
        if name not in PROJECTIONS:
            return
        # A lazy layer has none yet: 0.
        self._widths[name] = (isinstance(value, nn.Linear) and value.in_features) or None
        if name == "embed_t" and name not in self.TRAINED:
            trained = {id(weight) for weight in self.embed_s.parameters()}
            for weight in self.embed_t.parameters():
                if id(weight) not in trained:
                    weight.requires_grad = False  # a lazy layer's parameters take no requires_grad_
            if self.embed_t is not self.embed_s:
                ignored = getattr(value, "_ddp_params_and_buffers_to_ignore", ())
                object.__setattr__(
                    value, "_ddp_params_and_buffers_to_ignore", TakenByDDP(self.embed_t, ignored)
                )

    def make_projection(self, width: int, feat_dim: int, **options: Any) -> nn.Module:
        """The default projection of features of this width."""
        return nn.Linear(width, feat_dim, **options)

    def trained(self) -> list[nn.Parameter]:
        """The trained projections' parameters that require a gradient, each once."""
        weights = [w for name in self.TRAINED for w in getattr(self, name).parameters()]
        return list({id(weight): weight for weight in weights if weight.requires_grad}.values())

    def unwrap_keys_(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Removes the names of wrappers of this module, or of a projection, from the keys."""
        checkpoint.unwrap_keys_(state_dict, prefix)
        own = [name for name, _ in (*self.named_parameters(), *self.named_buffers())]
        checkpoint.unwrap_projections_(state_dict, prefix, own)

    def named_rows(self) -> Iterator[tuple[str, Tensor]]:
        """Names and buffers of the memory, without those of the projections."""
        prefixes = tuple(f"{name}." for name in PROJECTIONS)
        return ((n, b) for n, b in self.named_buffers() if not n.startswith(prefixes))

    def check_features(self, f_s: Tensor, f_t: Tensor, device: torch.device) -> None:
        """Raises unless both are batches of one size, of the right widths and on ``device``."""
        student, teacher = self.INPUTS
        check.check_features(student, f_s, self._widths["embed_s"], device)
        check.check_features(teacher, f_t, self._widths["embed_t"], device)
        if f_s.shape[0] != f_t.shape[0]:
            raise ValueError(
                f"{student} and {teacher} must have the same batch size; got shapes "
                f"{tuple(f_s.shape)} and {tuple(f_t.shape)}"
            )

    def project(self, f_s: Tensor, f_t: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the embeddings z_s and z_t [B, D], unnormalised, for a memory of ``rows`` [K, D].
        One of a projection that is not trained has no gradient."""
        z_s = _project("embed_s", self.embed_s, f_s)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "embed_t" in self.TRAINED):
            z_t = _project("embed_t", self.embed_t, f_t)
        batch = f_s.shape[0]
        check.check_embeddings("embed_s", z_s, batch, rows)
        check.check_embeddings("embed_t", z_t, batch, rows)
        return z_s, z_t
