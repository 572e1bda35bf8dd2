"""Tensors on disk: shapes and dtypes at once, values one by one."""

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tntune.checkpoint.slices import Slices
from tntune.errors import CheckpointError, DtypeError, NumericalError, OutputError

__all__ = [
    "BIN_NAME",
    "TENSORS_NAME",
    "TensorFile",
    "TensorInfo",
    "check_values",
    "open_safetensors",
    "open_tensors",
    "write_tensors",
]

TENSORS_NAME = "adapter_model.safetensors"
BIN_NAME = "adapter_model.bin"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_FACTOR_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says of a tensor before its values are read.

    Example:
        >>> TensorInfo((8, 384), torch.bfloat16).shape
        (8, 384)
    """

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class TensorFile:
    """A weights file of which only the header is in memory: ``load(key)`` reads that tensor and no other.

    It can be pickled, for another process to read the same file.

    Attributes:
        path: The file.
        entries: Shape and dtype of each tensor, in the order of the file's key list.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_tensors(Path(folder) / TENSORS_NAME, {"z": torch.ones(2, 3)})
        ...     file = open_tensors(Path(folder))
        ...     file.entries["z"].shape, file.load("z").sum().item()
        ((2, 3), 6.0)
    """

    path: Path
    entries: Mapping[str, TensorInfo]
    _read: Callable[[str], Tensor] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        """Size of the file on disk, header included."""
        return self.path.stat().st_size

    def load(self, key: str) -> Tensor:
        """Tensor of that key on the CPU, as stored; CheckpointError where there is none."""
        if key not in self.entries:
            raise CheckpointError(f"{self.path}: {key}: no such tensor")
        return self._read(key)

    def load_factor(self, key: str) -> Tensor:
        """Tensor of that key as :meth:`load` gives it; NumericalError where an entry is NaN or infinite."""
        value = self.load(key)
        if not bool(torch.isfinite(value).all()):
            raise NumericalError(f"{self.path}: {key}: has entries that are NaN or infinite")
        return value

    def check_factor(self, key: str, order: int) -> TensorInfo:
        """Entry of a tensor that must hold floats along ``order`` axes, none empty; else CheckpointError."""
        info = self.entries[key]
        if info.dtype not in _FACTOR_DTYPES:
            raise CheckpointError(
                f"{self.path}: {key}: dtype {info.dtype} is not a float of 16, 32 or 64 bits"
            )
        if len(info.shape) != order:
            raise CheckpointError(f"{self.path}: {key}: shape {info.shape} must have {order} axes")
        if 0 in info.shape:
            raise CheckpointError(
                f"{self.path}: {key}: shape {info.shape} is empty; was a sharded model saved?"
            )
        return info


def open_tensors(folder: Path) -> TensorFile:
    """Header of a folder's weights: ``adapter_model.safetensors``, else ``adapter_model.bin``.

    The latter is unpickled with ``weights_only=True``, which runs no code, and memory-mapped where its format
    allows.

    Raises:
        CheckpointError: Where both are missing, the weights are sharded, or the file is damaged.

    Example:
        >>> open_tensors(Path("nowhere"))
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere: has neither adapter_model.safetensors nor adapter_model.bin
    """
    if (folder / TENSORS_NAME).is_file():
        return open_safetensors(folder / TENSORS_NAME)
    if (folder / BIN_NAME).is_file():
        return _open_bin(folder / BIN_NAME)
    for index in (f"{TENSORS_NAME}.index.json", f"{BIN_NAME}.index.json"):
        if (folder / index).exists():
            raise CheckpointError(f"{folder / index}: sharded weights are not read; save them as one file")
    raise CheckpointError(f"{folder}: has neither {TENSORS_NAME} nor {BIN_NAME}")


def check_values(key: str, value: Tensor) -> None:
    """Raise unless a tensor may be written as a factor: floats of 16, 32 or 64 bits, all finite.

    Raises:
        DtypeError: For any other dtype; names the key.
        NumericalError: For NaN or an infinity; names the key.

    Example:
        >>> check_values("z", torch.ones(2, dtype=torch.int64))
        Traceback (most recent call last):
        tntune.errors.DtypeError: z: dtype torch.int64 is not a float of 16, 32 or 64 bits
    """
    if value.dtype not in _FACTOR_DTYPES:
        raise DtypeError(f"{key}: dtype {value.dtype} is not a float of 16, 32 or 64 bits")
    if not bool(torch.isfinite(value).all()):
        raise NumericalError(f"{key}: has entries that are NaN or infinite")


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file: ``open_tensors(path.parent).load(key)`` gives ``tensors[key]`` bit for bit.

    The same tensors and metadata give the same bytes.

    Args:
        path: The file.
        tensors: By key; copies are written, so they may share storage.
        metadata: Texts for the header; by default the format that readers look for.

    Raises:
        OutputError: Where the disk refuses, or the format has no such dtype.

    Example:
        >>> write_tensors(Path("no-such-folder") / TENSORS_NAME, {"z": torch.ones(1)})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        tntune.errors.OutputError: no-such-folder/adapter_model.safetensors: cannot be written: ...
    """
    # Cloned, since safetensors refuses tensors that share storage, and tied or sliced factors do.
    content = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for key, value in tensors.items()
    }
    try:
        path.touch()
        usual = path.stat().st_mode
        save_file(content, path, metadata=dict(metadata or {"format": "pt"}))
        path.chmod(usual)  # safetensors lets the owner alone read
        _sort_metadata(path)
    except (OSError, SafetensorError, KeyError) as error:  # KeyError: a dtype that the format lacks
        raise OutputError(f"{path}: cannot be written: {error}") from error


