"""compare_adapters: how far two adapter folders are apart, layer by layer and in total."""

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tntune.checkpoint.folder import open_adapter
from tntune.checkpoint.lora import LoraFolder
from tntune.checkpoint.tensorguide import TensorGuideFolder
from tntune.convert.gauge import delta_distance, delta_norm
from tntune.convert.option import Encoded, factors_of
from tntune.convert.report import total_error
from tntune.errors import ModeError, TargetError
from tntune.maps.activation import activation
from tntune.maps.base import Factors

__all__ = ["Comparison", "LayerComparison", "compare_adapters", "load_function"]

_PROBES = 512


@dataclass(frozen=True)
class LayerComparison:
    """One layer of two adapters.

    Attributes:
        name: Module path.
        norm: ``‖ΔW‖`` of the first.
        distance: ``‖ΔW₁ − ΔW₂‖``; a layer that an adapter lacks counts as ΔW = 0.
        relative_error: ``distance / norm``; infinite where only the norm is zero.
        measure: ``"frobenius"``, or ``"probe"`` where an adapter is nonlinear: then norms are root mean
            squares of the outputs' norms over 512 standard normal inputs of a fixed seed, which for a linear
            adapter estimates the Frobenius norm.

    Example:
        >>> LayerComparison("fc", 2.0, 0.5, 0.25, "frobenius").relative_error
        0.25
    """

    name: str
    norm: float
    distance: float
    relative_error: float
    measure: str


@dataclass(frozen=True)
class Comparison:
    """Two adapters.

    Attributes:
        first: Folder of the reference.
        second: Folder compared with it.
        relative_error: Distance over all layers relative to the first.
        layers: One entry for each layer of either.
        passthrough_differs: Names of carried tensors (heads, embeddings) that are not the same in both; they
            are no part of the errors.

    Example:
        >>> Comparison("one", "two", 0.25, ()).to_json()["relative_error"]
        0.25
    """

    first: str
    second: str
    relative_error: float
    layers: tuple[LayerComparison, ...]
    passthrough_differs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        plain = {**asdict(self), "passthrough_differs": list(self.passthrough_differs)}
        return {**plain, "layers": [asdict(layer) for layer in self.layers]}


