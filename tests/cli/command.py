"""Running the command line, in this process or in one of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tntune.cli import run

COMMAND = (sys.executable, "-c", "from tntune.cli import run; run()")


@dataclass(frozen=True)
class Ran:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


def tntune(*arguments: object) -> Ran:
    """Run a command in this process, with streams that are no terminals."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tntune", *(str(argument) for argument in arguments)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setenv("COLUMNS", "160")
        with pytest.raises(SystemExit) as exit:
            run()
    return Ran(int(exit.value.code or 0), out.getvalue(), err.getvalue())


def spawn(*arguments: object, cwd: Path | None = None) -> Ran:
    """Run a command in a process of its own."""
    command = [*COMMAND, *(str(argument) for argument in arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    return Ran(ran.returncode, ran.stdout, ran.stderr)