def _sort_metadata(path: Path) -> None:
    """Put the texts of a header in order: the library writes them in one that changes from run to run."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))


def open_safetensors(path: Path) -> TensorFile:
    """Header of one safetensors file; a value is read, by its place in the file, when it is asked for.

    Raises:
        CheckpointError: Where the file is damaged, or a dtype is unknown.

    Example:
        >>> open_safetensors(Path("nowhere.safetensors"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere.safetensors: not a whole safetensors file: ...
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # it checks the header
            keys = file.keys()
        slices = Slices.of(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    entries = {}
    for key in keys:
        place = slices.places.get(key)
        if place is None:
            raise CheckpointError(f"{path}: {key}: changed on disk while it was opened")
        if place.dtype not in _DTYPES:
            raise CheckpointError(f"{path}: {key}: dtype {place.dtype} is not supported")
        entries[key] = TensorInfo(place.shape, _DTYPES[place.dtype])
    return TensorFile(path, entries, _Stored(slices))


@dataclass(frozen=True)
class _Stored:
    """Reads the values of a safetensors file by their keys."""

    slices: Slices

    def __call__(self, key: str) -> Tensor:
        return self.slices.read(key, _DTYPES[self.slices.places[key].dtype])


def _is_dense(value: Tensor) -> bool:
    """Whether every entry of a tensor is on disk: none is made up by strides of zero, a mask or a factory."""
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _open_bin(path: Path) -> TensorFile:
    """The tensors of a pickled state dict, mapped rather than read."""
    state = _Pickled(path)
    entries = {key: TensorInfo(tuple(value.shape), value.dtype) for key, value in state.tensors.items()}
    return TensorFile(path, entries, state)


class _Pickled:
    """Reads the values of a pickled state dict; another process opens the file anew."""

    def __init__(self, path: Path) -> None:
        self.path, self.tensors = path, _mapped(path)

    def __reduce__(self) -> tuple[type["_Pickled"], tuple[Path]]:
        return _Pickled, (self.path,)

    def __call__(self, key: str) -> Tensor:
        return self.tensors[key].detach().clone()


def _mapped(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, once it is one of dense tensors."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch.load names no common base for what a damaged file raises
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read without running code: {reason}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: must hold a dict of tensors, not {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or not _is_dense(value):
            raise CheckpointError(f"{path}: {key}: must be a dense tensor, not {type(value).__name__}")
    return state
