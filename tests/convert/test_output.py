"""Law: what cannot be written is said before any work is done."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tntune.convert.output import check_output
from tntune.errors import OutputError


def test_a_loop_of_links_is_no_place(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OutputError, match=r"is no place to write to|does not exist"):
        check_output(tmp_path / "lora", tmp_path / "loop" / "out")


def test_a_name_with_nul_is_no_place(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no place to write to"):
        check_output(tmp_path / "lora", tmp_path / "a\0b")


def test_the_source_is_known_by_any_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that does not tell upper from lower case: one file, two names."""
    (tmp_path / "lora.safetensors").write_text("")
    os.link(tmp_path / "lora.safetensors", tmp_path / "LoRA.safetensors")
    with pytest.raises(OutputError, match=r"is the source .* or inside it"):
        check_output(tmp_path / "lora.safetensors", tmp_path / "LoRA.safetensors", overwrite=True)
    monkeypatch.setattr(Path, "samefile", _spelled(Path.samefile))
    (tmp_path / "loras" / "mine").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"is the source .* or inside it"):
        check_output(tmp_path / "loras" / "mine", tmp_path / "Loras" / "Mine" / "half")
    with pytest.raises(OutputError, match="which would be lost"):
        check_output(tmp_path / "loras" / "mine", tmp_path / "Loras", overwrite=True)


def _spelled(samefile: Callable[[Path, Path], bool]) -> Callable[[Path, Path], bool]:
    """What such a disk says of two paths."""
    return lambda one, other: str(one).lower() == str(other).lower() or samefile(one, other)
