"""Sections on Jacobians: conditions by layer as heat maps, and the spectrum of one layer."""

from collections.abc import Sequence
from html import escape
from itertools import accumulate

from tntune.report.analysis import AdapterAnalysis, LayerAnalysis
from tntune.report.counted import CountedSpectrum
from tntune.report.numerical import EXACT_PARAMETERS
from tntune.report.page import figure, html_table
from tntune.report.plots import Curve, curves, heat_maps
from tntune.report.summary import grid, shown

__all__ = ["conditioning_section", "jacobian_section"]

_SHORT = 48  # layers whose numbers are shown at once
_UNKNOWN = (None, None, None)
_COLUMNS = (
    *("layer", "cond J", "relative", "canonical", "by", "λ_max J Jᵀ", "λ_min⁺"),
    *("stable rank", "participation", "entropy", "cond⁺ T", "λ_min⁺ / mean"),
)


def conditioning_section(adapter: AdapterAnalysis, label: str) -> str:
    """Heat maps of three conditions over layers, and the numbers, as HTML.

    Example:
        >>> "no layers" in conditioning_section(AdapterAnalysis("a", "LORA", None, 0, 0, ()), "a")
        True
    """
    if not adapter.layers:
        return f"<p>{escape(label)} has no layers.</p>"
    rows, kinds, places = grid([layer.layer.name for layer in adapter.layers])
    panels: dict[str, dict[tuple[int, int], float]] = {
        "J, cores as stored": {},
        "J, canonical cores": {},
        "tangent kernel": {},
    }
    for layer in adapter.layers:
        found = (_condition(layer.jacobian.spectrum), _condition(layer.jacobian.gauge_fixed))
        for own, value in zip(panels.values(), (*found, layer.kernel.spectrum.cond_plus), strict=True):
            if value is not None:
                own[places[layer.layer.name]] = value
    drawn = heat_maps(f"heat {label}", rows, kinds, {title: own for title, own in panels.items() if own})
    caption = (
        "Ratio of the largest to the least non-zero eigenvalue; brighter is worse, all panels share one "
        "scale. Left: J Jᵀ in the gauge that training ended in; another basis on the bonds would change it. "
        "Middle: in canonical cores, the same for every gauge (T2). Right: the kernel of one layer, what "
        "gradient descent meets. " + _what_of(adapter)
    )
    table = html_table(_COLUMNS, [_condition_row(layer) for layer in adapter.layers], text=(0, 4))
    shown_at_once = " open" if len(adapter.layers) <= _SHORT else ""
    numbers = f"<details{shown_at_once}><summary>The numbers</summary>{table}</details>"
    return f"<h3>{escape(label)}</h3>{figure(drawn, caption)}{numbers}"


def _condition_row(layer: LayerAnalysis) -> tuple[object, ...]:
    own, spectrum = layer.jacobian, layer.jacobian.spectrum
    ranks = spectrum.effective_ranks if spectrum else {}
    largest, least, condition = spectrum.extremes if spectrum else _UNKNOWN
    return (
        layer.layer.name,
        shown(condition),
        shown(_condition(own.relative)),
        shown(_condition(own.gauge_fixed)),
        own.gauge_fixed_by,
        shown(largest),
        shown(least),
        *(shown(ranks.get(name)) for name in ("stable", "participation", "entropy")),
        shown(layer.kernel.spectrum.cond_plus),
        shown(layer.kernel.spread),
    )


def _what_of(adapter: AdapterAnalysis) -> str:
    """What J is the derivative of in this adapter."""
    if all(layer.jacobian.of == "delta" for layer in adapter.layers):
        return "J is that of ΔW / scale = up · down: a LoRA's factors are its parameters, their J is 1."
    return (
        "J is that of both factors, (down, up), by the cores; of plain LoRA layers, and of maps that are one "
        "tensor of ΔW, that of ΔW / scale. A layer of a shared map has the parameters that it reads. "
        f"A map that keeps more than {EXACT_PARAMETERS:,} parameters after its modes are made as small as "
        "its ranks admit has no numerical spectrum, and its cell is empty."
    )


def jacobian_section(adapters: Sequence[AdapterAnalysis], labels: Sequence[str], name: str) -> str:
    """Spectra of J of the layer of that name in every adapter, as HTML.

    Example:
        >>> jacobian_section((), (), "fc")
        '<p>No train of this layer is small enough for a numerical spectrum.</p>'
    """
    found = [(label, each.layer(name)) for label, each in zip(labels, adapters, strict=True)]
    layers = [(label, layer) for label, layer in found if layer is not None]
    own: list[Curve] = []
    for k, (path, layer) in enumerate(layers):
        named = (("as stored", layer.jacobian.spectrum, "-"), ("canonical", layer.jacobian.gauge_fixed, "--"))
        own += [
            (f"{path}, {form}", *_steps(spectrum), k, style)
            for form, spectrum, style in named
            if spectrum is not None and spectrum.values
        ]
    if not own:
        return "<p>No train of this layer is small enough for a numerical spectrum.</p>"
    drawn = curves("jacobian", {name: own}, x="number of eigenvalues", y=["eigenvalue of J Jᵀ"])
    caption = (
        "Eigenvalues in descending order, each as often as it occurs; the long steps are multiplicities, "
        "one for "
        "each singular value of an unfolding. Where a line ends, the directions that change nothing begin. "
        "Dashed: gauge-fixed directions of canonical cores, of which there are as many as the manifold of "
        "trains has dimensions."
    )
    columns = ("adapter", "J of", "P", "rank J", "zero directions", "λ_max", "λ_min⁺", "cond⁺")
    rows = [_jacobian_row(path, layer) for path, layer in layers]
    return figure(drawn, caption) + html_table(columns, rows, text=(0, 1))


def _jacobian_row(path: str, layer: LayerAnalysis) -> tuple[object, ...]:
    own, spectrum = layer.jacobian, layer.jacobian.spectrum
    of = "ΔW / scale" if own.of == "delta" else "(down, up)"
    extremes = spectrum.extremes if spectrum else _UNKNOWN
    return (
        path,
        of,
        own.params,
        "-" if spectrum is None else spectrum.rank,
        "-" if spectrum is None else spectrum.nullity,
        *(shown(value) for value in extremes),
    )


def _steps(spectrum: CountedSpectrum) -> tuple[list[float], list[float]]:
    """A descending staircase of eigenvalues with their counts."""
    ends = list(accumulate(spectrum.counts))
    x, y = [], []
    for start, end, value in zip([0, *ends], ends, spectrum.values, strict=False):
        x += [float(start), float(end)]
        y += [value, value]
    return x, y


def _condition(spectrum: CountedSpectrum | None) -> float | None:
    return None if spectrum is None else spectrum.condition
