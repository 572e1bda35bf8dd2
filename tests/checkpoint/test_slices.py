"""Laws of reading by place: bit for bit what the library reads, and never another file's bytes."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tntune.checkpoint.slices import Slices
from tntune.checkpoint.tensor_file import TENSORS_NAME, open_safetensors, open_tensors
from tntune.errors import CheckpointError

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    made = {
        f"h.{number}.{dtype}": torch.randint(0, 2, shape, generator=draw).to(dtype)
        for dtype in DTYPES
        for number, shape in enumerate(((3, 5), (7,), (), (0, 4), (2, 1, 3)))
    }
    return {**made, "normal": torch.randn(33, 17, generator=draw), "ΔW": torch.randn(3, generator=draw)}


def bits(value: Tensor) -> bytes:
    return bytes(value.contiguous().flatten().view(torch.uint8).tolist())


def test_every_value_is_what_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / TENSORS_NAME
    save_file(tensors(), path, metadata={"format": "pt"})
    opened, exact = open_safetensors(path), load_file(path)
    assert set(opened.entries) == set(exact)
    for key, value in exact.items():
        found = opened.load(key)
        assert (found.shape, found.dtype) == (value.shape, value.dtype)
        assert (found.shape, found.dtype) == (opened.entries[key].shape, opened.entries[key].dtype)
        assert not value.numel() or bits(found) == bits(value)
        assert not found.numel() or found.data_ptr() != opened.load(key).data_ptr()  # nobody else's memory


def test_the_header_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, parsed = tmp_path / "one.safetensors", []
    save_file(tensors(), path)
    real = Slices.of.__func__
    monkeypatch.setattr(Slices, "of", classmethod(lambda cls, path: parsed.append(path) or real(cls, path)))
    opened = open_safetensors(path)
    monkeypatch.setattr("tntune.checkpoint.tensor_file.safe_open", None)
    for key in opened.entries:
        opened.load(key)
    assert parsed == [path]


@pytest.mark.parametrize("name", [TENSORS_NAME, "adapter_model.bin"])
def test_another_process_reads_the_same(tmp_path: Path, name: str) -> None:
    if name == TENSORS_NAME:
        save_file(tensors(), tmp_path / name)
    else:
        torch.save(tensors(), tmp_path / name)
    opened = open_tensors(tmp_path)
    message = pickle.dumps(opened)
    assert len(message) < 10_000  # the places, not the values
    again = pickle.loads(message)
    assert again.entries == opened.entries
    assert all(torch.equal(again.load(key), opened.load(key)) for key in ("normal", "ΔW"))


@pytest.mark.parametrize("change", ["other content", "shorter", "gone"])
def test_a_file_that_changes_is_not_read(tmp_path: Path, change: str) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"z": torch.ones(4)}, path)
    opened = open_safetensors(path)
    if change == "other content":
        save_file({"z": torch.zeros(4)}, path)
        os.utime(path, ns=(0, 0))
    elif change == "shorter":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"one\.safetensors: z: changed on disk since it was opened"):
        opened.load("z")


def test_a_file_cut_behind_our_back_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"z": torch.ones(4)}, path)
    slices = Slices.of(path)
    path.write_bytes(path.read_bytes()[:-4])
    status = path.stat()
    cut = Slices(path, slices.places, (status.st_size, status.st_mtime_ns))
    with pytest.raises(CheckpointError, match="z: 12 of 16 bytes could be read"):
        cut.read("z", torch.float32)
