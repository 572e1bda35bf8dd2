"""``tntune inspect``: what an adapter folder holds."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tntune.checkpoint.folder import open_adapter
from tntune.checkpoint.library import LIBRARY_PEFT_TYPE, LibraryFolder, open_library
from tntune.checkpoint.lora import LoraFolder
from tntune.checkpoint.tensorguide import TensorGuideFolder
from tntune.cli.console import emit, emit_json, note, percent, table
from tntune.cli.options import Json, Member
from tntune.convert.compare import load_function
from tntune.files import CONFIG_NAME, read_json
from tntune.maps.member import Member as MemberMap

__all__ = ["inspect"]


def inspect(
    folder: Annotated[Path, typer.Argument(help="LoRA or TensorGuide folder, or library.")],
    member: Member = None,
    json: Json = False,
) -> None:
    """Show the layers of an adapter: shapes, ranks, parameters, scale, norm of ΔW; or a library's members.

    The norm of a nonlinear adapter is an estimate from random inputs (see verify).

    Example: tntune inspect my-lora
    """
    if member is None and read_json(folder / CONFIG_NAME).get("peft_type") == LIBRARY_PEFT_TYPE:
        _show_library(open_library(folder), json=json)
        return
    opened = open_adapter(folder, carry=True, member=member)
    layers = _lora_layers(opened) if isinstance(opened, LoraFolder) else _guided_layers(opened)
    untrained = [layer["name"] for layer in layers if not layer["norm"]]
    summary = {
        "path": str(folder),
        "peft_type": opened.config["peft_type"],
        "base_model": opened.config.get("base_model_name_or_path"),
        "params": opened.params,
        "bytes": opened.num_bytes,
        "dtypes": [str(dtype) for dtype in opened.dtypes],
        "passthrough": list(opened.passthrough),
        "untrained": untrained,
        "layers": layers,
    }
    if json:
        emit_json(summary)
    else:
        _print(summary)
    if isinstance(opened, TensorGuideFolder) and opened.groups:
        note(f"{len(opened.groups)} maps serve {len(layers)} layers; each layer shows its whole map")
    if untrained:
        note(f"{len(untrained)} of {len(layers)} layers have ΔW = 0: they do nothing")


def _show_library(library: LibraryFolder, *, json: bool) -> None:
    """The members of a library, with the errors that were measured when they were written."""
    own = library.own_params
    members = [{**each.notes, "name": name, "params": own[name]} for name, each in library.members.items()]
    summary = {
        "path": str(library.path),
        "peft_type": library.config["peft_type"],
        "base_model": library.config.get("base_model_name_or_path"),
        "params": library.params,
        "shared_params": library.params - sum(own.values()),
        "bytes": library.num_bytes,
        "members": members,
    }
    if json:
        emit_json(summary)
        return
    keys = ("name", "layers", "params_before", "params", "relative_error", "svd_relative_error", "task_error")
    rows = [tuple(_noted(each.get(key)) for key in keys) for each in members]
    columns = ("member", "layers", "before", "own parameters", "error", "SVD error", "task norm")
    table(f"{library.path}: {len(members)} adapters of {summary['base_model']}", columns, rows)
    totals = [(key, summary[key]) for key in ("params", "shared_params", "bytes")]
    emit("")
    table("", ("total", "value"), [(key.replace("_", " "), value) for key, value in totals])


def _noted(value: Any) -> int | str:
    """What a library says of a member, or that it says nothing."""
    if isinstance(value, int | str):
        return value
    return percent(value) if isinstance(value, float) else "-"


def _lora_layers(opened: LoraFolder) -> list[dict[str, Any]]:
    return [
        _layer(opened, site.name, (site.out_features, site.in_features))
        | {"kind": "lora", "width": site.width, "ranks": [site.width], "layout": None, "shared": 1}
        | {"params": site.params, "scale": site.scale, "activation": "identity"}
        for site in opened.sites
    ]


def _guided_layers(opened: TensorGuideFolder) -> list[dict[str, Any]]:
    layers = []
    for name, site in opened.sites.items():
        map = site.map.whole if isinstance(site.map, MemberMap) else site.map
        layout = getattr(map, "layout", None)
        layers.append(
            _layer(opened, name, (site.map.out_features, site.map.in_features))
            | {"kind": map.kind, "width": map.width, "shared": map.sites}
            | {"ranks": list(getattr(map, "ranks", [map.width]))}
            | {"layout": getattr(layout, "pattern", getattr(layout, "kind", None))}
            | {"params": map.num_parameters, "scale": site.scale, "activation": site.activation}
        )
    return layers


def _layer(opened: LoraFolder | TensorGuideFolder, name: str, shape: tuple[int, int]) -> dict[str, Any]:
    function = load_function(opened, name)
    assert function is not None
    return {"name": name, "shape": list(shape), "norm": function.norm}


def _print(summary: dict[str, Any]) -> None:
    rows = [
        (
            layer["name"],
            "x".join(str(size) for size in layer["shape"]),
            layer["kind"],
            layer["width"],
            "-".join(str(rank) for rank in layer["ranks"]),
            layer["params"],
            percent(layer["scale"]),
            percent(layer["norm"]),
        )
        for layer in summary["layers"]
    ]
    columns = ("layer", "out x in", "kind", "width", "ranks", "params", "scale", "norm of ΔW")
    table(f"{summary['path']}: {summary['peft_type']} on {summary['base_model']}", columns, rows)
    totals = [
        ("parameters", f"{summary['params']:,}"),
        ("bytes", f"{summary['bytes']:,}"),
        ("dtypes", ", ".join(summary["dtypes"])),
        ("tensors carried along", len(summary["passthrough"])),
    ]
    emit("")
    table("", ("total", "value"), totals)
