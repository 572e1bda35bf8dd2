"""Law: under torchrun two processes train the adapter that one trains, but for rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tntune.convert import compare_adapters

SCRIPT = Path(__file__).parents[2] / "examples" / "08_processes.py"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")


def trained(output: Path, *launcher: str) -> str:
    """What the example prints last, once it has written its adapter to ``output``."""
    command = [sys.executable, "-W", "ignore", *launcher, str(SCRIPT), str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.peft
def test_torchrun_trains_what_one_process_trains(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    alone, launched, together = tmp_path / "alone", tmp_path / "launched", tmp_path / "together"
    said = {
        path: trained(path, *how) for path, how in ((alone, ()), (launched, ACCELERATE), (together, TORCHRUN))
    }
    assert said[alone].startswith("processes: 1,")
    assert said[together].startswith("processes: 2,")
    ends = {line.partition("held-out")[2].partition(",")[0] for line in said.values()}
    assert len(ends) == 1, said
    file = "adapter_model.safetensors"
    assert (alone / file).read_bytes() == (launched / file).read_bytes()
    assert 1e-9 < compare_adapters(alone, together).relative_error < 1e-4
