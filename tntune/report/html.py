"""The page of `tntune analyze`: every plot with its table, every bound with its assumptions."""

from collections.abc import Callable
from html import escape

from tntune.report.analysis import AdapterAnalysis, LayerAnalysis
from tntune.report.html_jacobian import conditioning_section, jacobian_section
from tntune.report.html_methods import descent_section, generalisation_section, kernel_section
from tntune.report.page import footer, html_table, page
from tntune.report.probe import Probe
from tntune.report.report import AnalysisReport
from tntune.report.summary import BoundSummary, folder_labels, shown, summarize

__all__ = ["analysis_page"]

_COLUMNS = (
    *("layer", "method", "layout", "modes", "ranks", "out x in", "params", "zero directions"),
    *("by formula", "scale", "|ΔW|", "σ"),
)
_ZERO_DIRECTIONS = (
    '<p class="soft">Zero directions of the parameters change no weight. They are counted numerically, and '
    "by a formula in the shapes alone (T1: Σ r² of the bonds; with a latent T4). More of them than the "
    "formula "
    "says means cores that are not minimal: ranks above what the trained weights use.</p>"
)
_LABELS = (
    '<p class="soft">Labels are rows of <code>theory/README.md</code>. A ratio of 1 is equality; bound and '
    "measured quantity are those of the layer where the ratio is least. E26+ is no theorem: it is the "
    "reading "
    "of equation 26 under which that would not be empty.</p>"
)


def analysis_page(report: AnalysisReport) -> str:
    """The whole analysis as one HTML file that needs nothing from elsewhere.

    Raises:
        UnsupportedError: Where matplotlib is not installed.

    Example:
        >>> from tntune.report.methods import MethodComparison
        >>> empty = AnalysisReport("c", Probe(), (), MethodComparison("fc", (3, 4), 8, ()))
        >>> analysis_page(empty)[:15]
        '<!doctype html>'
    """
    labels, methods = folder_labels([adapter.path for adapter in report.adapters]), report.methods
    pairs = list(zip(report.adapters, labels, strict=True))

    def each(make: Callable[[AdapterAnalysis, str], str]) -> str:
        return "".join(make(adapter, label) for adapter, label in pairs)

    sections = [
        ("conditioning", "Conditioning", each(conditioning_section)),
        ("jacobian", "Jacobian", jacobian_section(report.adapters, labels, methods.layer)),
        ("kernels", "Tangent kernel by method", kernel_section(methods, report.probe)),
        ("descent", "Descent", descent_section(methods)),
        ("generalisation", "Generalisation", generalisation_section(methods)),
        ("bounds", "Bounds", _LABELS + each(_bounds)),
        ("layers", "Layers", _ZERO_DIRECTIONS + each(_layers)),
        ("reading", "Reading", _reading(report.probe)),
    ]
    title = f"Analysis of {', '.join(labels) or 'no adapter'}"
    return page(title, _head(report, pairs), sections, footer(report.command))


def _head(report: AnalysisReport, pairs: list[tuple[AdapterAnalysis, str]]) -> str:
    """Tiles and findings."""
    tiles: list[tuple[str, str]] = []
    findings: list[str] = []
    for adapter, label in pairs:
        empty = sum(layer.jacobian.params - _rank(layer) for layer in adapter.layers)
        size = f"parameters in {len(adapter.layers)} layers of {label} ({adapter.peft_type})"
        tiles += [(f"{adapter.params:,}", size), (f"{empty:,}", "directions of them change nothing")]
        findings += _findings(adapter, label)
    boxes = "".join(
        f'<div class="tile"><b>{value}</b><span>{escape(name)}</span></div>' for value, name in tiles
    )
    points = "".join(f"<li>{escape(text)}</li>" for text in findings)
    bases = sorted({adapter.base_model for adapter, _ in pairs if adapter.base_model})
    on = f"Adapters of {', '.join(bases)}. " if bases else ""
    words = f'<p class="soft">{escape(on)}Kernels on {escape(report.probe.words)}.</p>'
    return f'{words}<div class="tiles">{boxes}</div><ul>{points}</ul>'


