"""``tntune calibrate``: what a model does with the errors of its adapter, as a file."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from tntune.checkpoint.calibration import save_calibration
from tntune.cli.console import emit, emit_json
from tntune.cli.options import Json
from tntune.convert.calibrate import calibrate as run_calibration
from tntune.errors import SpecError
from tntune.report.page import check_page

__all__ = ["calibrate", "call", "load_judge", "load_model"]


def calibrate(
    source: Annotated[Path, typer.Argument(help="LoRA folder, as PEFT writes it.")],
    model: Annotated[
        str,
        typer.Option(
            help="package.module:function returning (base model with its head, batches); run in this folder."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .safetensors.")],
    limit: Annotated[
        int, typer.Option(help="Features of a layer up to which statistics are kept whole.")
    ] = 4096,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    json: Json = False,
) -> None:
    """Measure which errors of an adapter matter, on texts without labels; convert --calibration uses it.

    Example: tntune calibrate my-lora --model mine:calibration -o my-lora.calibration.safetensors
    """
    check_page(output, overwrite=overwrite)
    base, batches = load_model(model)
    calibration = run_calibration(base, batches, source, limit=limit)
    save_calibration(output, calibration, overwrite=overwrite)
    if json:
        emit_json({"output": str(output), "layers": list(calibration.names), **calibration.notes})
        return
    notes = calibration.notes
    emit(
        f"{output}: {len(calibration.names)} layers, {notes['predictions']:,} predictions, "
        f"{notes['tokens']:,} tokens, {output.stat().st_size:,} bytes"
    )


def load_model(name: str) -> tuple[nn.Module, Any]:
    """What ``package.module:function`` returns: a model and its batches; a third part is left out.

    Raises:
        SpecError: Where the name has another form, leads nowhere, or something else is returned.

    Example:
        >>> load_model("mine")
        Traceback (most recent call last):
        tntune.errors.SpecError: --model is package.module:function, not 'mine'
    """
    return load_judge(name)[:2]


def load_judge(name: str) -> tuple[nn.Module, Any, Callable[[nn.Module], float] | None]:
    """:func:`load_model` with the third part: from the model to a number; None where there is none.

    Example:
        >>> load_judge("builtins:dict")
        Traceback (most recent call last):
        tntune.errors.SpecError: --model builtins:dict: must return (model, batches), not dict
    """
    made = call("--model", name)
    if not (isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], nn.Module)):
        raise SpecError(f"--model {name}: must return (model, batches), not {type(made).__name__}")
    if isinstance(made[1], Mapping | Tensor | str) or not _is_iterable(made[1]):
        raise SpecError(
            f"--model {name}: the second part must be batches, such as a list of mappings, "
            f"not {type(made[1]).__name__}"
        )
    score = made[2] if len(made) == 3 else None
    if score is not None and not callable(score):
        raise SpecError(f"--model {name}: the third part must be a function, not {type(score).__name__}")
    return made[0], made[1], score


def call(option: str, name: str) -> Any:
    """What ``package.module:function`` returns, the current folder's modules among those that are found.

    Raises:
        SpecError: Where the name has another form or leads nowhere.

    Example:
        >>> call("--model", "builtins:dict")
        {}
    """
    if not all(part for part in name.partition(":")):
        raise SpecError(f"{option} is package.module:function, not {name!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # for what the function imports when it runs as well
    try:
        return _named(option, name)()
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _is_iterable(value: object) -> bool:
    """Whether it can be gone through, be it by numbers alone, as map-style datasets can."""
    return hasattr(value, "__iter__") or hasattr(value, "__getitem__")


def _named(option: str, name: str) -> Callable[[], Any]:
    try:
        made: Callable[[], Any] = resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SpecError(f"{option} {name}: {error}") from error
    return made
