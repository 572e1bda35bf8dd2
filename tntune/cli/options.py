"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from tntune.convert.target import Target
from tntune.errors import SpecError

__all__ = [
    "Json",
    "MaxParams",
    "MaxRank",
    "Output",
    "Overwrite",
    "Params",
    "Quiet",
    "StoredDtype",
    "Tolerance",
    "make_target",
    "parse_dtype",
]

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)
}

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write, whole or not at all.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an adapter folder that is there.")]
Params = Annotated[float | None, typer.Option(help="Share of the parameters to keep, such as 0.5.")]
MaxParams = Annotated[int | None, typer.Option(help="Number of parameters to keep.")]
Tolerance = Annotated[float | None, typer.Option(help="Relative error that every layer must meet.")]
MaxRank = Annotated[int | None, typer.Option(help="Cap on every rank.")]
StoredDtype = Annotated[
    str | None, typer.Option("--dtype", help=f"Dtype to store: {', '.join(_DTYPES)}. Kept by default.")
]


def make_target(
    params: float | None, max_params: int | None, tolerance: float | None, max_rank: int | None
) -> Target:
    """The one target among the four options; SpecError names the options otherwise."""
    given = {"--params": params, "--max-params": max_params, "--tolerance": tolerance, "--max-rank": max_rank}
    found = [name for name, value in given.items() if value is not None]
    if len(found) != 1:
        raise SpecError(f"give exactly one of {', '.join(given)}; given: {', '.join(found) or 'none'}")
    return Target(params, max_params, tolerance, max_rank)


def parse_dtype(name: str | None) -> torch.dtype | None:
    """The dtype of that name; SpecError lists the names otherwise."""
    if name is None:
        return None
    if name not in _DTYPES:
        raise SpecError(f"dtype must be one of {', '.join(_DTYPES)}, not {name!r}")
    return _DTYPES[name]
