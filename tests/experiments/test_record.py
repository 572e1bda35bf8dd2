"""Records: small files, written whole, read with suspicion."""

import json
from pathlib import Path

import pytest

from tests.experiments.sample import a_record
from tntune.errors import CheckpointError, OutputError
from tntune.experiments.loop import MAX_POINTS
from tntune.experiments.record import Record, Records


def test_a_record_is_kept(tmp_path: Path) -> None:
    record = a_record()
    path = Records(tmp_path).save(record)
    fresh = Records(tmp_path)
    assert list(fresh) == [record]
    assert fresh.find(record.key) == record
    assert path.relative_to(tmp_path).as_posix() == f"demo/smoke/lora-400-final-s0-{record.key[:8]}.json"
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no draft is left


def test_a_record_is_small(tmp_path: Path) -> None:
    record = a_record()
    assert len(record.losses) <= MAX_POINTS
    assert Records(tmp_path).save(record).stat().st_size < 2**13


def test_saving_again_replaces(tmp_path: Path) -> None:
    records, record = Records(tmp_path), a_record()
    assert records.save(record) == records.save(record)
    assert len(list(records)) == 1


def test_an_unknown_key_is_not_there(tmp_path: Path) -> None:
    assert Records(tmp_path).find("0" * 16) is None


def test_a_full_disk_or_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        Records(tmp_path).save(a_record())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, r"unknown keys \['surprise'\]"),
        ({"losses": [[1]]}, "a curve has points that are no pairs"),
        ({"scores": None}, "a curve has points that are no pairs"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({**a_record().to_json(), **change}))
    with pytest.raises(CheckpointError, match=message) as caught:
        list(Records(tmp_path))
    assert str(path) in str(caught.value)


def test_missing_keys_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"missing keys .*'key'"):
        Record.from_json({})
