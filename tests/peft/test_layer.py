"""The layer: ``base(x) + Σ scale * up σ(down x)``, in the dtypes it was asked for, or a refusal by name."""

import pytest
import torch

pytest.importorskip("peft")

from peft import get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.nn import functional

from tests.peft.models import MARKS, TOKENS, VARIANTS, adapted, cores, decoder, gpt2, inputs, logits, tower
from tests.support.tolerance import close
from tntune.errors import TargetError, TargetTypeError
from tntune.maps import LoRA, TensorGuide, TTLoRA
from tntune.peft import TensorGuideConfig, TensorGuideLayer

pytestmark = MARKS

HALF = (torch.float16, torch.bfloat16)
TARGETS = ["up", "down", "fc"]
SIGMAS = {"identity": lambda x: x, "relu": functional.relu, "gelu": functional.gelu}


def layers(model: nn.Module) -> dict[str, TensorGuideLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, TensorGuideLayer)}


def by_formula(layer: TensorGuideLayer, x: Tensor, *, scale: float) -> Tensor:
    """The output in float64, from the tensors of the map and the weights of the base alone."""
    generator, site = layer.generator("default"), layer.tensorguide_site["default"][1]
    wide = {name: tensor.double() for name, tensor in generator.tensors().items()}
    params = {name: wide[name] for name in generator.map.param_shapes}
    down, up = generator.map.factors(params, {name: wide[name] for name in generator.map.fixed_shapes})
    base = layer.get_base_layer()
    weight = base.weight.double() if isinstance(base, nn.Linear) else base.weight.double().T
    hidden = SIGMAS[layer.activation["default"]](x.double() @ down[site].T)
    return x.double() @ weight.T + base.bias.double() + scale * hidden @ up[site].T


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("training", [True, False])
def test_the_output_is_the_formula(variant: str, sigma: str, training: bool) -> None:
    config = VARIANTS[variant](
        r=4, ranks=3, alpha=6, target_modules=TARGETS, activation=sigma, init_weights=False, latent="fixed"
    )
    model = adapted(tower(torch.float64), config).train(training)
    for layer in layers(model).values():
        x = torch.randn(3, 2, layer.in_features, dtype=torch.float64)
        assert close(layer(x), by_formula(layer, x, scale=1.5))


