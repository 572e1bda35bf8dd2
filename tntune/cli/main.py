"""The command ``tntune``: exit 0 when all is well, 1 when a target is missed, 2 for bad input."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from tntune.cli import (
    analyze,
    calibrate,
    collect,
    convert,
    doctor,
    inspect,
    ntk,
    plan,
    reproduce,
    resize,
    sweep,
    verify,
)
from tntune.cli.console import emit, note
from tntune.errors import TntuneError

__all__ = ["app", "run"]

app = typer.Typer(
    name="tntune",
    help="Tensor networks for LoRA adapters: inspect, plan, convert, export, verify, analyze, reproduce.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("convert")(convert.convert)
app.command("sweep")(sweep.sweep)
app.command("round")(convert.round_)
app.command("export")(convert.export)
app.command("collect")(collect.collect)
app.command("resize")(resize.resize)
app.command("calibrate")(calibrate.calibrate)
app.command("verify")(verify.verify)
app.command("analyze")(analyze.analyze)
app.command("ntk")(ntk.ntk)
app.command("reproduce")(reproduce.reproduce)
app.command("report")(reproduce.report)
app.command("doctor")(doctor.doctor)


def _version(shown: bool) -> None:
    if shown:
        emit(f"tntune {version('tntune')}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Tensor networks for LoRA adapters: inspect, plan, convert, export, verify, analyze, reproduce."""


def run() -> None:
    """Run the command line; our errors and the system's become one line on stderr and exit code 2."""
    try:
        app()
    except (TntuneError, OSError) as error:
        note(f"error: {error}")
        sys.exit(2)


if __name__ == "__main__":
    run()
