"""``tntune plan``: what an adapter of given sizes would be, before it is made."""

from typing import Annotated, Any

import typer

from tntune.cli.console import emit, emit_json, table
from tntune.cli.options import Json
from tntune.maps.advice import advice
from tntune.maps.base import WeightMap
from tntune.maps.build import build_map
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
    json: Json = False,
) -> None:
    """Show modes, ranks, parameters and cost of an adapter for one layer, and what is unwise about it.

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
        "advice": [{"label": item.label, "message": item.message} for item in found],
        "site": site.to_json(),
    }
    if json:
        emit_json(summary | {"steps": [step.equation for plan in map.plans for step in plan.steps]})
        return
    rows = [
        (key.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
        for key, value in summary.items()
        if key not in ("advice", "site")
    ]
    table(f"{method}: {in_features} -> {out_features}, width {width}", ("", "value"), rows)
    for contraction in map.plans:
        emit(f"\n{contraction}")
    for item in found:
        emit(f"\n{item.label}: {item.message}")


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