@pytest.mark.parametrize(
    ("method", "kind"), [("tensorguide", TensorGuide), ("tt_lora", TTLoRA), ("lora", LoRA)]
)
def test_every_method_is_the_same_layer(method: str, kind: type) -> None:
    config = TensorGuideConfig(r=4, alpha=2, target_modules=TARGETS, method=method, init_weights=False)
    model = adapted(tower(torch.float64), config)
    for layer in layers(model).values():
        assert type(layer.generator("default").map) is kind
        x = torch.randn(3, layer.in_features, dtype=torch.float64)
        assert close(layer(x), by_formula(layer, x, scale=0.5))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("latent", ["none", "fixed", "mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_fresh_adapter_changes_nothing_and_learns(variant: str, latent: str, dtype: torch.dtype) -> None:
    sigma = "identity" if latent == "mean" else "gelu"
    model = decoder(variant, dtype=dtype, init_weights=True, latent=latent, activation=sigma)
    assert torch.equal(logits(model), logits(gpt2(dtype)))
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    assert any(p.grad.any() for p in cores(model).values())


def test_every_core_has_a_gradient_after_one_step() -> None:
    model = decoder("shared", init_weights=True).train()
    optimizer = torch.optim.SGD(cores(model).values(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
    assert all(p.grad.any() for p in cores(model).values())


def test_dropout_acts_in_training_only() -> None:
    fields = {"r": 4, "ranks": 3, "target_modules": TARGETS, "init_weights": False}
    dropping = adapted(tower(), TensorGuideConfig(dropout=0.5, **fields))
    plain = adapted(tower(), TensorGuideConfig(**fields))
    x = inputs()
    assert torch.equal(dropping(x), plain(x))
    assert not torch.allclose(dropping.train()(x), plain.train()(x))


@pytest.mark.parametrize("variant", VARIANTS)
def test_scales_are_multiplied_divided_and_restored(variant: str) -> None:
    model = decoder(variant)
    before = logits(model)
    for layer in layers(model).values():
        layer.scale_layer(3.0)
        assert layer.scaling == {"default": 6.0}
        layer.unscale_layer(2.0)
        assert layer.scaling == {"default": 3.0}
        layer.set_scale("default", 0.0)
        assert layer.scaling == {"default": 0.0}
        layer.set_scale("absent", 5.0)
    assert torch.equal(logits(model), logits(gpt2()))
    for layer in layers(model).values():
        layer.unscale_layer()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", HALF)
def test_on_a_half_precision_base_cores_are_drawn_and_kept_in_float32(
    variant: str, dtype: torch.dtype
) -> None:
    half, full = (decoder(variant, dtype=d, latent="fixed") for d in (dtype, torch.float32))
    for ours, reference in zip(cores(half).values(), cores(full).values(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, reference)
    for name, z in latents(half).items():
        assert torch.equal(z, latents(full)[name])
    assert logits(half).dtype == dtype
    assert close(logits(half), logits(full))


def latents(model: nn.Module) -> dict[str, Tensor]:
    found = {name: tensor for name, tensor in model.named_buffers() if name.endswith("tt_latent")}
    assert found
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", HALF)
def test_a_latent_is_never_rounded(variant: str, dtype: torch.dtype) -> None:
    config = VARIANTS[variant](r=4, ranks=3, target_modules=["c_attn"], latent="fixed")
    exact = latents(adapted(gpt2(), config))
    model = adapted(gpt2(dtype), config, autocast_adapter_dtype=False)
    assert {p.dtype for p in cores(model).values()} == {dtype}
    for moved in (model, model.to(dtype), model.float()):
        assert all(torch.equal(z, exact[name]) for name, z in latents(moved).items())


def test_a_float64_base_has_float64_cores() -> None:
    model = decoder("per layer", dtype=torch.float64)
    assert {p.dtype for p in cores(model).values()} == {torch.float64}


@pytest.mark.parametrize("variant", VARIANTS)
def test_autocast_leaves_the_cores_alone(variant: str) -> None:
    model = decoder(variant).train()
    wanted = model(input_ids=TOKENS).logits.detach()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(input_ids=TOKENS, labels=TOKENS)
        down, up = next(iter(layers(model).values())).chains("default")
    assert {matrix.dtype for matrix in (*down, *up)} == {torch.float32}
    assert close(out.logits.bfloat16(), wanted)
    out.loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in cores(model).values())


def test_inputs_are_cast_unless_peft_is_told_otherwise() -> None:
    layer = layers(adapted(tower(), TensorGuideConfig(target_modules=["fc"], init_weights=False)))
    (fc,) = layer.values()
    x, seen = inputs(torch.bfloat16), []
    fc.tensorguide_dropout["default"].register_forward_hook(lambda *call: seen.append(call[1][0].dtype))
    fc.train()
    fc._adapted("default", x)
    with disable_input_dtype_casting(fc):
        fc._adapted("default", x)
    assert seen == [torch.float32, torch.bfloat16]


class Odd(nn.Module):
    """One module of each kind that a name may hit."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.emb = nn.Embedding(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pytest.mark.parametrize("cls", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize(("name", "kind"), [("conv", "Conv2d"), ("emb", "Embedding")])
def test_other_layers_are_refused_by_name(cls: type[TensorGuideConfig], name: str, kind: str) -> None:
    with pytest.raises(TargetTypeError, match=rf"Target module {name} \({kind}\) is not supported"):
        get_peft_model(Odd(), cls(target_modules=["linear", name]))


@pytest.mark.parametrize("cls", VARIANTS.values(), ids=VARIANTS)
def test_the_output_of_attention_is_refused_by_name(cls: type[TensorGuideConfig]) -> None:
    with pytest.raises(TargetError, match=r"attention.out_proj: nn.MultiheadAttention never calls"):
        get_peft_model(Odd(), cls(target_modules=["out_proj"]))


@pytest.mark.parametrize("cls", VARIANTS.values(), ids=VARIANTS)
def test_all_linear_skips_the_output_of_attention(cls: type[TensorGuideConfig]) -> None:
    with pytest.warns(UserWarning, match=r"not adapted, for nn.MultiheadAttention never calls .*out_proj"):
        model = get_peft_model(Odd(), cls(target_modules="all-linear"))
    assert list(layers(model)) == ["base_model.model.linear"]


def test_the_layout_of_a_weight_is_read_off_the_layer() -> None:
    config = TensorGuideConfig(r=2, ranks=2, target_modules=["fc", "down"], fan_in_fan_out=True)
    with pytest.warns(UserWarning, match=r"fc is a Linear; fan_in_fan_out=True is not used for it"):
        model = get_peft_model(tower(), config)
    down = model.base_model.model.blocks[0]["down"]
    assert down.get_delta_weight("default").shape == down.weight.shape == (10, 6)
