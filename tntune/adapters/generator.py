"""FactorGenerator: the trainable tensors of one map as a torch module."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn, overload

import tltorch
import torch
from torch import Tensor, nn

from tntune.adapters.cache import FactorCache
from tntune.adapters.generation import Generation
from tntune.adapters.recomputation import check_recomputation
from tntune.adapters.slices import Record, slices
from tntune.errors import DtypeError, ModeError, SpecError, UnsupportedError
from tntune.maps.base import Factors, Tensors, WeightMap
from tntune.maps.chain import Chains, halves
from tntune.maps.latent_train import LatentTrain
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

__all__ = ["FactorGenerator", "without_autocast"]


class FactorGenerator(nn.Module):
    """A leaf module: ``FactorGenerator(map, params, fixed)() == map.factors(params, fixed)``.

    Parameters and buffers carry the flat names of the map (``tt_core_0``, ``tt_latent``). Go through the
    call, never through the parameters, in a forward: hooks of DDP and FSDP sit on the call. For FSDP2 a map
    of several layers is a unit of its own: ``fully_shard(generator, reshard_after_forward=False)``. A latent
    keeps its dtype when the module is cast, so z is never rounded, and autocast does not reach the
    contraction. Where no gradient is wanted, factors are kept until a tensor changes
    (:class:`tntune.adapters.cache.FactorCache`). In training a latent of mode ``"resample"`` is drawn afresh
    at every call from torch's generator, which checkpointing and ``torch.compile`` treat as they treat
    dropout.

    Args:
        map: The map.
        params: Trainable tensors by flat name; they become parameters without a copy.
        fixed: The others by flat name.

    Raises:
        SpecError: Where names are missing or unknown.
        ModeError: Where a tensor has not the shape that the map says.
        DtypeError: Where a tensor does not hold floats.

    Example:
        >>> from tntune.maps.lora import LoRA
        >>> lora = LoRA(4, 3, 2)
        >>> generator = FactorGenerator(lora, *lora.init(torch.Generator().manual_seed(0)))
        >>> [tuple(factor.shape) for factor in generator()]
        [(1, 2, 4), (1, 3, 2)]
    """

    def __init__(self, map: WeightMap, params: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> None:
        super().__init__()
        _check("params", map.param_shapes, params)
        _check("fixed", map.fixed_shapes, fixed)
        self.map = map
        for name in map.param_shapes:
            self.register_parameter(name, nn.Parameter(params[name]))
        for name in map.fixed_shapes:
            self.register_buffer(name, fixed[name])
        self._names = tuple(map.tensor_shapes)
        self._param_shapes = dict(map.param_shapes)
        self._is_generated = map.is_generated
        self._cache = FactorCache()
        self._generation = Generation()
        products = halves(map)
        self._halves = products if products is not None and products.pays else None

    @property
    def weight(self) -> nn.Parameter:
        """The first parameter: by it FSDP's wrapping policies know a module that trains."""
        first: nn.Parameter = getattr(self, next(iter(self.map.param_shapes)))
        return first

    @classmethod
    def fresh(
        cls, map: WeightMap, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float32
    ) -> "FactorGenerator":
        """A generator with freshly drawn params."""
        return cls(map, *map.init(generator, dtype=dtype))

    @overload
    def forward(self, site: int | None = None) -> Factors: ...

    @overload
    def forward(self, site: int, kind: type[Chains]) -> Chains: ...

    def forward(self, site: int | None = None, kind: type[Factors | Chains] = Factors) -> Factors | Chains:
        """The factors of all sites, or of one, in the dtype and on the device of the params.

        The kind ``Chains`` is what a layer applies: the matrices of one site, as products where that is
        cheaper (:class:`tntune.maps.chain.Halves`), which the shapes alone decide.

        Raises:
            UnsupportedError: As :func:`tntune.adapters.recomputation.check_recomputation`.
        """
        kept = None if site is None or torch.compiler.is_compiling() else self._ready(site)
        if kind is Chains:
            return kept or (self._products() if self._halves else self._chains(site))
        if kept is None or len(kept.down) > 1:
            return self._whole(site)
        return Factors(kept.down[0][None], kept.up[0][None])

    def stored(self, site: int | None = None) -> Factors:
        """The factors at the stored latent, in training too: what evaluation uses and what is merged."""
        if not self._is_generated:  # the params are the factors, so there is nothing to keep
            return self._factors({}, site)
        return self._cache.factors(self.own(), site, lambda: self._factors({}, site))

    def begin(self) -> None:
        """Generate all sites at once for the layers of one pass, which :meth:`end` ends.

        Does nothing for a map of one site, of sites of different sizes, which it would pad, and where a
        latent is drawn at every call.

        Raises:
            UnsupportedError: Where FSDP2 has not gathered the params, or has freed them again already.
        """
        if self.map.sites == 1 or not self.map.is_even or self.map.resampled:
            return
        own, record = self.own(), Record()
        if not any(tensor.is_inference() for tensor in own):
            sites = self._cache.factors(own, Record, lambda: self._sites(record))
            self._generation.open(own, sites, record)

    def open(self, sites: Sequence[Chains], record: Record, first: int) -> None:
        """Begin a pass with what was generated elsewhere: slices ``first ..`` of a record."""
        self._cache.clear()  # as in every call with gradient
        self._generation.open(self.own(), sites, record, first)

    def end(self) -> None:
        """End the pass; what a recomputation in the backward needs is kept by its graph."""
        self._generation.close()

    def train(self, mode: bool = True) -> "FactorGenerator":
        """As ever; a change of mode forgets what was kept, so that no unseen change outlives it."""
        if mode != self.training:
            self._cache.clear()
            self._generation.clear()
        return super().train(mode)

    @property
    def is_batchable(self) -> bool:
        """Whether this may be generated with others of its map: see :class:`tntune.adapters.batch.Batch`."""
        if not self._generation.is_asked or (self.training and self.map.resampled):
            return False
        params = [(getattr(self, name), shape) for name, shape in self._param_shapes.items()]
        if not all(type(param) is nn.Parameter and param.shape == shape for param, shape in params):
            return False
        return any(param.requires_grad for param, _ in params)

    def chains_of(self, params: Tensors, fixed: Tensors) -> Chains:
        """The matrices that a layer of a map of one site applies, made from these tensors."""
        return self._halves(params, fixed) if self._halves else Chains.of(self.map.factors(params, fixed))

    def own(self) -> list[Tensor]:
        """Params and fixed, in the order of the map's names."""
        held = {**self._parameters, **self._buffers}  # where wrappers leave them; otherwise attributes
        return [held[name] if name in held else getattr(self, name) for name in self._names]  # type: ignore[misc]

    def tensors(self) -> dict[str, Tensor]:
        """Params and fixed, detached, by flat name: what a checkpoint stores."""
        return {name: getattr(self, name).detach() for name in self.map.tensor_shapes}

    def tensor_trains(self) -> tuple[nn.Module, ...]:
        """The trains as tensorly-torch modules on the *same* parameters: train one, and the other follows.

        A ``tltorch.TTTensor`` for a train without latent, a ``tltorch.BlockTT`` (latent, open) for one with.

        Raises:
            SpecError: Where the map has no trains, or a boundary rank above 1, which tensorly does not know.
        """
        if isinstance(self.map, TensorGuide):
            return (self._tensor_train(self.map.train, "tt_"),)
        if isinstance(self.map, TTLoRA):
            pairs = ((self.map.down_train, "tt_down_"), (self.map.up_train, "tt_up_"))
            return tuple(self._tensor_train(train, prefix) for train, prefix in pairs)
        raise SpecError(f"a map of kind {self.map.kind!r} has no tensor trains")

    def extra_repr(self) -> str:
        """The map."""
        return repr(self.map)

    def _ready(self, site: int) -> Chains | None:
        """What the pass that runs, or one that is recomputed, has made for a site."""
        if self.map.sites > 1:
            check_recomputation()
        return self._generation.take(self.own, site)

    def _whole(self, site: int | None) -> Factors:
        """The factors themselves."""
        if self.map.sites > 1 and hasattr(self.weight, "full_tensor"):  # this process's part
            self._refuse_unit()
        drawn = self._drawn()
        return self._factors(drawn, site) if drawn else self.stored(site)

    def _sites(self, record: Record) -> tuple[Chains, ...]:
        """The matrices of every site."""
        factors = self()
        if not factors.down.untyped_storage().size():  # views of what was gathered and freed again
            self._refuse_unit()
        return tuple(Chains((down,), (up,)) for down, up in slices(record, factors))

    def _chains(self, site: int | None) -> Chains:
        """The whole factors as chains, kept where they are generated."""
        if not self._is_generated or (self.training and self.map.resampled):
            return Chains.of(self._whole(site))
        return self._cache.factors(self.own(), (Chains, site), lambda: Chains.of(self._whole(site)))

    def _products(self) -> Chains:
        """The factors as products, kept as whole factors are."""
        drawn = self._drawn()

        def make() -> Chains:
            with without_autocast(self.weight.device):
                return self.chains_of(self._params(), {**self._fixed(), **drawn})

        return make() if drawn else self._cache.factors(self.own(), Chains, make)

    def _refuse_unit(self) -> NoReturn:
        raise UnsupportedError(
            f"FSDP2 has the tensors of a map that {self.map.sites} layers share in the unit of one of them; "
            "make the generator a unit first: fully_shard(generator, reshard_after_forward=False)"
        )

    def _drawn(self) -> dict[str, Tensor]:
        """The latents that this call draws."""
        names = self.map.resampled if self.training else ()
        return {name: torch.randn_like(getattr(self, name)) for name in names}

    def _factors(self, drawn: Tensors, site: int | None) -> Factors:
        """The map's factors, with these latents in place of the stored ones, at full precision."""
        params, fixed = self._params(), {**self._fixed(), **drawn}
        with without_autocast(self.weight.device):
            if site is None:
                return self.map.factors(params, fixed)
            return self.map.site_factors(params, fixed, site)

    def _params(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._param_shapes}

    def _fixed(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.map.fixed_shapes}

    def _tensor_train(self, train: LatentTrain, prefix: str) -> nn.Module:
        if train.ranks[0] != 1 or train.ranks[-1] != 1:
            raise SpecError(
                f"tensorly trains have boundary ranks 1, not {train.ranks[0]} and {train.ranks[-1]}"
            )
        cores = [getattr(self, name) for name in train.names(prefix)]
        if not train.has_latent:
            return tltorch.TTTensor(cores)  # type: ignore[no-any-return]
        shape = (train.latent.modes, train.modes)
        return tltorch.BlockTT(cores, tensorized_shape=shape, rank=train.ranks)  # type: ignore[no-any-return]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FactorGenerator":
        """Move and cast as usual, but never cast a latent."""
        kept = {name: getattr(self, name) for name in self.map.latent_names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, z in kept.items():
            moved = getattr(self, name)
            if moved.dtype != z.dtype:
                setattr(self, name, z.to(moved.device))
        return self


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A block in which arithmetic keeps its dtype, inside ``torch.autocast`` too.

    Example:
        >>> x = torch.ones(2, 2)
        >>> with torch.autocast("cpu"), without_autocast(x.device):
        ...     (x @ x).dtype
        torch.float32
    """
    is_known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type)
    if device.type == "meta" or not is_known:  # torch 2.6 cannot trace the question
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _check(what: str, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(set(shapes) - set(tensors)), sorted(set(tensors) - set(shapes))
    if missing or unknown:
        raise SpecError(f"{what}: missing {missing}, unknown {unknown}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ModeError(f"{what}: {name} has shape {tuple(tensors[name].shape)}, the map needs {shape}")
        if not tensors[name].is_floating_point():
            raise DtypeError(f"{what}: {name} is {tensors[name].dtype}, the map needs floats")
