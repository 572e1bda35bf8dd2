"""``tntune verify``: how far two adapters are apart."""

from pathlib import Path
from typing import Annotated

import typer

from tntune.cli.console import emit, emit_json, note, percent, table
from tntune.cli.options import Json
from tntune.convert.compare import compare_adapters
from tntune.errors import SpecError

__all__ = ["verify"]


def verify(
    first: Annotated[Path, typer.Argument(help="The reference: a LoRA or TensorGuide folder, or a library.")],
    second: Annotated[Path, typer.Argument(help="The folder to compare with it.")],
    member: Annotated[
        str | None, typer.Option(help="Which adapter of the second folder, where that is a library.")
    ] = None,
    first_member: Annotated[
        str | None, typer.Option(help="Which adapter of the first folder, where that is a library.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="Exit 1 where the total relative error is above this.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare two adapters: relative error of ΔW for each layer and in total.

    Example: tntune verify my-lora my-lora-half --tolerance 0.2
    """
    if tolerance is not None and not tolerance >= 0:
        raise SpecError(f"--tolerance must be at least 0, not {tolerance}")
    comparison = compare_adapters(first, second, member=member, first_member=first_member)
    met = tolerance is None or comparison.relative_error <= tolerance
    if json:
        emit_json({**comparison.to_json(), "tolerance": tolerance, "within_tolerance": met})
    else:
        rows = [
            (layer.name, percent(layer.norm), percent(layer.relative_error)) for layer in comparison.layers
        ]
        table(f"{first} and {second}", ("layer", "norm of ΔW", "error"), rows)
        emit(f"\ntotal error {percent(comparison.relative_error)}")
    if comparison.passthrough_differs:
        note(f"carried tensors differ, which no error counts: {', '.join(comparison.passthrough_differs)}")
    if not met:
        note(f"relative error {percent(comparison.relative_error)} is above {tolerance}")
        raise typer.Exit(1)
