"""Law: a file that is more, or other, than plain LoRA is refused, naming the tensor and what it is."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.checkpoint.lora_files import lora_file, tensors
from tntune.checkpoint.lora_file import open_lora_file
from tntune.errors import CheckpointError, NumericalError

NAME = "lora_unet_mid_block_0_attn"
OTHER = "lora_unet_mid_block_0_other"

EXTRA: dict[str, tuple[str, Tensor, str]] = {
    "dora": (f"{NAME}.dora_scale", torch.ones(6, 1), "a DoRA magnitude rescales"),
    "dora of peft": (f"{NAME}.lora_magnitude_vector", torch.ones(6), "a DoRA magnitude rescales"),
    "loha": (f"{OTHER}.hada_w1_a", torch.ones(6, 2), "a LoHa factor"),
    "lokr": (f"{OTHER}.lokr_w2", torch.ones(6, 2), "a LoKr factor"),
    "tucker": (f"{NAME}.lora_mid.weight", torch.ones(4, 4, 3, 3), "a third factor"),
    "oft": (f"{OTHER}.oft_blocks", torch.ones(2, 3, 3), "an OFT factor"),
    "boft": (f"{OTHER}.boft_R", torch.ones(2, 3, 3), "an OFT factor"),
    "glora": (f"{OTHER}.a1.weight", torch.ones(2, 3), "a GLoRA factor"),
    "ia3": (f"{OTHER}.on_input", torch.ones(1), r"\(IA\)\^3"),
    "difference": (f"{OTHER}.diff", torch.ones(6, 2), "full training"),
    "difference of a bias": (f"{OTHER}.diff_b", torch.ones(6), "full training"),
    "norm": (f"{OTHER}.w_norm", torch.ones(6), "norm layer"),
    "scalar": (f"{NAME}.scalar", torch.ones(()), "a trained scalar"),
    "bias": (f"{NAME}.lora_up.bias", torch.ones(6), "a bias inside a LoRA layer"),
    "reshaped": (f"{NAME}.reshape_weight", torch.ones(2), "the base weight is reshaped"),
    "embedding": (f"{OTHER}.lora_embedding_A", torch.ones(2, 3), "LoRA of an embedding"),
    "alpha alone": (f"{OTHER}.alpha", torch.ones(()), "an alpha without factors"),
}


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize(("key", "value", "reason"), EXTRA.values(), ids=EXTRA)
def test_parts_of_other_methods(tmp_path: Path, key: str, value: Tensor, reason: str, carry: bool) -> None:
    path = lora_file(tmp_path / "a.safetensors", tensors("kohya unet", {}) | {key: value})
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: {re.escape(key)}: .*{reason}"):
        open_lora_file(path, carry=carry)


def test_unknown_tensors(tmp_path: Path) -> None:
    path = lora_file(tmp_path / "a.safetensors", tensors("unet", {}) | {"unet.mystery": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"unet\.mystery: unknown tensor; carry=True keeps it"):
        open_lora_file(path)


DOWN, UP = f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight"

CHANGED: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "no up": ({UP: None}, "its up is missing"),
    "no down": ({DOWN: None}, "its down is missing"),
    "ranks that differ": ({UP: torch.ones(6, 5)}, "has rank 5, down has 4"),
    "a vector": ({DOWN: torch.ones(4)}, r"shape \(4,\) must have 2 axes"),
    "kernel beside matrix": ({DOWN: torch.ones(4, 10, 3, 3)}, r"shape \(6, 4\) must have 4 axes"),
    "two kernels": (
        {DOWN: torch.ones(4, 10, 1, 1), UP: torch.ones(6, 4, 3, 3)},
        "must have a kernel of size 1",
    ),
    "empty": ({DOWN: torch.ones(0, 10), UP: torch.ones(6, 0)}, "is empty"),
    "integers": ({DOWN: torch.ones(4, 10, dtype=torch.int8)}, "is not a float"),
    "alpha 0": ({f"{NAME}.alpha": torch.zeros(())}, "finite number other than 0, not 0.0"),
    "alpha NaN": ({f"{NAME}.alpha": torch.tensor(torch.nan)}, "not nan"),
    "alpha infinite": ({f"{NAME}.alpha": torch.tensor(torch.inf)}, "not inf"),
    "two alphas": ({f"{NAME}.alpha": torch.ones(2)}, r"one real number, not \(2,\)"),
    "alpha true": ({f"{NAME}.alpha": torch.tensor(True)}, "one real number"),
    "two styles": ({"unet.x.lora_A.weight": torch.ones(2, 3)}, "kohya's style beside diffusers'"),
}


@pytest.mark.parametrize(("changes", "message"), CHANGED.values(), ids=CHANGED)
def test_tensors_that_do_not_fit(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    made = {
        key: value for key, value in {**tensors("kohya unet", {}), **changes}.items() if value is not None
    }
    with pytest.raises(CheckpointError, match=rf"a\.safetensors: .*{message}"):
        open_lora_file(lora_file(tmp_path / "a.safetensors", made))


def test_one_factor_under_two_names(tmp_path: Path) -> None:
    made = tensors("unet", {}) | {"unet.mid_block.0.ff.lora_A.weight": torch.ones(3, 6)}
    with pytest.raises(CheckpointError, match=r"is the same factor as unet\.mid_block\.0\.ff\.lora"):
        open_lora_file(lora_file(tmp_path / "a.safetensors", made))


def test_files_that_are_no_lora(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no LoRA factors"):
        open_lora_file(lora_file(tmp_path / "a.safetensors", {"weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"x\.lokr_w1: a LoKr factor"):
        open_lora_file(lora_file(tmp_path / "b.safetensors", {"x.lokr_w1": torch.ones(2)}))
    key = "base_model.model.fc.lora_A.weight"
    with pytest.raises(CheckpointError, match="is PEFT's; give its folder"):
        open_lora_file(lora_file(tmp_path / "c.safetensors", {key: torch.ones(2, 3)}))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        open_lora_file(tmp_path)
    (tmp_path / "d.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        open_lora_file(tmp_path / "d.safetensors")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    made = tensors("kohya unet", {}) | {DOWN: torch.full((4, 10), torch.nan)}
    lora = open_lora_file(lora_file(tmp_path / "a.safetensors", made))
    with pytest.raises(NumericalError, match=rf"{re.escape(DOWN)}: has entries that are NaN"):
        lora.load(next(site for site in lora.sites if site.name == NAME))


PLAIN = {"r": 4, "lora_alpha": 8, "rank_pattern": {"ff": 3}}

METADATA: dict[str, tuple[str, str]] = {
    "no json": ("{", "lora_adapter_metadata: not JSON"),
    "a list": ("[]", "must hold an object, not list"),
    "another component": ('{"transformer.r": 4}', "says nothing of 'unet'"),
    "another rank": (
        json.dumps({"unet.r": 8, "unet.lora_alpha": 8}),
        "says rank 8 of .*, its factors have 4",
    ),
    "dora": (json.dumps({f"unet.{k}": v for k, v in {**PLAIN, "use_dora": True}.items()}), "use_dora: DoRA"),
    "alpha 0": (json.dumps({f"unet.{k}": v for k, v in {**PLAIN, "lora_alpha": 0}.items()}), "other than 0"),
    "unknown": (
        json.dumps({f"unet.{k}": v for k, v in {**PLAIN, "magic": 1}.items()}),
        "magic: unknown option",
    ),
}


@pytest.mark.parametrize(("text", "message"), METADATA.values(), ids=METADATA)
def test_metadata_that_does_not_fit(tmp_path: Path, text: str, message: str) -> None:
    path = lora_file(tmp_path / "a.safetensors", tensors("peft unet", {}), lora_adapter_metadata=text)
    with pytest.raises(CheckpointError, match=message):
        open_lora_file(path)


def test_metadata_beside_alphas(tmp_path: Path) -> None:
    text = json.dumps({f"unet.{key}": value for key, value in PLAIN.items()})
    path = lora_file(tmp_path / "a.safetensors", tensors("unet", {"ff": 1.0}), lora_adapter_metadata=text)
    with pytest.raises(CheckpointError, match="stands beside alpha tensors"):
        open_lora_file(path)
