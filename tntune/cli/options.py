"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from tntune.convert.target import Target
from tntune.errors import SpecError
from tntune.report.probe import Probe, read_inputs

__all__ = [
    "Compare",
    "DryRun",
    "Html",
    "Inputs",
    "Jobs",
    "Json",
    "MaxParams",
    "MaxRank",
    "Member",
    "Output",
    "Overwrite",
    "OverwritePage",
    "Params",
    "Quiet",
    "Readouts",
    "Samples",
    "Seed",
    "StoredDtype",
    "Tolerance",
    "make_probe",
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
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Say how large the source is and how much memory it takes, and stop. Models come on top.",
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        "-j",
        help="Processes that work on layers at a time; the bytes written are those of one. "
        "--dry-run says what they take.",
    ),
]
Member = Annotated[str | None, typer.Option(help="Which adapter of a library; tntune inspect lists them.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write, whole or not at all.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an adapter folder that is there.")]
Params = Annotated[float | None, typer.Option(help="Share of the parameters to keep, such as 0.5.")]
MaxParams = Annotated[int | None, typer.Option(help="Number of parameters to keep.")]
Tolerance = Annotated[
    float | None,
    typer.Option(
        help="Relative error to meet: in every layer, or in all of them together for whole adapters."
    ),
]
MaxRank = Annotated[int | None, typer.Option(help="Cap on every rank.")]
StoredDtype = Annotated[
    str | None, typer.Option("--dtype", help=f"Dtype to store: {', '.join(_DTYPES)}. Kept by default.")
]

Compare = Annotated[
    list[Path] | None, typer.Option(help="Another adapter folder, side by side with the first; repeatable.")
]
Inputs = Annotated[
    Path | None,
    typer.Option(help="Real inputs: torch.save({module path: x (n, in)}, FILE). Default: standard normal."),
]
Samples = Annotated[int, typer.Option(help="Number of inputs that are drawn for each layer.")]
Readouts = Annotated[int, typer.Option(help="Random directions along which a layer's outputs are read.")]
Seed = Annotated[int, typer.Option(help="Seed of inputs, read-outs and fresh starts.")]
Html = Annotated[Path | None, typer.Option(help="Write one self-contained page to this file.")]
OverwritePage = Annotated[bool, typer.Option("--overwrite", help="Replace the page that is there.")]


def make_probe(inputs: Path | None, samples: int, readouts: int, seed: int) -> Probe:
    """What kernels of single layers are taken on."""
    given = {} if inputs is None else read_inputs(inputs)
    return Probe(samples, readouts, seed, given)


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
