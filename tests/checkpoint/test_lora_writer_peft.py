"""Law: stock PEFT loads what tntune writes, and its weight updates are the ones that were written."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tolerance import close
from tntune.checkpoint import LoraEntry, open_lora, write_lora

pytest.importorskip("peft")

from peft import LoraConfig, PeftModel, get_peft_model

from tests.checkpoint.models import deltas, stir, tower

pytestmark = [
    pytest.mark.peft,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
    pytest.mark.filterwarnings("ignore:Could not identify embedding"),
]

SHAPES = {
    "fc": (6, 6),
    "h.0.fc": (6, 10),
    "h.1.fc": (6, 10),
    "deep.h.0.fc": (6, 10),
    "h.0.proj": (10, 6),
    "deep.h.0.proj": (10, 6),
}


def entries(widths: list[int], dtype: torch.dtype) -> list[LoraEntry]:
    draw = torch.Generator().manual_seed(3)
    return [
        LoraEntry(
            name,
            torch.randn(width, sizes[0], generator=draw).to(dtype),
            torch.randn(sizes[1], width, generator=draw).to(dtype),
            scale=0.3,
        )
        for width, (name, sizes) in zip(widths, SHAPES.items(), strict=True)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("widths", [[4] * 6, [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]], ids=str)
def test_peft_has_the_updates(tmp_path: Path, widths: list[int], dtype: torch.dtype) -> None:
    written = entries(widths, dtype)
    write_lora(tmp_path / "lora", written, base_config={"fan_in_fan_out": False})
    model = PeftModel.from_pretrained(tower(dtype=dtype), tmp_path / "lora", autocast_adapter_dtype=False)
    found = dict(deltas(model))
    assert found.keys() == SHAPES.keys()
    for entry in written:
        assert found[entry.name].dtype == dtype
        assert close(found[entry.name], 0.3 * entry.up.double() @ entry.down.double())


SOURCES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["fc", "proj"]},
    "rslora and patterns": {
        "target_modules": ["fc", "proj"],
        "use_rslora": True,
        "rank_pattern": {"h.0.fc": 2},
        "alpha_pattern": {"proj": 3},
    },
    "embedding and head": {
        "target_modules": ["fc", "emb"],
        "modules_to_save": ["score"],
        "use_rslora": True,
        "rank_pattern": {"emb": 3},
    },
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_rewriting_leaves_the_model_as_it_was(tmp_path: Path, source: dict[str, Any]) -> None:
    model = get_peft_model(tower(), LoraConfig(r=4, lora_alpha=10, **source))
    stir(model)
    if "modules_to_save" in source:
        model.base_model.model.score.modules_to_save["default"].weight.data.fill_(0.25)
    model.save_pretrained(tmp_path / "source")
    lora = open_lora(tmp_path / "source")
    write_lora(
        tmp_path / "written",
        (LoraEntry(site.name, *lora.load(site)) for site in lora.sites),
        base_config=lora.config,
        passthrough={key: lora.tensor(key) for key in lora.passthrough},
    )
    tokens = torch.arange(7)
    reloaded = PeftModel.from_pretrained(tower(), tmp_path / "written")
    assert close(reloaded(tokens), model.eval()(tokens))
    assert not torch.allclose(tower()(tokens), model(tokens))


def test_a_path_that_ends_like_an_adapted_one_gets_a_zero_adapter(tmp_path: Path) -> None:
    write_lora(tmp_path / "lora", entries([2] * 6, torch.float32)[1:2], base_config={})
    with pytest.warns(UserWarning, match=r"missing adapter keys.*deep\.h\.0\.fc"):
        model = PeftModel.from_pretrained(tower(), tmp_path / "lora")
    found = dict(deltas(model))
    assert found["h.0.fc"].any()
    assert not found["deep.h.0.fc"].any()
