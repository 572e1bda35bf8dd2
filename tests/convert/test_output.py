"""Law: what cannot be written is said before any work is done."""

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
