"""Law: stock PEFT loads what was resized, with the updates that were written."""

from pathlib import Path

import pytest
import torch

from tests.convert.sample import RANKS, Model, lora_deltas, lora_folder
from tests.support.tolerance import close
from tntune.convert.resize import resize_lora
from tntune.convert.resize_settings import ResizeSettings

pytest.importorskip("peft")

from peft import PeftModel

from tests.checkpoint.models import deltas

pytestmark = pytest.mark.peft


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_peft_has_the_updates(tmp_path: Path, dtype: torch.dtype) -> None:
    lora = lora_folder(tmp_path / "lora", dtype=dtype)
    report = resize_lora(lora, tmp_path / "out", ResizeSettings(tolerance=0.3, uniform=True))
    assert len({layer.rank_after for layer in report.layers}) > 1
    model = PeftModel.from_pretrained(Model().to(dtype), tmp_path / "out", autocast_adapter_dtype=False)
    found, expected = dict(deltas(model)), lora_deltas(tmp_path / "out")
    assert found.keys() == expected.keys() == RANKS.keys()
    assert all(close(delta, torch.from_numpy(expected[name])) for name, delta in found.items())
