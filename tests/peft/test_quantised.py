"""Quantised bases: the adapter stays in full precision beside them, and merging costs one quantisation."""

import warnings

import pytest
import torch

pytest.importorskip("peft")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    bitsandbytes = pytest.importorskip("bitsandbytes")

from peft import PeftModel
from torch import nn

from tests.peft.models import MARKS, VARIANTS, adapted, cores
from tests.support.tolerance import close
from tntune.peft import TensorGuideLayer

pytestmark = [*MARKS, pytest.mark.filterwarnings("ignore")]  # of the kernels, which are many

KINDS = {
    "8 bit": lambda: bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False),
    "4 bit": lambda: bitsandbytes.nn.Linear4bit(64, 64, compute_dtype=torch.float32, quant_type="nf4"),
}


def drawn() -> nn.Linear:
    """The layer before quantisation, the same at each call."""
    layer, draw = nn.Linear(64, 64), torch.Generator().manual_seed(3)
    for value in layer.parameters():
        value.data = torch.randn(value.shape, generator=draw) / 8
    return layer


def base(kind: str) -> nn.Module:
    """One quantised layer, in evaluation, which its kernels tell from training."""
    layer = KINDS[kind]()
    layer.load_state_dict(drawn().state_dict())
    return nn.Sequential(layer.to("cpu")).eval()


def model(variant: str, kind: str, sigma: str = "identity") -> PeftModel:
    config = VARIANTS[variant](r=4, ranks=4, target_modules=["0"], init_weights=False, activation=sigma)
    made = adapted(base(kind), config)
    made.base_model.model.is_loaded_in_8bit = kind == "8 bit"
    made.base_model.model.is_loaded_in_4bit = kind == "4 bit"
    return made


def x() -> torch.Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma", ["identity", "relu"])
def test_the_output_is_that_of_the_base_and_the_formula(variant: str, kind: str, sigma: str) -> None:
    adapted_model = model(variant, kind, sigma)
    layer = adapted_model.base_model.model[0]
    assert isinstance(layer, TensorGuideLayer)
    assert "quantization_backend=" in repr(layer)
    assert {p.dtype for p in cores(adapted_model).values()} == {torch.float32}
    (down,), (up,) = layer.chains("default")
    hidden = x() @ down.T
    added = (torch.relu(hidden) if sigma == "relu" else hidden) @ up.T
    assert close(adapted_model(x()), base(kind)(x()) + added)
    adapted_model(x()).square().sum().backward()
    assert all(p.grad.any() for p in cores(adapted_model).values())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_merging_costs_about_one_quantisation(variant: str, kind: str) -> None:
    """In training: for evaluation bitsandbytes repacks 4 bits on some CPUs, and PEFT does not unpack them."""
    adapted_model = model(variant, kind).requires_grad_(False).train()
    wanted = adapted_model(x())
    cost = (base(kind).train()(x()) - drawn()(x())).detach().norm()
    adapted_model.merge_adapter()
    assert 0 < (adapted_model(x()) - wanted).norm() < 2 * cost
    adapted_model.unmerge_adapter()
    assert (adapted_model(x()) - wanted).norm() < 3 * cost
