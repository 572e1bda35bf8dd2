"""Law: a LoRA file that is written has the updates it was given, and what was read is written bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.checkpoint.lora_files import ALPHAS, PLACES, SHAPES, deltas, lora_file, tensors, texts
from tests.checkpoint.test_lora_file import metadata
from tests.support.tolerance import close
from tntune.checkpoint.lora_file import LoraFile, open_lora_file
from tntune.checkpoint.lora_file_writer import write_lora_file
from tntune.checkpoint.lora_writer import LoraEntry
from tntune.errors import DtypeError, ModeError, NumericalError, OutputError, SpecError


def entries(lora: LoraFile) -> list[LoraEntry]:
    return [LoraEntry(site.name, *lora.load(site)) for site in lora.sites]


def other_entries(lora: LoraFile, widths: list[int], dtype: torch.dtype = torch.float32) -> list[LoraEntry]:
    """Fresh factors of these widths and a scale that is no power of 2."""
    draw = torch.Generator().manual_seed(1)
    return [
        LoraEntry(
            site.name,
            torch.randn(width, site.in_features, generator=draw).to(dtype),
            torch.randn(site.out_features, width, generator=draw).to(dtype),
            0.7,
        )
        for site, width in zip(lora.sites, widths, strict=True)
    ]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) and value.dtype == second[key].dtype for key, value in first.items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alphas", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("style", PLACES)
def test_what_was_read_is_written(
    tmp_path: Path, style: str, alphas: dict[str, float], dtype: torch.dtype
) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    made = tensors(style, alphas, dtype=dtype) | {"extra": torch.arange(3)}
    lora = open_lora_file(lora_file(one, made, author="me"), carry=True)
    write_lora_file(two, entries(lora), like=lora)
    assert same(load_file(one), load_file(two))
    assert texts(two) == {"format": "pt", "author": "me"}
    (tmp_path / "plain").touch()
    assert two.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_metadata_of_diffusers_is_written_as_read(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    lora = open_lora_file(lora_file(one, tensors("peft unet", {}), lora_adapter_metadata=metadata()))
    write_lora_file(two, entries(lora), like=lora)
    assert same(load_file(one), load_file(two))
    assert texts(one) == texts(two)


@pytest.mark.parametrize("widths", [[2, 2, 2], [1, 3, 2], [5, 1, 4]], ids=str)
@pytest.mark.parametrize("alphas", ALPHAS.values(), ids=ALPHAS)
@pytest.mark.parametrize("style", PLACES)
def test_updates_are_those_that_were_given(
    tmp_path: Path, style: str, alphas: dict[str, float], widths: list[int]
) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    lora = open_lora_file(lora_file(one, tensors(style, alphas)))
    given = other_entries(lora, widths)
    write_lora_file(two, given, like=lora)
    found, reread = deltas(two), open_lora_file(two)
    assert [site.width for site in reread.sites] == widths
    for entry in given:
        assert close(found[entry.name].flatten(1).float(), 0.7 * entry.up.double() @ entry.down.double())
    raw = load_file(one)
    assert raw.keys() - load_file(two).keys() == set()
    assert all(value.shape[2:] == raw[key].shape[2:] for key, value in load_file(two).items() if key in raw)


@pytest.mark.parametrize("alphas", ALPHAS.values(), ids=ALPHAS)
def test_kohyas_files_get_one_alpha(tmp_path: Path, alphas: dict[str, float]) -> None:
    lora = open_lora_file(lora_file(tmp_path / "one.safetensors", tensors("kohya unet", alphas)))
    write_lora_file(tmp_path / "two.safetensors", other_entries(lora, [1, 3, 2]), like=lora)
    found = [float(value) for key, value in load_file(tmp_path / "two.safetensors").items() if "alpha" in key]
    assert found == [2.0 if alphas == ALPHAS["one alpha"] else 3.0] * len(SHAPES)


@pytest.mark.parametrize("style", ["peft unet", "peft transformer", "unet", "text"])
def test_diffusers_files_get_scale_1(tmp_path: Path, style: str) -> None:
    """Also for readers that know neither alphas nor metadata; several widths come with metadata."""
    lora = open_lora_file(lora_file(tmp_path / "one.safetensors", tensors(style, {})))
    for widths, stated in (([2, 2, 2], False), ([1, 3, 2], True)):
        write_lora_file(tmp_path / "two.safetensors", other_entries(lora, widths), like=lora, overwrite=True)
        reread = open_lora_file(tmp_path / "two.safetensors")
        assert [site.scale for site in reread.sites] == [1.0, 1.0, 1.0]
        assert ("lora_adapter_metadata" in reread.metadata) == stated


def test_components_unknown_to_diffusers_get_no_metadata(tmp_path: Path) -> None:
    made = {key.replace("unet", "diffusion_model"): value for key, value in tensors("peft unet", {}).items()}
    lora = open_lora_file(lora_file(tmp_path / "one.safetensors", made))
    write_lora_file(tmp_path / "two.safetensors", other_entries(lora, [1, 3, 2]), like=lora)
    assert texts(tmp_path / "two.safetensors") == {"format": "pt"}


def test_metadata_of_diffusers_is_brought_up_to_date(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    stated = metadata(use_rslora=True, lora_dropout=0.1)
    lora = open_lora_file(lora_file(one, tensors("peft unet", {}), lora_adapter_metadata=stated))
    given = other_entries(lora, [1, 3, 2])
    write_lora_file(two, given, like=lora)
    options = json.loads(texts(two)["lora_adapter_metadata"])
    assert (options["unet.r"], options["unet.lora_alpha"], options["unet.lora_dropout"]) == (3, 3, 0.1)
    found = deltas(two)
    assert all(close(found[e.name].flatten(1).float(), 0.7 * e.up.double() @ e.down.double()) for e in given)


def test_metadata_of_kohya_is_brought_up_to_date(tmp_path: Path) -> None:
    told = {"ss_network_dim": "4", "ss_network_alpha": "1", "sshs_model_hash": "f00", "ss_seed": "7"}
    lora = open_lora_file(lora_file(tmp_path / "one.safetensors", tensors("kohya unet", {}), **told))
    for widths, dim in (([2, 2, 2], "2"), ([1, 3, 2], "Dynamic")):
        path = tmp_path / f"{dim}.safetensors"
        write_lora_file(path, other_entries(lora, widths), like=lora, notes={"by": "tntune"})
        assert texts(path) == {
            "format": "pt",
            "ss_network_dim": dim,
            "ss_network_alpha": str(max(widths)),
            "ss_seed": "7",
            "by": "tntune",
        }


def test_an_alpha_that_its_dtype_cannot_hold_is_stored_wider(tmp_path: Path) -> None:
    """bfloat16 has no 299."""
    shapes = {"down": (300, 4), "up": (5, 300)}
    made = {f"lora_unet_x.lora_{side}.weight": torch.ones(shape).bfloat16() for side, shape in shapes.items()}
    made["lora_unet_x.alpha"] = torch.tensor(1.0).bfloat16()
    made |= {key.replace("_x", "_y"): value.clone() for key, value in made.items() if "alpha" not in key}
    lora = open_lora_file(lora_file(tmp_path / "one.safetensors", made))
    ones = [torch.ones(shape).bfloat16() for shape in ((299, 4), (5, 299))]
    given = [LoraEntry(site.name, *ones) for site in lora.sites]
    write_lora_file(tmp_path / "two.safetensors", given, like=lora)
    alpha = load_file(tmp_path / "two.safetensors")["lora_unet_x.alpha"]
    assert (float(alpha), alpha.dtype) == (299.0, torch.float32)


def test_modules_without_entry_are_left_out(tmp_path: Path) -> None:
    lora = open_lora_file(lora_file(tmp_path / "one.safetensors", tensors("kohya unet", ALPHAS["one alpha"])))
    write_lora_file(tmp_path / "two.safetensors", entries(lora)[:1], like=lora)
    assert len(load_file(tmp_path / "two.safetensors")) == 3
    assert [site.scale for site in open_lora_file(tmp_path / "two.safetensors").sites] == [0.5]


def test_refusals_change_nothing(tmp_path: Path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    lora = open_lora_file(lora_file(one, tensors("kohya unet", {})))
    first, *rest = entries(lora)
    name, down, up = first.name, first.down, first.up
    for given, error, message in (
        ([], SpecError, "there is no LoRA entry"),
        ([first, first], SpecError, "two entries have this name"),
        ([LoraEntry("x", down, up)], SpecError, "x: .* has no such module"),
        ([LoraEntry(name, down, up[:, :1])], ModeError, r"must be \(width, 10\) and \(6, width\)"),
        ([LoraEntry(name, down[:, 1:], up)], ModeError, r"must be \(width, 10\)"),
        ([LoraEntry(name, down[:0], up[:, :0])], ModeError, r"must be \(width, 10\)"),
        ([LoraEntry(name, down.int(), up)], DtypeError, "is not a float"),
        ([LoraEntry(name, down, up, 1e39)], NumericalError, "NaN or infinite"),
    ):
        with pytest.raises(error, match=message):
            write_lora_file(two, given, like=lora)
    with pytest.raises(OutputError, match="exists already"):
        write_lora_file(one, [first, *rest], like=lora)
    with pytest.raises(OutputError, match="cannot be written"):
        write_lora_file(tmp_path / "nowhere" / "x.safetensors", [first], like=lora)
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    """The library writes them in an order of its own, another in each process and for each dictionary."""
    texts = {f"ss_note_{i}": str(i) for i in range(20)}
    contents = set()
    for turn, items in enumerate((list(texts.items()), list(texts.items())[::-1])):
        source = lora_file(tmp_path / "one.safetensors", tensors("kohya unet", {}), **dict(items))
        opened = open_lora_file(source)
        write_lora_file(tmp_path / f"{turn}.safetensors", entries(opened), like=opened, overwrite=True)
        contents.add((tmp_path / f"{turn}.safetensors").read_bytes())
    assert len(contents) == 1
