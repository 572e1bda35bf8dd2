"""The machine a run is on: versions, memory, devices, and random numbers that leave no trace."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from tntune.experiments.loading import extra
from tntune.experiments.task import Split

__all__ = ["environment", "memory_bytes", "moved", "seeded"]

_PACKAGES = ("tntune", "torch", "transformers", "numpy", "scipy")


def environment(device: torch.device) -> dict[str, str | int]:
    """Versions, platform, device and threads: what a run may depend on beside its settings.

    Example:
        >>> sorted(environment(torch.device("cpu")))[:3]
        ['device', 'numpy', 'platform']
    """
    gpu = device.type == "cuda"
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if gpu else platform.machine() or "cpu",
        "threads": torch.get_num_threads(),
    }


def memory_bytes(device: torch.device) -> int:
    """Memory in use: of this process on a CPU, allocated by torch on a GPU.

    Example:
        >>> memory_bytes(torch.device("cpu")) > 2**20
        True
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(extra("psutil").Process().memory_info().rss)


def moved(split: Split, device: torch.device) -> dict[str, Tensor]:
    """The tensors of a split on a device.

    Example:
        >>> moved({"x": torch.ones(2)}, torch.device("cpu"))["x"].sum().item()
        2.0
    """
    return {name: tensor.to(device) for name, tensor in split.items()}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A block in which torch's own random numbers, as dropout draws, follow a seed; then they are as before.

    Example:
        >>> def draw():
        ...     with seeded(0, torch.device("cpu")):
        ...         return torch.rand(()).item()
        >>> draw() == draw()
        True
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        for each in devices:
            torch.cuda.set_rng_state(torch.Generator(each).manual_seed(seed).get_state(), each)
        yield


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
