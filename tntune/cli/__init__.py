"""The command line."""

from tntune.cli.main import app, run

__all__ = ["app", "run"]
