"""Laws of ``--jobs``: the bytes of one process, memory stated for all, refusals where it would do nothing."""

from pathlib import Path

import pytest

from tests.cli.command import tntune
from tests.convert.sample import listing, lora_folder


def test_several_jobs_write_the_bytes_of_one(tmp_path: Path) -> None:
    source = lora_folder(tmp_path / "lora")
    for jobs in (1, 2):
        (tmp_path / f"{jobs}").mkdir()
        made, back = (tmp_path / f"{jobs}" / name for name in ("made", "back"))
        assert tntune("convert", source, "-o", made, "--params", 0.5, "--jobs", jobs).code == 0
        assert tntune("export", made, "-o", back, "-j", jobs).code == 0
    assert listing(tmp_path / "1") == listing(tmp_path / "2")


@pytest.mark.parametrize("command", ["convert", "resize"])
def test_the_dry_run_counts_the_processes(tmp_path: Path, command: str) -> None:
    source = lora_folder(tmp_path / "lora")
    stated = [
        tntune(
            command, source, "-o", tmp_path / "out", "--params", 0.5, "--dry-run", "--json", "-j", jobs
        ).json
        for jobs in (1, 2, 3)
    ]
    one, two, three = (each["memory_bytes"] for each in stated)
    assert one < two < three


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("convert", ("--params", 0.5, "--method", "joint", "--jobs", 2), "in one process, not 2"),
        (
            "convert",
            ("--params", 0.5, "--method", "joint", "--jobs", 2, "--dry-run"),
            "in one process, not 2",
        ),
        ("convert", ("--params", 0.5, "--jobs", 0), "jobs must be at least 1, not 0"),
        ("resize", ("--rank", 1, "--jobs", 0), "jobs must be at least 1, not 0"),
        ("export", ("--jobs", 0), "jobs must be at least 1, not 0"),
    ],
)
def test_what_jobs_cannot_do_is_refused(
    tmp_path: Path, command: str, options: tuple[object, ...], message: str
) -> None:
    source = lora_folder(tmp_path / "lora")
    if command == "export":
        assert tntune("convert", source, "-o", tmp_path / "made", "--max-rank", 2).code == 0
        source = tmp_path / "made"
    ran = tntune(command, source, "-o", tmp_path / "out", *options)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert not (tmp_path / "out").exists()
