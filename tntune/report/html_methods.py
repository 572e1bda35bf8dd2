"""Sections on one layer and what could stand in its place: kernels, descents, radii."""

import math
from collections.abc import Sequence
from html import escape

from tntune.report.methods import Contender, MethodComparison
from tntune.report.page import figure, html_table
from tntune.report.plots import Curve, curves, small_multiples
from tntune.report.probe import Probe
from tntune.report.summary import shown

__all__ = ["descent_section", "generalisation_section", "kernel_section"]

_FLOOR = 1e-12  # what is below is rounding, here
_COLUMNS = (
    *("parametrisation", "P", "rank T", "bound", "λ_max", "λ_min", "λ_min⁺", "cond⁺"),
    *("stable rank", "participation", "entropy", "λ_min⁺ / mean"),
)


def kernel_section(methods: MethodComparison, probe: Probe) -> str:
    """Kernel eigenvalues of the contenders, raw and free of scale, as HTML.

    Example:
        >>> kernel_section(MethodComparison("fc", (3, 4), 8, ()), Probe())
        '<p>Every kernel is zero.</p>'
    """
    raw: list[Curve] = []
    free: list[Curve] = []
    for k, each in enumerate(methods.contenders):
        values = list(each.kernel.eigenvalues)
        if values:
            mean, index = each.kernel.trace / each.kernel.size, [float(i + 1) for i in range(len(values))]
            style = "-" if each.trained else "--"
            raw.append((each.label, index, values, k, style))
            free.append((each.label, index, [value / mean for value in values], k, style))
    if not raw:
        return "<p>Every kernel is zero.</p>"
    panels = {"eigenvalues": raw, "divided by their mean": free}
    drawn = curves("kernels", panels, x="index", y=["eigenvalue of T", "eigenvalue / mean"])
    caption = (
        f"Tangent kernels of <code>{escape(methods.layer)}</code> ({methods.shape[0]} x {methods.shape[1]}) "
        "on "
        f"{probe.words}. Solid: adapters at their trained parameters. Dashed: fresh starts with at most as "
        "many parameters as the first adapter, one draw each. A line that ends early is a kernel of lower "
        "rank: outputs that the first step cannot move. Only the right panel compares shapes; the left one "
        "depends on every scale."
    )
    return figure(drawn, caption) + html_table(_COLUMNS, [_kernel_row(each) for each in methods.contenders])


def _kernel_row(each: Contender) -> tuple[object, ...]:
    own = each.kernel
    mean = own.trace / own.size
    least = shown(own.lambda_min) if own.lambda_min is not None else f"<= {shown(own.lambda_min_upper)}"
    return (
        each.label,
        each.params,
        own.rank,
        own.rank_bound,
        shown(own.lambda_max),
        least,
        shown(own.lambda_min_plus),
        shown(own.cond_plus),
        shown(own.stable_rank),
        shown(own.participation_rank),
        shown(own.entropy_rank),
        shown(own.lambda_min_plus / mean if own.lambda_min_plus else None),
    )


def descent_section(methods: MethodComparison) -> str:
    """Runs of linearised descent beside N5 and the paper's exponential, as HTML.

    Example:
        >>> descent_section(MethodComparison("fc", (3, 4), 8, ()))[:24]
        '<p>The first adapter add'
    """
    runs = [(each, each.descent) for each in methods.contenders if each.descent is not None]
    if not runs:
        return "<p>The first adapter adds nothing to this layer, so there is no target to descend to.</p>"
    panels: dict[str, list[Curve]] = {}
    for each, run in runs:
        steps = [float(k) for k in run.steps]
        panels[each.label] = [
            ("run", steps, _visible(run.measured), 0, "-"),
            ("bound N5, with its floor", steps, _visible(run.bound), 1, "--"),
            ("equation 10 as printed", steps, _visible(run.paper), 7, ":"),
        ]
    least = max(_FLOOR, min(min(_visible(run.measured)) for _, run in runs) / 3)
    drawn = small_multiples("descent", panels, x="step", y="squared residual", least=least)
    caption = (
        f"Full-batch descent on the linearised layer <code>{escape(methods.layer)}</code> at the rate 1 / "
        "λ_max, "
        "towards y: what the first adapter adds to this layer at these inputs, of norm 1. Each run stays "
        "below its bound. Where the kernel is singular a floor remains that no number of steps removes, and "
        "the single exponential of equation 10 is flat, as λ_min = 0. The kernel is held constant: these "
        "are not "
        "runs of the network."
    )
    columns = (
        "parametrisation",
        "rate",
        "|r|² after 130 steps",
        "1300",
        "5000",
        "bound N5",
        "floor",
        "holds",
    )
    rows = [
        (
            each.label,
            shown(run.rate),
            *(_left(run.measured[run.steps.index(k)]) for k in (130, 1300, 5000)),
            _left(run.bound[-1]),
            _left(run.floor),
            all(bound.holds for bound in run.bounds),
        )
        for each, run in runs
    ]
    return figure(drawn, caption) + html_table(columns, rows)


def _visible(values: Sequence[float]) -> list[float]:
    """Values not below what is drawn."""
    return [max(value, _FLOOR) for value in values]


def _left(value: float) -> str:
    """A squared residual; below what rounding leaves it is not told from 0."""
    return shown(value) if value >= _FLOOR else f"< {_FLOOR:.0e}"


def generalisation_section(methods: MethodComparison) -> str:
    """Radii that interpolation needs, as HTML.

    Example:
        >>> generalisation_section(MethodComparison("fc", (3, 4), 8, ()))[:10]
        '<p>B² = yᵀ'
    """
    text = (
        "<p>B² = yᵀ T⁺ y is the squared distance in parameters that moves the outputs by y, of norm 1, if "
        "the "
        "layer were linear in them; B √(tr T) / n bounds the Rademacher complexity of that ball (E18). "
        "λ_min enters "
        "through B alone (N7). Asked twice: for what the first adapter adds to the layer, and for random "
        "labels. Where a share of y is out of reach, B is that of the rest. A bound of the test error (E20) "
        "needs "
        "a loss on data, which an adapter folder does not hold.</p>"
    )
    columns = (
        "parametrisation",
        "P",
        "B²",
        "out of reach",
        "B √(tr T) / n",
        "B², random",
        "out of reach, random",
    )
    rows = [
        (
            each.label,
            each.params,
            shown(each.kernel.norm_squared),
            _percent(each.kernel.residual_fraction),
            shown(_complexity(each, methods)),
            shown(each.random_norm_squared),
            _percent(each.random_residual),
        )
        for each in methods.contenders
    ]
    return text + html_table(columns, rows)


def _complexity(each: Contender, methods: MethodComparison) -> float | None:
    """``B sqrt(tr T) / n``."""
    if each.kernel.norm_squared is None:
        return None
    return math.sqrt(each.kernel.norm_squared * each.kernel.trace) / methods.samples


def _percent(share: float | None) -> str:
    return "-" if share is None else "0" if share < _FLOOR else f"{share:.1%}"
