"""Laws of calibration files: what was saved is what is read, and nothing else is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tntune.checkpoint import Calibration, open_calibration, save_calibration
from tntune.errors import (
    CheckpointError,
    DtypeError,
    ModeError,
    NumericalError,
    OutputError,
    SpecError,
    TargetError,
)


def made() -> Calibration:
    draw = torch.Generator().manual_seed(0)
    moments = {size: torch.randn(size, size, generator=draw) for size in (3, 4, 5)}
    outputs = {"h.q": moments[4], "h.k": moments[5], "h.v": moments[3][:2]}
    inputs = {"h.q": moments[3], "h.v": moments[5][:1]}
    return Calibration(inputs, outputs, {"h.q": "h.q", "h.k": "h.q", "h.v": "h.v"}, {"tokens": 7})


def test_a_file_holds_every_moment_bit_for_bit_and_shared_ones_once(tmp_path: Path) -> None:
    save_calibration(tmp_path / "c.safetensors", made())
    found = open_calibration(tmp_path / "c.safetensors")
    assert found.names == ("h.k", "h.q", "h.v")
    assert (found.input_of, found.notes) == (made().input_of, {"tokens": 7})
    for name in found.names:
        for one, two in zip(found.moments(name), made().moments(name), strict=True):
            assert torch.equal(one, two)
    assert found.moments("h.q")[0] is found.moments("h.k")[0]


def test_a_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    save_calibration(tmp_path / "c.safetensors", made())
    before = (tmp_path / "c.safetensors").read_bytes()
    with pytest.raises(OutputError, match=r"c\.safetensors: exists already"):
        save_calibration(tmp_path / "c.safetensors", made())
    save_calibration(tmp_path / "c.safetensors", made(), overwrite=True)
    assert (tmp_path / "c.safetensors").read_bytes() == before
    with pytest.raises(OutputError, match="cannot be written"):
        save_calibration(tmp_path / "none" / "c.safetensors", made())
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "is no calibration file of tntune"),
        ({"tntune": "[]"}, "is no calibration file of tntune"),
        ({"tntune": "{"}, "cannot be read"),
        ({"tntune": '{"version": 9, "input_of": {}, "notes": {}}'}, "version 9; this tntune reads 1"),
        ({"tntune": '{"version": 1, "input_of": {"a": "b"}, "notes": {}}'}, "layers have output moments"),
        ({"tntune": '{"version": 1, "input_of": null, "notes": {}}'}, r"c\.safetensors: "),
    ],
)
def test_other_files_are_refused(tmp_path: Path, metadata: dict[str, str] | None, message: str) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "c.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        open_calibration(tmp_path / "c.safetensors")


def test_what_is_no_moment_is_refused() -> None:
    eye = torch.eye(3)
    with pytest.raises(ModeError, match=r"a: a moment is \(n, n\), or \(k, n\) with k < n, not \(4, 3\)"):
        Calibration({"a": torch.ones(4, 3)}, {"a": eye}, {"a": "a"})
    with pytest.raises(NumericalError, match="a: has a moment that is not finite"):
        Calibration({"a": eye}, {"a": eye / 0}, {"a": "a"})
    with pytest.raises(SpecError, match="1 layers have output moments, 1 have inputs, which name 1 of 2"):
        Calibration({"a": eye, "b": eye}, {"a": eye}, {"a": "a"})
    with pytest.raises(TargetError, match="b: the calibration has no such layer"):
        Calibration({"a": eye}, {"a": eye}, {"a": "a"}).moments("b")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_moments_are_real_floats(dtype: torch.dtype) -> None:
    with pytest.raises(DtypeError, match=f"fc: has a moment of {dtype}"):
        Calibration({"fc": torch.eye(3).to(dtype)}, {"fc": torch.eye(3)}, {"fc": "fc"})


def test_metadata_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"inputs.fc": torch.eye(2)}, path, metadata={"tntune": "[" * 100_000})
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_calibration(path)


def test_a_stranger_s_draft_is_left_alone(tmp_path: Path) -> None:
    draft = tmp_path / ".c.safetensors.draft"
    draft.write_text("of another process")
    save_calibration(tmp_path / "c.safetensors", made())
    assert draft.read_text() == "of another process"
    assert len(list(tmp_path.iterdir())) == 2
