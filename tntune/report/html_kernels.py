"""The page of `tntune ntk`: kernels of single layers, or of a whole model."""

from html import escape

from tntune.report.kernel import LayerSpectrum, spread
from tntune.report.kernels import AdapterKernels
from tntune.report.network import NetworkKernel
from tntune.report.page import figure, footer, html_table, page
from tntune.report.plots import Curve, curves, heat_maps
from tntune.report.report import KernelReport
from tntune.report.summary import folder_labels, grid, shown
from tntune.theory.spectrum import SpectrumReport

__all__ = ["kernel_page"]

_COLUMNS = ("rank T", "bound", "λ_max", "λ_min", "λ_min⁺", "cond⁺", "stable", "participation", "entropy")


def kernel_page(report: KernelReport) -> str:
    """Tangent kernels as one HTML file that needs nothing from elsewhere.

    Raises:
        UnsupportedError: Where matplotlib is not installed.

    Example:
        >>> kernel_page(KernelReport("tntune ntk a", None, (), ()))[:15]
        '<!doctype html>'
    """
    found: list[tuple[str, str, str]] = []
    if report.networks:
        found.append(("spectrum", "Spectrum", _spectra(report.networks)))
        found.append(("shares", "Layers", "".join(_shares(network) for network in report.networks)))
    if report.adapters:
        found.append(("layers", "Layers", "".join(map(_layers, enumerate(report.adapters)))))
    paths = [each.path for each in report.networks] + [each.path for each in report.adapters]
    names = ", ".join(folder_labels(paths))
    if report.probe is None:
        head = "The kernel of the whole model, over the parameters of its adapters."
    else:
        head = f"Kernels of single layers on {report.probe.words}."
    intro = f'<p class="soft">{escape(head)}</p>'
    return page(f"Tangent kernels of {names}", intro, found, footer(report.command))


def _layers(item: tuple[int, AdapterKernels]) -> str:
    """All layers of a folder: spectra, conditions by block, numbers."""
    k, adapter = item
    blocks, kinds, places = grid([layer.name for layer in adapter.layers])
    own: list[Curve] = []
    cells = {}
    for layer in adapter.layers:
        row, column = places[layer.name]
        values = list(layer.spectrum.eigenvalues)
        if values:
            mean, label = layer.spectrum.trace / layer.spectrum.size, kinds[column] or layer.name
            index = [float(i + 1) for i in range(len(values))]
            colour = column if len(kinds) > 1 else row
            own.append((label, index, [value / mean for value in values], colour, "-"))
            cells[(row, column)] = layer.spectrum.cond_plus or 1.0
    if not own:
        return f"<h3>{escape(adapter.path)}</h3><p>Every kernel is zero.</p>"
    lines = curves(f"spectra {k}", {adapter.path: own}, x="index", y=["eigenvalue / mean"])
    heat = heat_maps(f"kernel heat {k}", blocks, kinds, {"cond⁺ of T": cells})
    table = html_table(
        ("layer", "P", *_COLUMNS, "λ_min⁺ / mean", "route"),
        [_row(layer) for layer in adapter.layers],
        text=(0, 12),
    )
    return (
        f"<h3>{escape(adapter.path)}</h3>"
        + figure(
            lines,
            "Eigenvalues of every layer's kernel, divided by their mean; one colour for each projection.",
        )
        + figure(heat, "λ_max / λ_min⁺ of the same kernels; brighter is worse.")
        + table
    )


def _row(layer: LayerSpectrum) -> tuple[object, ...]:
    return (layer.name, layer.params, *_numbers(layer.spectrum), shown(layer.spread), layer.route)


def _spectra(networks: tuple[NetworkKernel, ...]) -> str:
    """Spectra of whole models."""
    own: list[Curve] = []
    rows = []
    for k, network in enumerate(networks):
        for c, spectrum in enumerate(network.spectra):
            label = network.path if len(network.spectra) == 1 else f"{network.path}, class {c}"
            colour = k if len(network.spectra) == 1 else k + c
            if spectrum.eigenvalues:
                index = [float(i + 1) for i in range(spectrum.rank)]
                own.append((label, index, list(spectrum.eigenvalues), colour, "-"))
            rows.append((label, spectrum.size, *_numbers(spectrum), shown(spread(spectrum))))
    title = f"{networks[0].output}, {networks[0].kind}"
    caption = (
        f"Eigenvalues of the {escape(networks[0].kind)} kernel of the model's {escape(networks[0].output)}. "
        + " ".join(
            f"<br><code>{escape(each.path)}</code>: {escape(each.plan)}; route: {escape(each.route)}."
            for each in networks
        )
    )
    drawn = figure(curves("network", {title: own}, x="index", y=["eigenvalue of T"]), caption) if own else ""
    return drawn + html_table(("adapter", "size", *_COLUMNS, "λ_min⁺ / mean"), rows)


def _shares(network: NetworkKernel) -> str:
    """What every layer adds to the kernel."""
    rows = [(each.name, each.params, f"{each.share:.1%}", shown(each.alignment)) for each in network.layers]
    names = [each.name for each in network.layers]
    blocks, kinds, places = grid(names)
    cells = {places[each.name]: 100 * each.share for each in network.layers if each.share > 0}
    key = f"shares {network.path}"
    drawn = figure(
        heat_maps(key, blocks, kinds, {"% of the trace": cells}),
        "Share of the kernel's trace that each layer's parameters make, in percent, colours by its "
        "logarithm.",
    )
    table = html_table(("layer", "P", "share of the trace", "alignment with T"), rows)
    return f"<h3>{escape(network.path)}</h3>{drawn if cells else ''}{table}"


def _numbers(spectrum: SpectrumReport) -> tuple[object, ...]:
    """What a row says of a spectrum."""
    least = spectrum.lambda_min
    return (
        spectrum.rank,
        spectrum.rank_bound,
        shown(spectrum.lambda_max),
        shown(least) if least is not None else f"<= {shown(spectrum.lambda_min_upper)}",
        shown(spectrum.lambda_min_plus),
        shown(spectrum.cond_plus),
        shown(spectrum.stable_rank),
        shown(spectrum.participation_rank),
        shown(spectrum.entropy_rank),
    )
