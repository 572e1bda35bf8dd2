"""Laws of the LoRA reader: what is stored is what is loaded, with alpha's scale, one module at a time."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoint.sample import KEY, TENSORS, lora_folder, lora_tensors, tensors
from tntune.checkpoint import open_lora
from tntune.checkpoint.scale import ScaleRule
from tntune.checkpoint.slices import Slices
from tntune.errors import CheckpointError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["safetensors", "zip bin", "legacy bin"])
def test_load_is_bit_for_bit(tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    folder = lora_folder(tmp_path / "lora", dtype=dtype)
    stored = lora_tensors(dtype=dtype)
    if kind != "safetensors":
        (folder / TENSORS).unlink()
        torch.save(stored, folder / "adapter_model.bin", _use_new_zipfile_serialization=kind == "zip bin")
    lora = open_lora(folder)
    assert [site.name for site in lora.sites] == ["h.0.fc", "h.1.fc"]
    assert lora.dtypes == (dtype,)
    assert lora.passthrough == ()
    for layer, site in enumerate(lora.sites):
        down, up, scale = lora.load(site)
        assert same(down, stored[KEY.format(layer, "A")])
        assert same(up, stored[KEY.format(layer, "B")])
        assert (site.in_features, site.out_features, site.width, scale) == (5, 3, 2, 2.0)


def test_loading_twice_gives_separate_tensors(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora")
    torch.save(load_file(folder / TENSORS), folder / "adapter_model.bin")
    (folder / TENSORS).unlink()
    lora = open_lora(folder)
    lora.load(lora.sites[0])[0].zero_()
    assert same(lora.load(lora.sites[0])[0], lora_tensors()[KEY.format(0, "A")])


def test_counts_and_size(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora")
    lora = open_lora(folder)
    assert lora.params == sum(value.numel() for value in lora_tensors().values())
    assert lora.num_bytes == (folder / TENSORS).stat().st_size


def test_load_reads_two_tensors_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = Slices.read

    def counted(self: Slices, key: str, dtype: torch.dtype) -> Tensor:
        read.append(key)
        return real(self, key, dtype)

    monkeypatch.setattr(Slices, "read", counted)
    lora = open_lora(lora_folder(tmp_path / "lora"))
    assert read == []
    lora.load(lora.sites[1])
    assert read == [KEY.format(1, "A"), KEY.format(1, "B")]


@pytest.mark.parametrize("rslora", [False, True])
def test_scale_of_patterns(rslora: bool) -> None:
    rule = ScaleRule(8, 16, {"h.0.fc": 2, "fc": 4}, {"^h.1": 3, r"h\.\d+\.fc": 6}, use_rslora=rslora)
    power = 0.5 if rslora else 1.0
    assert rule.of("h.0.fc") == (2, 6 / 2**power)
    assert rule.of("model.h.0.fc") == (2, 6 / 2**power)
    assert rule.of("h.1.fc") == (4, 6 / 4**power)
    assert rule.of("h.1") == (8, 3 / 8**power)
    assert rule.of("model.h.1") == (8, 16 / 8**power)
    assert rule.of("h.0.xfc") == (8, 16 / 8**power)


def test_rslora_divides_by_the_root(tmp_path: Path) -> None:
    lora = open_lora(lora_folder(tmp_path / "lora", use_rslora=True))
    assert lora.load(lora.sites[0])[2] == 4 / math.sqrt(2)


def test_one_adapter_name_in_all_keys_is_read(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora")
    named = {key.replace(".weight", ".default.weight"): value for key, value in lora_tensors().items()}
    save_file(named, folder / TENSORS)
    lora = open_lora(folder)
    assert [site.name for site in lora.sites] == ["h.0.fc", "h.1.fc"]
    assert same(lora.load(lora.sites[0])[0], lora_tensors()[KEY.format(0, "A")])


def test_zero_up_is_read(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora")
    tensors(**{"h/0/fc/lora_B/weight": torch.zeros(3, 2)})(folder)
    lora = open_lora(folder)
    assert not lora.load(lora.sites[0])[1].any()


def test_embeddings_and_saved_modules_pass_through(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora", modules_to_save=["score"], fan_in_fan_out=True)
    extra = {
        "wte/lora_embedding_A": torch.ones(2, 7),
        "wte/lora_embedding_B": torch.ones(5, 2),
        "score/weight": torch.arange(6),
        "embed_tokens/weight": torch.full((2, 2), math.inf),
    }
    tensors(**extra)(folder)
    lora = open_lora(folder)
    assert sorted(lora.passthrough) == sorted("base_model.model." + key.replace("/", ".") for key in extra)
    assert same(lora.tensor("base_model.model.score.weight"), extra["score/weight"])
    assert all(site.fan_in_fan_out for site in lora.sites)


def test_carry_keeps_what_is_outside_lora(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora", bias="all", trainable_token_indices=[1])
    tensors(**{"h/0/fc/bias": torch.ones(3), "e/token_adapter/trainable_tokens_delta": torch.ones(1, 5)})(
        folder
    )
    with pytest.raises(CheckpointError, match="carry=True"):
        open_lora(folder)
    lora = open_lora(folder, carry=True)
    assert [key.removeprefix("base_model.model.") for key in lora.passthrough] == [
        "e.token_adapter.trainable_tokens_delta",
        "h.0.fc.bias",
    ]


def test_unknown_tensor_name_is_refused(tmp_path: Path) -> None:
    lora = open_lora(lora_folder(tmp_path / "lora"))
    with pytest.raises(CheckpointError, match=f"{TENSORS}: nothing: no such tensor"):
        lora.tensor("nothing")


@pytest.mark.parametrize("targets", ["all-linear", None, r"h\.\d\.fc", ["h.0.fc", "h.1.fc"], ["fc"]])
def test_forms_of_target_modules(tmp_path: Path, targets: object) -> None:
    assert len(open_lora(lora_folder(tmp_path / "lora", target_modules=targets)).sites) == 2
