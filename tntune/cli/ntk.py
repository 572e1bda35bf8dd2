"""``tntune ntk``: tangent kernels of an adapter's layers, or of a whole model with the adapter in it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from torch import nn

from tntune.cli.calibrate import call
from tntune.cli.console import emit, emit_json, note, progress_bar, table
from tntune.cli.options import (
    Compare,
    Html,
    Inputs,
    Json,
    OverwritePage,
    Quiet,
    Readouts,
    Samples,
    Seed,
    make_probe,
)
from tntune.errors import SpecError
from tntune.report.html_kernels import kernel_page
from tntune.report.kernels import AdapterKernels, adapter_kernels
from tntune.report.network import KINDS, OUTPUT_FUNCTIONS, NetworkKernel, network_plan
from tntune.report.page import check_page, write_page
from tntune.report.plots import check_matplotlib
from tntune.report.report import KernelReport
from tntune.report.summary import shown
from tntune.theory.ntk_output import Batch
from tntune.theory.spectrum import SpectrumReport

__all__ = ["ntk"]

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


def ntk(
    adapter: Annotated[Path, typer.Argument(help="LoRA or TensorGuide folder.")],
    compare: Compare = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="package.module:function that returns (base model, batch), looked for here; its code is "
            "run. Without it, each layer's own kernel is reported."
        ),
    ] = None,
    output: Annotated[str, typer.Option(help=f"Of the model: {', '.join(OUTPUT_FUNCTIONS)}.")] = "logits",
    kind: Annotated[str, typer.Option(help=f"Kernel of the model: {', '.join(KINDS)}.")] = "full",
    dtype: Annotated[str, typer.Option(help=f"Of the model's kernel: {', '.join(_DTYPES)}.")] = "float64",
    inputs: Inputs = None,
    samples: Samples = 32,
    readouts: Readouts = 4,
    seed: Seed = 0,
    html: Html = None,
    overwrite: OverwritePage = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the eigenvalues of tangent kernels: of every layer by itself, or of a model of yours.

    Example: tntune ntk my-lora --model my_task:model_and_batch --output margin
    """
    folders = [adapter, *(compare or [])]
    if html is not None:
        check_page(html, overwrite=overwrite)
        check_matplotlib()
    command = shlex.join(["tntune", *sys.argv[1:]])
    if model is None:
        _check_unused(output, kind, dtype)
        probe = make_probe(inputs, samples, readouts, seed)
        with progress_bar(not quiet) as progress:
            layers = tuple(adapter_kernels(folder, probe, progress=progress) for folder in folders)
        report = KernelReport(command, probe, layers, ())
    else:
        _check_own_batch(inputs, (samples, readouts, seed))
        networks = _networks(folders, model, (output, kind, dtype), quiet)
        report = KernelReport(command, None, (), networks)
    if html is not None:
        write_page(html, kernel_page(report), overwrite=overwrite)
    if json:
        emit_json(report.to_json())
    else:
        _print(report)
    if html is not None:
        note(f"written: {html}")


def _check_unused(output: str, kind: str, dtype: str) -> None:
    """Options of a model's kernel are refused without one."""
    given = {"--output": output != "logits", "--kind": kind != "full", "--dtype": dtype != "float64"}
    named = [name for name, changed in given.items() if changed]
    if named:
        raise SpecError(f"{', '.join(named)} say what of a model's prediction is meant; give --model too")


def _check_own_batch(inputs: Path | None, drawn: tuple[int, int, int]) -> None:
    """Options of single layers' kernels are refused where the model brings its batch."""
    if inputs is not None or drawn != (32, 4, 0):
        raise SpecError(
            "--inputs, --samples, --readouts and --seed are of single layers; --model has its own batch"
        )


def _networks(
    folders: Sequence[Path], factory: str, how: tuple[str, str, str], quiet: bool
) -> tuple[NetworkKernel, ...]:
    """The kernel of a fresh model with each folder in it; what it takes is said before it starts."""
    output, kind, name = how
    if name not in _DTYPES:
        raise SpecError(f"dtype must be one of {', '.join(_DTYPES)}, not {name!r}")
    found = []
    for folder in folders:
        plan = network_plan(folder, *_made(factory), output=output, kind=kind, dtype=_DTYPES[name])
        note(f"{folder}: {plan}")
        with progress_bar(not quiet) as progress:
            kernel = plan.run(progress=lambda done, total: progress("samples", done, total))
        found.append(NetworkKernel.of(kernel, plan, path=str(folder), output=output))
    return tuple(found)


def _made(factory: str) -> tuple[nn.Module, Batch]:
    """What ``package.module:function`` returns."""
    pair = call("--model", factory)
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], nn.Module)):
        raise SpecError(f"{factory} must return (model, batch), not {type(pair).__name__}")
    return cast(tuple[nn.Module, Batch], pair)


def _print(report: KernelReport) -> None:
    for adapter in report.adapters:
        _print_layers(adapter)
    for network in report.networks:
        _print_network(network)


_COLUMNS = ("rank", "λ_max", "λ_min", "λ_min⁺", "cond⁺", "stable", "entropy")


def _print_layers(adapter: AdapterKernels) -> None:
    rows = [(each.name, each.params, *_numbers(each.spectrum), shown(each.spread)) for each in adapter.layers]
    table(f"{adapter.path}: kernels of single layers", ("layer", "params", *_COLUMNS, "λ_min⁺ / mean"), rows)
    emit("")


def _print_network(network: NetworkKernel) -> None:
    names = ["all"] if len(network.spectra) == 1 else [f"class {c}" for c in range(len(network.spectra))]
    rows = [(name, *_numbers(own)) for name, own in zip(names, network.spectra, strict=True)]
    table(f"{network.path}: kernel of {network.output}, {network.route}", ("spectrum", *_COLUMNS), rows)
    emit("")
    shares = [(each.name, each.params, f"{each.share:.4f}", shown(each.alignment)) for each in network.layers]
    table("", ("layer", "params", "share of the trace", "alignment"), shares)
    emit("")


def _numbers(spectrum: SpectrumReport) -> tuple[str, ...]:
    least = spectrum.lambda_min
    return (
        str(spectrum.rank),
        shown(spectrum.lambda_max),
        shown(least) if least is not None else f"<={shown(spectrum.lambda_min_upper)}",
        shown(spectrum.lambda_min_plus),
        shown(spectrum.cond_plus),
        shown(spectrum.stable_rank),
        shown(spectrum.entropy_rank),
    )
