"""The same again: one seed gives the same bytes, in another process, on one thread and on two."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.checkpoint import lora_files
from tests.convert.sample import lora_folder
from tests.reliability.campaign import Campaign, Tally
from tntune.checkpoint import save_calibration
from tntune.convert import (
    ConversionSettings,
    ResizeSettings,
    Target,
    calibrate,
    convert_lora,
    export_lora,
    resize_lora,
    round_adapter,
)

__all__ = ["CAMPAIGNS"]

LAYERS, WIDE, DEEP = ("h.0.fc", "h.1.fc"), 768, 512
RUNS = ("1 thread", "1 thread, again", "2 threads", "2 threads, again")


class Network(nn.Module):
    """Two layers, wide enough that a matrix product is shared between threads."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(WIDE, DEEP)})])
        self.h.append(nn.ModuleDict({"fc": nn.Linear(DEEP, WIDE)}))
        draw = torch.Generator().manual_seed(0)
        for value in self.parameters():
            value.data = torch.randn(value.shape, generator=draw) / WIDE**0.5

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = torch.tanh(self.h[0]["fc"](x))
        logits: Tensor = self.h[1]["fc"](hidden)
        return logits


def make_sources(root: Path, seed: int) -> None:
    """A LoRA folder and a single file of that seed."""
    draw = torch.Generator().manual_seed(seed)
    shapes = ((WIDE, DEEP), (DEEP, WIDE))
    made = {
        name: (
            torch.randn(16, inside, generator=draw).double(),
            torch.randn(outside, 16, generator=draw).double() * 0.7 ** torch.arange(16),
        )
        for name, (inside, outside) in zip(LAYERS, shapes, strict=True)
    }
    lora_folder(root / "lora", made=made, target_modules=["fc"])
    kohya = lora_files.tensors("kohya unet", lora_files.ALPHAS["one alpha"])
    texts = {f"ss_note_{i}": str(i * seed) for i in range(12)}
    save_file(kohya, root / "one.safetensors", metadata=texts)


def make_outputs(root: Path, seed: int) -> None:
    """Every output of every operation, from the sources beside it."""
    lora, draw = root.parent / "lora", torch.Generator().manual_seed(seed)
    batches = [torch.randn(32, WIDE, generator=draw) for _ in range(3)]
    convert_lora(lora, root / "convert", ConversionSettings(Target(params=0.5), "auto"))
    convert_lora(lora, root / "tolerance", ConversionSettings(Target(tolerance=0.1)))
    round_adapter(root / "tolerance", root / "round", Target(params=0.3))
    export_lora(root / "round", root / "export")
    resize_lora(lora, root / "resize", ResizeSettings(energy=0.9))
    resize_lora(root.parent / "one.safetensors", root / "file.safetensors", ResizeSettings(rank=2))
    save_calibration(root / "calibrate.safetensors", calibrate(Network(), batches, lora, seed=seed))


def digests(root: Path) -> dict[str, str]:
    """Of every file below a folder, by its path."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _elsewhere(root: Path, seed: int, threads: int) -> dict[str, str]:
    """The outputs of a process of its own, with that many threads."""
    code = (
        "import sys, torch; from pathlib import Path; from tests.reliability import repeating\n"
        f"torch.set_num_threads({threads})\n"
        "repeating.make_outputs(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    root.mkdir()
    home = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": home}
    command = [sys.executable, "-W", "ignore", "-c", code, str(root), str(seed)]
    subprocess.run(command, check=True, env=environment, cwd=home)
    return digests(root)


def run(cases: int) -> Tally:
    """Each seed in four processes; each file compared with that of the first is a case."""
    tally, seed = Tally(), 0
    while tally.cases < cases:
        with TemporaryDirectory() as folder:
            make_sources(Path(folder), seed)
            found = [_elsewhere(Path(folder) / name.replace(" ", "-"), seed, int(name[0])) for name in RUNS]
        for name, other in zip(RUNS[1:], found[1:], strict=True):
            for file, right in found[0].items():
                if name.startswith("2") and other.get(file) != right:
                    same = found[3].get(file) == found[2].get(file)
                    tally.check(same, f"{seed} {name}: {file}", outcome="same bytes on two threads only")
                    tally.notes += [f"`{file}` differs between 1 and 2 threads"]
                else:
                    tally.check(other.get(file) == right, f"{seed} {name}: {file}", outcome="same bytes")
        seed += 1
    tally.notes = [json.dumps(note).strip('"') for note in dict.fromkeys(tally.notes)]
    return tally


CAMPAIGNS = (
    Campaign(
        "repeating",
        "convert, round, export, resize (folder and file), calibrate: the same seed gives the same bytes in "
        "another process and on one or two threads",
        run,
        90,
        45,
    ),
)
