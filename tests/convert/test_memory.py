"""Laws of the stated memory: it grows with what is held, and the measured peak stays below it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.convert.shared import Network, batches, shared_folder
from tntune.checkpoint import LoraEntry, open_lora, write_lora
from tntune.convert import (
    ConversionSettings,
    ResizeSettings,
    Target,
    calibrate,
    conversion_memory,
    resize_memory,
)

MEASURED = """
import re, sys, torch
from pathlib import Path
from tntune.checkpoint import open_lora
from tntune.convert import *
torch.set_num_threads(1)
def peak():
    return 1000 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
source, method = Path(sys.argv[1]), sys.argv[2]
opened, resized = open_lora(source), ResizeSettings(params=0.25)
settings = ConversionSettings(Target(params=0.25), "joint" if method == "resize" else method)
stated = resize_memory(opened, resized) if method == "resize" else conversion_memory(opened, settings)
before = peak()
if method == "resize":
    resize_lora(source, source.with_name(method), resized)
else:
    convert_lora(source, source.with_name(method), settings)
print(stated, peak() - before)
"""


def half(method: str, **target: float) -> ConversionSettings:
    return ConversionSettings(Target(**(target or {"params": 0.5})), method)


def large_folder(path: Path, layers: int = 12) -> Path:
    """Layers of 2048 features, in bfloat16."""
    draw = torch.Generator().manual_seed(0)
    entries = [
        LoraEntry(
            f"h.{i}",
            torch.randn(32, 2048, generator=draw).bfloat16(),
            torch.randn(2048, 32, generator=draw).bfloat16(),
        )
        for i in range(layers)
    ]
    write_lora(path, entries, base_config={})
    return path


def test_more_layers_take_more_where_all_are_held(tmp_path: Path) -> None:
    few, many = (open_lora(large_folder(tmp_path / f"{n}", n)) for n in (4, 12))
    for method in ("joint", "tensorguide", "auto"):
        assert conversion_memory(few, half(method)) < conversion_memory(many, half(method))
    held = conversion_memory(many, half("joint")) - conversion_memory(few, half("joint"))
    assert held > 16 * (many.params - few.params)  # two float64 of each entry
    streamed = conversion_memory(many, half("tensorguide")) - conversion_memory(few, half("tensorguide"))
    assert streamed < 4 * (many.params - few.params)  # the result alone
    resized = [resize_memory(each, ResizeSettings(params=0.5)) for each in (few, many)]
    assert resized[0] < resized[1] < conversion_memory(many, half("joint"))


def test_layers_that_are_solved_together_take_the_square_of_their_rows(tmp_path: Path) -> None:
    """By shape and by stream: of all their rows a Gram matrix, its eigenvectors and workspace, in float64."""
    folders = [open_lora(large_folder(tmp_path / f"{n}", n)) for n in (16, 24, 32)]
    few, more, most = (conversion_memory(folder, half("joint")) for folder in folders)
    assert (most - more) - (more - few) > 2 * 3 * 8 * 2 * (8 * 32) ** 2


def test_smaller_budgets_and_calibrations_count(tmp_path: Path) -> None:
    source = shared_folder(tmp_path / "lora")
    opened = open_lora(source)
    shares = [conversion_memory(opened, half("tensorguide", params=share)) for share in (0.1, 0.9)]
    assert shares[0] < shares[1] < conversion_memory(opened, half("tensorguide", max_rank=9))
    known = calibrate(Network(), batches(), source)
    assert conversion_memory(opened, half("auto")) < conversion_memory(
        opened, half("auto"), calibration=known
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("method", ["joint", "tensorguide", "resize"])
def test_the_measured_peak_is_below(tmp_path: Path, method: str) -> None:
    source = large_folder(tmp_path / "lora")
    command = [sys.executable, "-c", MEASURED, str(source), method]
    stated, measured = map(int, subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.split())
    assert measured <= stated <= 3 * measured
