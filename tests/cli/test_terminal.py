"""Laws: tables read well at any width; bars are for terminals; interrupts and closed pipes end quietly."""

import json
import os
import pty
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from tests.cli.command import COMMAND, tntune
from tests.convert.sample import lora_folder
from tntune.cli.console import note, percent, progress_bar, table

COMMANDS = ("inspect", "plan", "convert", "round", "export", "collect", "verify", "analyze", "ntk", "doctor")
LONG = "model.layers.31.self_attn.a_projection_with_a_long_name"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return lora_folder(tmp_path / "lora")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    ran = tntune(command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Example: tntune {command}" in ran.out
    assert "--json" in ran.out


def test_help_lists_the_commands() -> None:
    ran = tntune("--help")
    assert ran.code == 0
    assert all(command in ran.out for command in COMMANDS)


def test_version() -> None:
    assert re.fullmatch(r"tntune \d+\.\d+\.\d+\S*\n", tntune("--version").out)


def test_tables_for_people(lora: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "out", tmp_path / "back"
    converted = tntune("convert", lora, "-o", out, "--params", 0.5)
    assert converted.out.splitlines()[0] == f"{lora} -> {out}"
    assert re.search(r"^h\.1\.fc +io w +1-\d-1 +128 +\d+ ", converted.out, re.MULTILINE)
    assert re.search(r"^parameters +390 +\d+$", converted.out, re.MULTILINE)
    assert re.search(r"^error of ΔW +0\.\d+$", converted.out, re.MULTILINE)
    assert "h.0.fc" in tntune("inspect", out).out
    assert "total error 0." in tntune("verify", lora, out).out
    assert tntune("export", out, "-o", back).out.startswith(f"{back}: ")
    doctor = tntune("doctor").out
    assert re.search(r"^identity_at_start +ok$", doctor, re.MULTILINE)
    assert "layout " in tntune("plan", "--in", 384, "--out", 384).out


def test_the_note_that_plain_svd_is_closer_is_for_those_who_can_do_better(lora: Path, tmp_path: Path) -> None:
    poor = ("convert", lora, "-o", tmp_path / "out", "--params", 0.5, "--overwrite")
    assert "plain SVD truncation of this size is closer" in tntune(*poor, "--layout", "side w f1 f2").err
    for method in ("svd", "auto"):
        assert "plain SVD" not in tntune(*poor, "--method", method).err


def test_names_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table("a title", ("layer",), [("[red]fc",), (":dog:",)])
    assert capsys.readouterr().out == "a title\nlayer\n[red]fc\n:dog:\n"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_fit_the_width(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Long names are folded, numbers stay whole."""
    monkeypatch.setenv("COLUMNS", str(width))
    columns = ("layer", "stored as", "ranks", "before", "after", "error")
    table("title", columns, [(LONG, "io w", "1-16-1", 1234567, 98765, "0.1234")])
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= width
    text = "".join(line.split(" ")[0] for line in lines[2:])
    assert text == LONG
    for number in ("1,234,567", "98,765", "0.1234"):
        assert sum(number in line for line in lines) == 1


def test_notes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    note("two\nlines  here")
    assert capsys.readouterr() == ("", "two lines here\n")


def test_numbers_for_people() -> None:
    assert [percent(value) for value in (None, 0.0, 0.123456, 1e-9)] == ["-", "0", "0.1235", "1e-09"]


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(True) as progress:
        progress("survey", 1, 2)
    assert capsys.readouterr() == ("", "")


def in_terminal(*arguments: object) -> tuple[int, str, str]:
    """A command whose stderr is a terminal: its code, its stdout and what the terminal saw."""
    leader, follower = pty.openpty()
    command = [*COMMAND, *(str(argument) for argument in arguments)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, env=environment, text=True)
    os.close(follower)
    out, _ = process.communicate()
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # how Linux tells that the other side is closed
            break
        if not part:
            break
        seen += part
    os.close(leader)
    return process.returncode, out, seen.decode()


def test_a_bar_on_a_terminal_and_json_beside_it(lora: Path, tmp_path: Path) -> None:
    code, out, seen = in_terminal("convert", lora, "-o", tmp_path / "out", "--params", 0.5, "--json")
    assert code == 0
    assert json.loads(out)["params_before"] == 390
    assert "\x1b" not in out
    assert "survey" in seen


def test_a_closed_pipe_is_no_error(lora: Path) -> None:
    command = f"{shlex.join(COMMAND)} inspect {lora} | true; echo ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("141\n", "")


def test_an_interrupt_leaves_nothing_behind(
    lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tntune.convert.convert.DeltaEncoder.encode", interrupt)
    ran = tntune("convert", lora, "-o", tmp_path / "out", "--params", 0.5)
    assert ran.code not in (0, 2)
    assert "Traceback" not in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def test_half_precision_from_end_to_end(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "half", dtype=torch.bfloat16)
    ran = tntune("convert", lora, "-o", tmp_path / "out", "--params", 0.5, "--json")
    assert ran.json["dtypes"] == ["torch.bfloat16"]
    assert "torch.bfloat16" in tntune("inspect", tmp_path / "out").out


def test_what_a_terminal_would_obey_is_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    note("a name: \x1b[2J\u202e\ud800 and Δ")
    table("\x1b[2J", ("layer",), [("fc\x07",)])
    printed = capsys.readouterr()
    assert printed.err == "a name: \\x1b[2J\\u202e\\ud800 and Δ\n"
    assert printed.out == "\\x1b[2J\nlayer\nfc\\x07\n"


def test_an_encoding_without_greek_ends_no_command(lora: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([*COMMAND, "inspect", str(lora)], capture_output=True, env=environment)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert rb"norm of \u0394W" in ran.stdout
