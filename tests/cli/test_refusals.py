"""Law: bad input is one line on stderr and exit code 2, and the disk is as it was."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.command import spawn, tntune
from tests.convert.sample import factors, listing, lora_folder

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
KEY = "base_model.model.h.0.fc.lora_{}.weight"

Damage = Callable[[Path], object]


def raw(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def cut(name: str, size: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def config(**changes: object) -> Damage:
    def damage(folder: Path) -> None:
        value = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**value, **changes}))

    return damage


def tensor(key: str, value: torch.Tensor | None) -> Damage:
    def damage(folder: Path) -> None:
        content = load_file(folder / TENSORS)
        content.pop(key, None)
        save_file(content if value is None else {**content, key: value}, folder / TENSORS)

    return damage


def corrupt(folder: Path) -> None:
    content = bytearray((folder / TENSORS).read_bytes())
    content[8:24] = b"\xff" * 16
    (folder / TENSORS).write_bytes(bytes(content))


FOLDERS: dict[str, tuple[Damage, str]] = {
    "no config": (remove(CONFIG), f"{CONFIG}: cannot be read: No such file"),
    "empty config": (raw(CONFIG, b""), f"{CONFIG}: not JSON"),
    "truncated config": (cut(CONFIG, 40), f"{CONFIG}: not JSON"),
    "binary config": (raw(CONFIG, b"\xff\xfe"), f"{CONFIG}: not UTF-8"),
    "config is a list": (raw(CONFIG, b"[]"), f"{CONFIG}: must hold an object, not list"),
    "another method": (config(peft_type="IA3"), "peft_type: must be 'LORA', not 'IA3'"),
    "no rank": (config(r=None), "r: must be a positive integer"),
    "alpha is text": (config(lora_alpha="8"), "lora_alpha: must be a finite number"),
    "DoRA": (config(use_dora=True), "use_dora: DoRA"),
    "another rank": (config(r=5), r"lora_A.*has rank 4, adapter_config.json says 5"),
    "a pattern that is no regex": (config(rank_pattern={"(": 2}), "is no regular expression"),
    "other targets": (config(target_modules=["q"]), "target_modules .* do not name this module"),
    "trained biases": (config(bias="all"), "bias: base biases were trained too"),
    "no tensors": (remove(TENSORS), f"has neither {TENSORS} nor adapter_model.bin"),
    "empty tensors": (raw(TENSORS, b""), f"{TENSORS}: not a whole safetensors file"),
    "truncated tensors": (cut(TENSORS, 900), f"{TENSORS}: not a whole safetensors file"),
    "corrupt tensors": (corrupt, f"{TENSORS}: not a whole safetensors file"),
    "NaN": (
        tensor(KEY.format("A"), torch.full((4, 12), torch.nan)),
        "lora_A.weight: has entries that are NaN",
    ),
    "infinity": (tensor(KEY.format("B"), torch.full((20, 4), torch.inf)), "lora_B.weight: .*infinite"),
    "wrong shape": (tensor(KEY.format("B"), torch.ones(20, 3)), "lora_B.weight: has rank 3, lora_A has 4"),
    "three axes": (tensor(KEY.format("A"), torch.ones(4, 12, 1)), "is a convolution's"),
    "empty tensor": (tensor(KEY.format("B"), torch.ones(0, 4)), "is empty"),
    "integers": (tensor(KEY.format("A"), torch.ones(4, 12, dtype=torch.int32)), "dtype torch.int32"),
    "one side": (tensor(KEY.format("B"), None), "lora_B is missing"),
    "unknown key": (tensor("base_model.model.x.weight", torch.ones(2)), "x.weight: unknown tensor"),
    "unknown part": (tensor(KEY.format("C"), torch.ones(2)), "lora_C.weight: an unknown part of a LoRA"),
    "magnitudes": (
        tensor("base_model.model.h.0.fc.lora_magnitude_vector", torch.ones(20)),
        "DoRA magnitude",
    ),
}


def refused(message: str, *arguments: object, root: Path) -> None:
    before = listing(root)
    ran = tntune(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert re.search(message, ran.err), ran.err
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert listing(root) == before


@pytest.mark.parametrize(("damage", "message"), FOLDERS.values(), ids=FOLDERS)
def test_a_bad_folder(tmp_path: Path, damage: Damage, message: str) -> None:
    lora = lora_folder(tmp_path / "lora")
    damage(lora)
    refused(message, "convert", lora, "-o", tmp_path / "out", "--params", 0.5, "--json", root=tmp_path)


OPTIONS: dict[str, tuple[tuple[object, ...], str]] = {
    "no target": ((), "give exactly one of --params, .*; given: none"),
    "two targets": (("--params", 0.5, "--max-rank", 2), "given: --params, --max-rank"),
    "share 0": (("--params", 0), r"in \(0, 1\], not 0"),
    "share 2": (("--params", 2), r"in \(0, 1\], not 2"),
    "share NaN": (("--params", "nan"), r"in \(0, 1\], not nan"),
    "negative share": (("--params", -0.5), r"in \(0, 1\], not -0.5"),
    "no parameters": (("--max-params", 0), "max_params must be at least 1, not 0"),
    "one parameter": (("--max-params", 1), "none fits the budget"),
    "rank 0": (("--max-rank", 0), "max_rank must be at least 1, not 0"),
    "tolerance 1": (("--tolerance", 1), r"in \[0, 1\), not 1"),
    "negative tolerance": (("--tolerance", -1), r"in \[0, 1\), not -1"),
    "infinite tolerance": (("--tolerance", "inf"), r"in \[0, 1\), not inf"),
    "unknown method": (("--params", 0.5, "--method", "best"), "must be one of tensorguide, joint, svd, auto"),
    "unknown layout": (("--params", 0.5, "--layout", "a b"), "a b"),
    "flat layout": (("--params", 0.5, "--layout", "concat"), "needs joined layouts, not 'concat'"),
    "empty layout": (("--params", 0.5, "--layout", ""), "''"),
    "unknown dtype": (("--params", 0.5, "--dtype", "int4"), "must be one of float32, float16, bfloat16"),
    "unknown activation": (("--params", 0.5, "--activation", "swoosh"), "unknown activation 'swoosh'"),
    "activation without lift": (("--params", 0.5, "--activation", "tanh"), "no exact form .* 'tanh'"),
    "activation of an SVD": (
        ("--params", 0.5, "--activation", "relu", "--method", "svd"),
        "'relu' needs method 'tensorguide'",
    ),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_a_bad_option(tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    lora = lora_folder(tmp_path / "lora")
    refused(message, "convert", lora, "-o", tmp_path / "out", *options, root=tmp_path)


def test_bad_places(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "lora")
    (tmp_path / "file").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    places = {
        "lora": "is the source",
        "lora/half": "is the source .* or inside it",
        "full": "exists already",
        "file": "exists",
        "missing/out": "the parent folder .*missing does not exist",
        "file/out": "the parent folder .*file does not exist",
    }
    for place, message in places.items():
        refused(message, "convert", lora, "-o", tmp_path / place, "--params", 0.5, root=tmp_path)
    replaced = {
        "file": "is not a folder",
        "full": "holds no adapter_config.json",
        "link": "is a symbolic link",
    }
    for place, message in replaced.items():
        command = ("convert", lora, "-o", tmp_path / place, "--params", 0.5, "--overwrite")
        refused(message, *command, root=tmp_path)
    refused(
        "holds the source", "convert", lora, "-o", tmp_path, "--params", 0.5, "--overwrite", root=tmp_path
    )


def test_other_commands(tmp_path: Path) -> None:
    lora, out = lora_folder(tmp_path / "lora"), tmp_path / "out"
    other = lora_folder(tmp_path / "other", made={"elsewhere.fc": factors()["h.0.fc"]})
    bad = lora_folder(tmp_path / "bad")
    (bad / TENSORS).write_bytes(b"")
    cases: list[tuple[str, tuple[object, ...]]] = [
        ("No such file", ("inspect", tmp_path / "nowhere")),
        ("Not a directory", ("inspect", lora / CONFIG)),
        ("No such file", ("verify", lora, tmp_path / "nowhere")),
        ("not a whole safetensors file", ("verify", lora, bad)),
        ("no adapted layer in common", ("verify", lora, other)),
        ("--tolerance must be at least 0, not nan", ("verify", lora, lora, "--tolerance", "nan")),
        ("must be 'TENSORGUIDE', not 'LORA'", ("export", lora, "-o", out)),
        ("without --dtype or --jobs, not 'gguf'", ("export", lora, "-o", out, "--to", "gguf")),
        ("must be one of float32", ("export", lora, "-o", out, "--dtype", "float8")),
        ("must be 'TENSORGUIDE', not 'LORA'", ("round", lora, "-o", out, "--params", 0.5)),
        ("given: none", ("round", lora, "-o", out)),
        ("method must be one of", ("plan", "--in", 4, "--out", 4, "--method", "magic")),
        ("has no layout", ("plan", "--in", 4, "--out", 4, "--method", "lora", "--layout", "io w")),
        ("unknown activation", ("plan", "--in", 4, "--out", 4, "--activation", "swoosh")),
    ]
    for message, command in cases:
        refused(message, *command, root=tmp_path)


def test_nonlinear_adapters_have_no_lora(tmp_path: Path) -> None:
    lora, guide = lora_folder(tmp_path / "lora"), tmp_path / "guide"
    assert tntune("convert", lora, "-o", guide, "--params", 0.5, "--activation", "gelu").code == 0
    refused("no LoRA computes its function", "export", guide, "-o", tmp_path / "out", root=tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert",),
        ("convert", "lora", "-o", "out", "--params", "half"),
        ("convert", "lora", "-o", "out", "--magic"),
        ("explode",),
        ("plan", "--in", "0", "--out", "4"),
        ("verify", "only-one"),
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ran = spawn(*arguments, cwd=tmp_path) if arguments == ("convert",) else tntune(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "Traceback" not in ran.err
    assert "Error" in ran.err
    assert not list(tmp_path.iterdir())


def test_overwriting_replaces_an_adapter_only_on_success(tmp_path: Path) -> None:
    lora, out = lora_folder(tmp_path / "lora"), tmp_path / "out"
    assert tntune("convert", lora, "-o", out, "--params", 0.5).code == 0
    refused("none fits", "convert", lora, "-o", out, "--max-params", 1, "--overwrite", root=tmp_path)
    before = listing(out)
    assert tntune("convert", lora, "-o", out, "--params", 0.2, "--overwrite").code == 0
    assert listing(out) != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora", "out"]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(28, "No space left")])
def test_what_the_system_refuses(tmp_path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["tntune.cli.convert"], "convert_lora", fail)
    lora = lora_folder(tmp_path / "lora")
    refused(error.strerror, "convert", lora, "-o", tmp_path / "out", "--params", 0.5, root=tmp_path)
