"""Slices: where the values of a safetensors file lie, so that each is read by itself."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tntune.errors import CheckpointError

__all__ = ["Slice", "Slices"]

_PREFIX = 8  # bytes of the header's length


class Slice(NamedTuple):
    """One tensor: the name of its dtype in the file, its shape, and the bytes from ``begin`` to ``end``.

    Example:
        >>> Slice("BF16", (2, 3), 0, 12).shape
        (2, 3)
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Slices:
    """The places of all tensors of a safetensors file, from a header that is parsed once.

    Reading a tensor costs its own bytes, however many others there are: opening the file by the library of
    the format for each parses all of a header that grows with their number, and a file that stays open keeps
    every page once read in memory.

    Attributes:
        path: The file.
        places: Where each tensor lies, by key.
        stamp: Size and time of the file's last change when its header was read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import save_file
        >>> with TemporaryDirectory() as folder:
        ...     save_file({"z": torch.ones(2, 3)}, Path(folder) / "one.safetensors")
        ...     slices = Slices.of(Path(folder) / "one.safetensors")
        ...     slices.read("z", torch.float32).sum().item()
        6.0
    """

    path: Path
    places: Mapping[str, Slice]
    stamp: tuple[int, int]

    @classmethod
    def of(cls, path: Path) -> "Slices":
        """Of a file whose header the library of the format has let pass; ValueError, OSError for others."""
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size = int.from_bytes(file.read(_PREFIX), "little")
            header = json.loads(file.read(size))
        start = _PREFIX + size
        places = {
            key: Slice(each["dtype"], tuple(each["shape"]), *(start + at for at in each["data_offsets"]))
            for key, each in header.items()
            if key != "__metadata__"
        }
        return cls(path, places, (status.st_size, status.st_mtime_ns))

    def read(self, key: str, dtype: torch.dtype) -> Tensor:
        """The tensor of that key on the CPU; CheckpointError where the file is no longer the same."""
        place = self.places[key]
        buffer = bytearray(place.end - place.begin)
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_size, status.st_mtime_ns) != self.stamp:
                    raise CheckpointError(f"{self.path}: {key}: changed on disk since it was opened")
                file.seek(place.begin)
                found = file.readinto(buffer)
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: {key}: changed on disk since it was opened: {error}"
            ) from error
        if found != len(buffer):
            raise CheckpointError(f"{self.path}: {key}: {found} of {len(buffer)} bytes could be read")
        if not buffer:
            return torch.empty(place.shape, dtype=dtype)
        return torch.frombuffer(buffer, dtype=dtype).reshape(place.shape)
