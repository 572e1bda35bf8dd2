"""round_adapter: lower the TT-ranks of an adapter folder to a stated error of its function."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tensorly.tt_tensor import TTTensor
from torch import Tensor

from tntune.checkpoint.tensor_file import TENSORS_NAME
from tntune.checkpoint.tensorguide import TensorGuideFolder, open_tensorguide
from tntune.checkpoint.tensorguide_writer import write_tensorguide
from tntune.convert.compare import AdapterFunction
from tntune.convert.encode import DeltaEncoder, stored
from tntune.convert.gauge import balance
from tntune.convert.option import Encoded, Encoder, Option, factors_of
from tntune.convert.output import check_output
from tntune.convert.report import ConversionReport, LayerReport, stored_dtypes, total_error
from tntune.convert.target import Target, choose, train_options
from tntune.errors import UnsupportedError
from tntune.maps.activation import activation
from tntune.maps.base import Factors
from tntune.maps.latent import Latent
from tntune.maps.lora import LoRA
from tntune.maps.member import Member
from tntune.maps.tensorguide import TensorGuide
from tntune.tt.decompose import tt_svd
from tntune.tt.rank_rule import RankRule, ShrinkStep, shrink_path
from tntune.tt.rounding import Rounding
from tntune.tt.train import cores

__all__ = ["SiteEncoder", "round_adapter"]


class SiteEncoder(Encoder):
    """The trains of lower rank that stand for one TensorGuide site, in its own layout.

    A latent is absorbed, a frozen start subtracted: the result is a train without either. Errors are those
    of ΔW for a linear σ, else of the outputs, as :func:`tntune.convert.compare_adapters` measures them.

    Args:
        encoded: The site and its tensors.

    Raises:
        UnsupportedError: Where the map is no TensorGuide, or its latent is averaged.

    Example:
        >>> import torch
        >>> from tntune.maps.build import build_map
        >>> from tntune.maps.layout import Geometry
        >>> from tntune.maps.site import Site
        >>> site = Site(build_map("tensorguide", Geometry(12, 8, 2), rank=4, start="random"))
        >>> encoder = SiteEncoder(Encoded(site, site.map.init(torch.Generator().manual_seed(0))[0]))
        >>> encoder.kept().params, [step.params for step in encoder.path("")][-1]
        (80, 11)
    """

    def __init__(self, encoded: Encoded) -> None:
        map = encoded.site.map
        if isinstance(map, Member):
            raise UnsupportedError(
                "its layers share one map, and round knows maps of one layer: export, resize"
            )
        if not isinstance(map, TensorGuide):
            raise UnsupportedError(f"a map of kind {map.kind!r} has no train of its own to round")
        if map.latent.mode == "mean":
            raise UnsupportedError(
                "a mean over a latent is no single train; export it to LoRA and convert that"
            )
        self.site, self.map = encoded.site, map
        self.dtype = encoded.tensors[next(iter(map.param_shapes))].dtype
        self.encoded = encoded
        self.function = _function(encoded)
        self._train = Rounding(_exact_train(map, encoded.tensors, factors_of(encoded)))
        self._path: list[ShrinkStep] = []

    @property
    def norm(self) -> float:
        return self.function.norm

    @property
    def layout(self) -> str:
        """How reports name the layout."""
        return getattr(self.map.layout, "pattern", self.map.layout.kind)

    def kept(self) -> Option:
        """The site as it is."""
        ranks, params = self.map.ranks, self.map.num_parameters
        return Option("kept", self.layout, ranks, params, 0.0)

    def path(self, layout: str) -> list[ShrinkStep]:
        if not self._path:
            self._path = shrink_path(self._train.spectra(), self._train.sizes)
        return self._path

    def at(self, layout: str, ranks: Sequence[int]) -> Option:
        option = Option("tensorguide", layout, (1, *ranks, 1), 0, 0.0)
        encoded = self.encode(option)
        distance = self.function.distance(_function(encoded))
        return replace(option, params=encoded.site.map.num_parameters, squared_error=distance**2)

    def encode(self, option: Option) -> Encoded:
        if option.method == "kept":
            return self.encoded
        train = self._train(RankRule(ranks=option.ranks)).value
        map = replace(self.map, ranks=tuple(train.rank), latent=Latent(), start="random")
        tensors = (stored(core, self.dtype) for core in cores(train))
        return Encoded(replace(self.site, map=map), dict(zip(map.param_shapes, tensors, strict=True)))


def round_adapter(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    target: Target,
    *,
    overwrite: bool = False,
) -> ConversionReport:
    """Write ``output``, the adapter of ``source`` with lower ranks, off by the reported error.

    Trains are rounded in their own layout; plain factors (that a conversion kept) are truncated by SVD.

    Args:
        source: TensorGuide folder.
        output: Folder to write; whole or not at all.
        target: How small or how accurate; a share counts all parameters of the adapter.
        overwrite: Whether an existing adapter folder may be replaced.

    Raises:
        UnsupportedError: Where a map is neither a TensorGuide nor a LoRA, or a latent is averaged.
        RankError: Where the budget is too small.
        CheckpointError, NumericalError: Where the source cannot be read.
        OutputError: Where the output cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from torch import eye
        >>> from tntune.checkpoint.tensorguide_writer import write_tensorguide
        >>> from tntune.maps.site import Site
        >>> tensors = {"lora_down": eye(3, 5), "lora_up": eye(4, 3)}
        >>> with TemporaryDirectory() as parent:
        ...     guide, smaller = Path(parent) / "guide", Path(parent) / "smaller"
        ...     write_tensorguide(guide, {"fc": (Site(LoRA(5, 4, 3)), tensors)}, config={})
        ...     report = round_adapter(guide, smaller, Target(max_rank=2))
        >>> report.params_before, report.params_after, round(report.relative_error**2, 6)
        (27, 18, 0.333333)
    """
    check_output(source, output, overwrite=overwrite)
    folder = open_tensorguide(source, carry=True)
    encoders = {name: _encoder(folder, name) for name in folder.sites}
    curves = {name: list(_options(encoder, target, folder, name)) for name, encoder in encoders.items()}
    norms = {name: encoder.norm for name, encoder in encoders.items()}
    chosen = choose(curves, norms, target, folder.params)
    encoded = {name: encoder.encode(chosen[name]) for name, encoder in encoders.items()}
    report = _report(folder, str(output), target, chosen, norms)
    report = replace(report, dtypes=stored_dtypes(encoded.values()))
    write_tensorguide(
        output,
        encoded,
        config=folder.config,
        passthrough={name: folder.tensor(name) for name in folder.passthrough},
        metadata={"tntune": "round", "target": target.to_json(), "relative_error": report.relative_error},
        card=report.card(),
        overwrite=overwrite,
    )
    return replace(report, bytes_after=(Path(output) / TENSORS_NAME).stat().st_size)


def _encoder(folder: TensorGuideFolder, name: str) -> DeltaEncoder | SiteEncoder:
    encoded = Encoded(folder.sites[name], folder.load(name))
    plain = isinstance(encoded.site.map, LoRA) and activation(encoded.site.activation).linear
    try:
        return _factor_encoder(encoded) if plain else SiteEncoder(encoded)
    except UnsupportedError as error:
        raise UnsupportedError(f"{name}: {error}") from error


def _factor_encoder(encoded: Encoded) -> DeltaEncoder:
    """Plain factors that a conversion kept: as they are, or truncated by SVD."""
    down, up = factors_of(encoded)
    balanced = balance(down, up, encoded.site.scale)
    return DeltaEncoder(balanced, encoded.tensors["lora_up"].dtype, original=encoded)


def _options(
    encoder: DeltaEncoder | SiteEncoder, target: Target, folder: TensorGuideFolder, name: str
) -> Iterator[Option]:
    """The site as it is, where its ranks are below a cap, and what is smaller than that."""
    kept = encoder.kept()
    if target.max_rank is None or max(kept.ranks) <= target.max_rank:
        yield kept
    if isinstance(encoder, SiteEncoder):
        share = (target.budget(folder.params) or folder.params) * kept.params / folder.params
        options = train_options(encoder, encoder.layout, target, share)
    else:
        limit = target.max_rank or len(encoder.balanced.values)
        options = (option for option in encoder.truncations() if option.ranks[0] <= limit)
    yield from (option for option in options if option.params < kept.params)


def _report(
    folder: TensorGuideFolder,
    output: str,
    target: Target,
    chosen: Mapping[str, Option],
    norms: Mapping[str, float],
) -> ConversionReport:
    layers = tuple(_layer(folder, name, option, norms[name]) for name, option in chosen.items())
    error = total_error((option.squared_error for option in chosen.values()), norms.values())
    return ConversionReport(
        source=str(folder.path),
        output=output,
        settings={"target": target.to_json()},
        measure=_measure(folder),
        params_before=folder.params,
        params_after=sum(option.params for option in chosen.values()),
        bytes_before=folder.num_bytes,
        bytes_after=0,
        dtypes=(),
        relative_error=error,
        svd_relative_error=None,
        target_met=target.met(chosen, norms, folder.params),
        passthrough=len(folder.passthrough),
        layers=layers,
    )


def _measure(folder: TensorGuideFolder) -> str:
    linear = all(activation(site.activation).linear for site in folder.sites.values())
    return "frobenius" if linear else "probe"


def _layer(folder: TensorGuideFolder, name: str, option: Option, norm: float) -> LayerReport:
    map = folder.sites[name].map
    return LayerReport(
        name=name,
        shape=(map.out_features, map.in_features),
        method=option.method,
        layout=option.layout,
        ranks=option.ranks,
        width=option.ranks[0] if option.method == "svd" else map.width,
        params_before=map.num_parameters,
        params_after=option.params,
        norm=norm,
        relative_error=total_error([option.squared_error], [norm]),
        svd_relative_error=None,
    )


def _exact_train(map: TensorGuide, tensors: Mapping[str, Tensor], factors: Factors) -> TTTensor:
    """The site's train in float64: its own cores, or that of its factors where z or a start is involved."""
    if map.train.has_latent or map.subtracts_start:
        return tt_svd(map.layout.write(factors.down[None], factors.up[None])).value
    return map.train.tensor_train([tensors[name].double() for name in map.param_shapes])


def _function(encoded: Encoded) -> AdapterFunction:
    """What a site computes, its scale multiplied into up."""
    down, up = factors_of(encoded)
    return AdapterFunction(Factors(down, encoded.site.scale * up), encoded.site.activation)