@dataclass(frozen=True)
class AdapterFunction:
    """``x -> up σ(down x)`` of one layer, scale included, in float64."""

    factors: Factors
    activation: str

    @property
    def linear(self) -> bool:
        """Whether it is a matrix."""
        return activation(self.activation).linear

    @property
    def norm(self) -> float:
        """Its size, measured as :class:`LayerComparison` says."""
        return delta_norm(self.factors) if self.linear else _mean_norm(self(_inputs(self)))

    def distance(self, other: "AdapterFunction") -> float:
        """How far the other is off, in the same measure; in the nonlinear one where either is nonlinear."""
        if self.linear and other.linear:
            return delta_distance(self.factors, other.factors)
        x = _inputs(self)
        return _mean_norm(self(x) - other(x))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``(n, in)`` to ``(n, out)``."""
        return activation(self.activation).function(x @ self.factors.down.mT) @ self.factors.up.mT


def compare_adapters(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    member: str | None = None,
    first_member: str | None = None,
) -> Comparison:
    """``‖ΔW₁ − ΔW₂‖ / ‖ΔW₁‖`` for each layer and over all, in float64 from what is stored.

    Args:
        first: The reference, a LoRA or TensorGuide folder.
        second: What is compared with it.
        member: Which adapter of the second, where that is a library.
        first_member: Which adapter of the first, where that is one.

    Raises:
        CheckpointError, NumericalError: Where a folder cannot be read.
        ModeError: Where a layer has other sizes in the second.
        TargetError: Where the two have no layer in common, or a library no such member.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> with TemporaryDirectory() as parent:
        ...     for name, size in (("one", 1.0), ("two", 1.5)):
        ...         entry = LoraEntry("fc", torch.ones(2, 5), size * torch.ones(3, 2))
        ...         write_lora(Path(parent) / name, [entry], base_config={})
        ...     comparison = compare_adapters(Path(parent) / "one", Path(parent) / "two")
        >>> round(comparison.relative_error, 6)
        0.5
    """
    left = open_adapter(first, carry=True, member=first_member)
    right = open_adapter(second, carry=True, member=member)
    names = list(dict.fromkeys([*layer_names(left), *layer_names(right)]))
    if not set(layer_names(left)) & set(layer_names(right)):
        raise TargetError(f"{first} and {second} have no adapted layer in common")
    layers = tuple(_compare(name, load_function(left, name), load_function(right, name)) for name in names)
    total = total_error((layer.distance**2 for layer in layers), (layer.norm for layer in layers))
    return Comparison(str(first), str(second), total, layers, _differing(left, right))


def _differing(
    left: LoraFolder | TensorGuideFolder, right: LoraFolder | TensorGuideFolder
) -> tuple[str, ...]:
    """Carried tensors that only one folder has, or that differ."""
    shared = set(left.passthrough) & set(right.passthrough)
    alone = set(left.passthrough) ^ set(right.passthrough)
    return tuple(
        sorted(alone | {key for key in shared if not torch.equal(left.tensor(key), right.tensor(key))})
    )


def layer_names(folder: LoraFolder | TensorGuideFolder) -> list[str]:
    """Module paths of the adapted layers."""
    return [site.name for site in folder.sites] if isinstance(folder, LoraFolder) else list(folder.sites)


def load_function(folder: LoraFolder | TensorGuideFolder, name: str) -> AdapterFunction | None:
    """What one layer's adapter computes, or None where the folder does not adapt that layer.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> with TemporaryDirectory() as parent:
        ...     entry = LoraEntry("fc", torch.ones(2, 5), torch.ones(3, 2))
        ...     write_lora(Path(parent) / "lora", [entry], base_config={})
        ...     function = load_function(open_adapter(Path(parent) / "lora"), "fc")
        >>> function(torch.ones(1, 5).double()).tolist()
        [[10.0, 10.0, 10.0]]
    """
    if name not in (folder.by_name if isinstance(folder, LoraFolder) else folder.sites):
        return None
    if isinstance(folder, LoraFolder):
        down, up, scale = folder.load(folder.by_name[name])
        return AdapterFunction(Factors(down.double(), scale * up.double()), "identity")
    site = folder.sites[name]
    down, up = factors_of(Encoded(site, folder.load(name)))
    return AdapterFunction(Factors(down, site.scale * up), site.activation)


def _compare(name: str, first: AdapterFunction | None, second: AdapterFunction | None) -> LayerComparison:
    reference = first or second
    assert reference is not None
    one, two = first or _zero(reference), second or _zero(reference)
    shapes = [(f.factors.up.shape[0], f.factors.down.shape[1]) for f in (one, two)]
    if shapes[0] != shapes[1]:
        raise ModeError(f"{name}: is {shapes[0]} in the first adapter and {shapes[1]} in the second")
    measure = "frobenius" if one.linear and two.linear else "probe"
    norm = one.norm if one.linear == two.linear else _mean_norm(one(_inputs(one)))
    distance = one.distance(two)
    relative = distance / norm if norm else (0.0 if not distance else float("inf"))
    return LayerComparison(name, norm, distance, relative, measure)


def _zero(like: AdapterFunction) -> AdapterFunction:
    down, up = like.factors
    return AdapterFunction(Factors(torch.zeros_like(down[:1]), torch.zeros_like(up[:, :1])), "identity")


def _inputs(function: AdapterFunction) -> torch.Tensor:
    """The same standard normal inputs at each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_PROBES, function.factors.down.shape[1], generator=generator, dtype=torch.float64)


def _mean_norm(outputs: torch.Tensor) -> float:
    """Root mean square of the rows' norms."""
    return float(outputs.square().sum(1).mean().sqrt())
