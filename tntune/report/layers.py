"""AdaptedLayer: one layer of an adapter folder, of whatever kind, as a site and its tensors."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from tntune.checkpoint.folder import open_adapter
from tntune.checkpoint.lora import LoraFolder, LoraSite
from tntune.checkpoint.tensorguide import TensorGuideFolder
from tntune.maps.activation import activation
from tntune.maps.base import Factors
from tntune.maps.delta import DeltaMap
from tntune.maps.delta_train import DeltaTrain
from tntune.maps.layout import Concat, Joined
from tntune.maps.lora import LoRA
from tntune.maps.loretta import LoRETTA
from tntune.maps.member import Member
from tntune.maps.single import single_site
from tntune.maps.site import Site
from tntune.maps.tenslora import TensLoRA
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

__all__ = ["AdaptedLayer", "adapted_layers", "dashed", "open_layers"]


@dataclass(frozen=True, eq=False)
class AdaptedLayer:
    """A layer ``y = base(x) + scale * up σ(down x)``: what a LoRA and a TensorGuide folder have in common.

    Attributes:
        name: Path of the module in the base model.
        site: Map, scale and activation; a LoRA folder's layers have a :class:`LoRA`.
        tensors: Params and fixed by flat name, float64.

    Example:
        >>> import torch
        >>> tensors = {"lora_down": torch.ones(1, 3).double(), "lora_up": torch.ones(2, 1).double()}
        >>> layer = AdaptedLayer("fc", Site(LoRA(3, 2, 1), scale=0.5), tensors)
        >>> layer(torch.ones(1, 3)).tolist(), layer.shape, layer.ranks
        ([[1.5, 1.5]], (2, 3), '1')
    """

    name: str
    site: Site
    tensors: dict[str, Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out_features, in_features)`` of the adapted weight."""
        return self.site.map.out_features, self.site.map.in_features

    @property
    def ranks(self) -> str:
        """TT-ranks, both ends included, or ranks of other maps: dashes between them, a bar between trains."""
        map = self.site.map
        if isinstance(map, TensorGuide | DeltaTrain | TensLoRA):
            return dashed(map.ranks)
        if isinstance(map, TTLoRA):
            return f"{dashed(map.down_train.ranks)} | {dashed(map.up_train.ranks)}"
        return str(map.width)

    @property
    def modes(self) -> str:
        """Open modes of the trains; empty for a map without trains."""
        map = self.site.map
        if isinstance(map, TensorGuide):
            return dashed(map.layout.modes)
        if isinstance(map, TTLoRA):
            return f"{dashed(map.down_train.modes)} | {dashed(map.up_train.modes)}"
        return dashed((*map.in_modes, *map.out_modes)) if isinstance(map, DeltaTrain) else ""

    @property
    def layout(self) -> str:
        """The pattern of a TensorGuide's layout; empty for other maps."""
        layout = getattr(self.site.map, "layout", None)
        if isinstance(layout, Joined):
            return layout.pattern
        return layout.kind if isinstance(layout, Concat) else ""

    @property
    def is_product(self) -> bool:
        """Whether it is a LoRA without activation: a matrix whose two factors are its params."""
        return isinstance(self.site.map, LoRA) and activation(self.site.activation).linear

    @property
    def is_delta(self) -> bool:
        """Whether J is taken of ΔW itself: without activation a LoRA, or a map that is one network of ΔW."""
        return isinstance(self.site.map, LoRA | DeltaMap) and activation(self.site.activation).linear

    @property
    def has_trains(self) -> bool:
        """Whether the map is made of trains, so that J has their structure."""
        return isinstance(self.site.map, LoRA | TTLoRA | TensorGuide | LoRETTA | DeltaTrain)

    @cached_property
    def factors(self) -> Factors:
        """``down (width, in)`` and ``up (out, width)``, without the scale."""
        down, up = self.site.factors(self.tensors)
        return Factors(down[0], up[0])

    def __call__(self, x: Tensor) -> Tensor:
        """What the adapter adds to the layer: ``(n, in)`` to ``(n, out)``, in float64."""
        down, up = self.factors
        hidden: Tensor = activation(self.site.activation).function(x.double() @ down.mT)
        return self.site.scale * hidden @ up.mT


def adapted_layers(folder: LoraFolder | TensorGuideFolder) -> Iterator[AdaptedLayer]:
    """The layers of a folder, read one at a time, in its order.

    A layer of a shared map is that site by itself, with the params that it reads
    (:func:`tntune.maps.single_site`).

    Raises:
        NumericalError: Where an entry is NaN or infinite; names the file and the tensor.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> with TemporaryDirectory() as parent:
        ...     entry = LoraEntry("fc", torch.ones(2, 5), torch.ones(3, 2))
        ...     write_lora(Path(parent) / "lora", [entry], base_config={})
        ...     (layer,) = adapted_layers(open_adapter(Path(parent) / "lora"))
        >>> layer.name, layer.site.map
        ('fc', LoRA(in_features=5, out_features=3, width=2, start='zero'))
    """
    if isinstance(folder, LoraFolder):
        yield from (_lora_layer(folder, site) for site in folder.sites)
        return
    for name, site in folder.sites.items():
        tensors = {key: tensor.double() for key, tensor in folder.load(name).items()}
        if isinstance(site.map, Member):
            own, tensors = single_site(site.map.whole, tensors, site.map.index)
            site = replace(site, map=own)
        yield AdaptedLayer(name, site, tensors)


def open_layers(folder: str | os.PathLike[str]) -> LoraFolder | TensorGuideFolder:
    """The folder, opened with all that it carries beside its layers.

    Raises:
        CheckpointError: Naming the file, the key and the reason, in one line.

    Example:
        >>> open_layers("nowhere")
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere/adapter_config.json: cannot be read: No such file or directory
    """
    return open_adapter(folder, carry=True)


def dashed(sizes: tuple[int, ...]) -> str:
    """Sizes with dashes between them.

    Example:
        >>> dashed((1, 4, 1))
        '1-4-1'
    """
    return "-".join(str(size) for size in sizes)


def _lora_layer(folder: LoraFolder, site: LoraSite) -> AdaptedLayer:
    """A LoRA's two matrices as the params of a :class:`LoRA`."""
    down, up, scale = folder.load(site)
    map = LoRA(site.in_features, site.out_features, site.width)
    return AdaptedLayer(site.name, Site(map, scale), {"lora_down": down.double(), "lora_up": up.double()})