def _findings(adapter: AdapterAnalysis, label: str) -> list[str]:
    """What stands out, in sentences made of measured numbers."""
    found = []
    measured = [layer for layer in adapter.layers if layer.kernel.spectrum.cond_plus]
    if measured:
        worst = max(measured, key=lambda layer: layer.kernel.spectrum.cond_plus or 0.0)
        best = min(measured, key=lambda layer: layer.kernel.spectrum.cond_plus or 0.0)
        found.append(
            f"{label}: the tangent kernel is worst conditioned in {worst.layer.name} "
            f"(λ_max / λ_min⁺ = {shown(worst.kernel.spectrum.cond_plus)}) and best in {best.layer.name} "
            f"({shown(best.kernel.spectrum.cond_plus)})."
        )
    still = [layer.layer.name for layer in adapter.layers if layer.norm == 0]
    if still:
        found.append(f"{label}: ΔW = 0 in {len(still)} layers, such as {still[0]}: they do nothing.")
    groups = summarize(bound for layer in adapter.layers for bound in layer.bounds)
    rows = sum(group.layers for group in groups if group.theorem)
    held = sum(group.held for group in groups if group.theorem)
    text = f"{label}: {held:,} of {rows:,} rows of proven bounds hold"
    wrong = next((group for group in groups if not group.theorem), None)
    if wrong is not None:
        text += (
            "; the paper's equation 26, read with λ_min⁺ so that it says something, would hold in "
            f"{wrong.held} "
            f"of {wrong.layers} layers"
        )
    return [*found, text + "."]


def _layers(adapter: AdapterAnalysis, label: str) -> str:
    """One row for each layer."""
    rows = [
        (
            layer.layer.name,
            layer.layer.site.map.kind,
            layer.layer.layout or "-",
            layer.layer.modes or "-",
            layer.layer.ranks,
            "x".join(map(str, layer.layer.shape)),
            layer.jacobian.params,
            "-" if layer.jacobian.spectrum is None else layer.jacobian.spectrum.nullity,
            "-" if layer.jacobian.nullity_formula is None else layer.jacobian.nullity_formula,
            shown(layer.layer.site.scale),
            shown(layer.norm),
            layer.layer.site.activation,
        )
        for layer in adapter.layers
    ]
    return f"<h3>{escape(label)}</h3>{html_table(_COLUMNS, rows, text=(0, 1, 2, 3, 4, 11))}"


def _bounds(adapter: AdapterAnalysis, label: str) -> str:
    """Every statement over all layers, and every assumption."""
    groups = summarize(bound for layer in adapter.layers for bound in layer.bounds)
    columns = (
        "label",
        "statement",
        "holds in",
        "tightest ratio",
        "median",
        "bound",
        "measured",
        "assumptions",
    )
    rows = [_bound_row(group) for group in groups]
    return f"<h3>{escape(label)}</h3>{html_table(columns, rows, text=(0, 1, 7))}"


def _bound_row(group: BoundSummary) -> tuple[object, ...]:
    return (
        group.label,
        group.statement,
        f"{group.held} of {group.layers}",
        shown(group.tightest),
        shown(group.median),
        shown(group.example.value),
        shown(group.example.measured),
        "; ".join(group.example.assumptions),
    )


def _reading(probe: Probe) -> str:
    """Definitions."""
    items = {
        "J": "derivative of a layer's weights by its parameters. Its spectrum is exact: orthogonal turns of "
        "the modes make every train small without changing it, and what splits off is counted.",
        "relative": "the same of (down / |down|, up / |up|): relative changes of both factors.",
        "canonical": "cores left-orthogonal up to the last, which has the weight; singular values are "
        "those of the unfoldings, and ones (T2). Numerical where a latent is in the way.",
        "T": f"tangent kernel of one layer, T = A Aᵀ, on {probe.words}. Real inputs are far from normal; "
        "give some by --inputs.",
        "λ_min": "0 only where the structure says so; where the precision cannot tell, an upper limit "
        "is given. λ_min⁺ is the least eigenvalue above rounding, cond⁺ = λ_max / λ_min⁺.",
        "effective ranks": "stable tr / λ_max, participation (tr)² / Σ λ², entropy exp H: three numbers that "
        "differ by design.",
        "not here": "nothing on this page is a measurement of a trained network's accuracy.",
    }
    return "".join(f"<p><b>{escape(name)}</b>: {escape(text)}</p>" for name, text in items.items())


def _rank(layer: LayerAnalysis) -> int:
    """Rank of J as counted, or as bounded where it was not counted."""
    spectrum = layer.jacobian.spectrum
    return layer.jacobian.rank_bound if spectrum is None else spectrum.rank
