"""``tntune plan``: what an adapter of given sizes would be, before it is made, and why it runs as it does."""

from typing import Annotated, Any

import torch
import typer

from tntune.adapters.batch import CPU_ENTRIES, is_batched
from tntune.cli.console import emit, emit_json, table
from tntune.cli.options import Json
from tntune.contract.plan import Plan, candidates
from tntune.contract.timing import timed
from tntune.maps.advice import advice
from tntune.maps.base import WeightMap
from tntune.maps.build import build_map
from tntune.maps.chain import generated_entries, halves
from tntune.maps.layout import Geometry
from tntune.maps.lora import LoRA
from tntune.maps.site import Site
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

__all__ = ["plan"]


def plan(
    in_features: Annotated[int, typer.Option("--in", min=1, help="Input features of the layer.")],
    out_features: Annotated[int, typer.Option("--out", min=1, help="Output features of the layer.")],
    width: Annotated[int, typer.Option(min=1, help="Inner size of the adapter.")] = 8,
    rank: Annotated[int | None, typer.Option(min=1, help="Upper bound of every TT-rank.")] = None,
    method: Annotated[str, typer.Option(help="tensorguide, tt_lora or lora.")] = "tensorguide",
    layout: Annotated[
        str | None, typer.Option(help="'concat' or a pattern such as 'f1 f2 (side w)'.")
    ] = None,
    latent: Annotated[str, typer.Option(help="none, fixed, resample or mean.")] = "none",
    activation: Annotated[str, typer.Option(help="Activation of the adapter.")] = "identity",
    measure: Annotated[
        bool, typer.Option("--measure", help="Time every contraction plan here, forward and backward.")
    ] = False,
    json: Json = False,
) -> None:
    """Show modes, ranks, parameters and cost of an adapter for one layer, and what is unwise about it.

    Of each contraction it shows the plans that were weighed. The one of least modelled cost is taken, the
    same on every machine; --measure says how it compares in CPU time here, and changes nothing.

    Example: tntune plan --in 4096 --out 4096 --width 16 --rank 16
    """
    map = build_map(
        method, Geometry(in_features, out_features, width), rank=rank, layout=layout, latent=latent
    )
    site = Site(map, activation=activation)
    found = advice(map, activation=activation)
    described = _described(map)
    summary = {
        **described,
        "params": map.num_parameters,
        "lora_params": LoRA(in_features, out_features, width).num_parameters,
        "layer_params": in_features * out_features,
        "flops": sum(plan.flops for plan in map.plans),
        "peak_entries": max((plan.peak for plan in map.plans), default=0),
        "applied": _applied(map),
        "generated": _generated(map),
        "advice": [{"label": item.label, "message": item.message} for item in found],
        "site": site.to_json(),
    }
    weighed = [_weighed(contraction, measure) for contraction in map.plans]
    if json:
        steps = [step.equation for contraction in map.plans for step in contraction.steps]
        emit_json(summary | {"steps": steps, "plans": weighed})
        return
    rows = [
        (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
        for key, value in summary.items()
        if key not in ("advice", "site")
    ]
    table(f"{method}: {in_features} -> {out_features}, width {width}", ("", "value"), rows)
    for contraction, plans in zip(map.plans, weighed, strict=True):
        emit(f"\n{contraction}\n")
        _show(plans)
    for item in found:
        emit(f"\n{item.label}: {item.message}")


def _weighed(contraction: Plan, measure: bool) -> list[dict[str, Any]]:
    """What a contraction was chosen from, the chosen plan first."""
    plans = candidates(contraction)
    rows: list[dict[str, Any]] = [
        {"plan": one.route, "cost": one.cost, "flops": one.flops, "peak_entries": one.peak} for one in plans
    ]
    if measure:
        for row, seconds in zip(rows, timed(plans), strict=True):
            row["cpu_microseconds"] = round(1e6 * seconds)
    return rows


def _show(plans: list[dict[str, Any]]) -> None:
    """A table of plans and, where they were timed, how good the model's choice is here."""
    heads = [key.replace("_", " ") for key in plans[0]]
    rows = [(*plan.values(), "taken" if i == 0 else "") for i, plan in enumerate(plans)]
    table("", (*heads, ""), rows)
    if "cpu_microseconds" not in plans[0]:
        return
    fastest = min(plans, key=lambda plan: plan["cpu_microseconds"])
    if fastest is plans[0]:
        emit("The plan that is taken was the fastest here.")
        return
    ratio = plans[0]["cpu_microseconds"] / max(fastest["cpu_microseconds"], 1)
    emit(f"The plan that is taken took {ratio:.2f} times as long here as {fastest['plan']!r}, the fastest.")


def _applied(map: WeightMap) -> str:
    """How a layer applies the factors, and by which rule."""
    products = halves(map)
    if products is None:
        return "whole factors"
    comparison = "much less" if products.pays else "not much less"
    way = "products" if products.pays else "whole factors"
    return f"{way}: bond {products.bond} between features and widths is {comparison} than the width"


def _generated(map: WeightMap) -> str:
    """Whether layers of this map are generated together, and by which rule."""
    if not map.is_generated:
        return "not at all: the params are the factors"
    if map.resampled:
        return "layer by layer: z is drawn at every call"
    entries, limit = f"{generated_entries(map):,} entries a layer", f"{CPU_ENTRIES:,} on a CPU"
    if is_batched(map, torch.device("cpu")):
        return f"together with all layers of this map: {entries}, at most {limit}"
    return f"layer by layer: {entries}, above {limit}; on an accelerator together with all layers of this map"


def _described(map: WeightMap) -> dict[str, Any]:
    if isinstance(map, TensorGuide):
        shown = {
            "layout": getattr(map.layout, "pattern", map.layout.kind),
            "modes": _dashed(map.layout.modes),
        }
        return {**shown, "ranks": _dashed(map.ranks), "latent": map.latent.mode}
    if isinstance(map, TTLoRA):
        trains = (map.down_train, map.up_train)
        return {
            "modes": " | ".join(_dashed(train.modes) for train in trains),
            "ranks": " | ".join(_dashed(train.ranks) for train in trains),
            "latent": map.down_train.latent.mode,
        }
    return {}


def _dashed(sizes: tuple[int, ...]) -> str:
    return "-".join(str(size) for size in sizes)
