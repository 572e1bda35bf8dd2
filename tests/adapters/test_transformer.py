"""Layers that torch's own modules read past: the adapter takes effect, or is refused by name."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.tolerance import close
from tntune.adapters import (
    AdapterSpec,
    adapt,
    adapted_layers,
    load_adapters,
    merge,
    save_adapters,
    set_enabled,
    unload,
)
from tntune.errors import TargetError

RANDOM = AdapterSpec(("linear1", "linear2"), width=3, start="random")
PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


def encoder(layers: int = 2) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers)


def both(model: nn.Module, x: Tensor, **options: Tensor) -> tuple[Tensor, Tensor]:
    """The output with gradients, which torch computes layer by layer, and without, where it may fuse."""
    slow = model(x.requires_grad_(), **options)
    with torch.no_grad():
        return slow.detach(), model(x, **options)


@pytest.fixture
def x() -> Tensor:
    """Two sequences of five tokens."""
    return torch.randn(2, 5, 8)


def test_torch_fuses_the_plain_layer(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the next tests guard against: a fused kernel that takes weights and calls no linear layer."""
    monkeypatch.setattr(nn.Linear, "forward", _never)
    with torch.no_grad():
        encoder().eval().requires_grad_(False).layers[0](x)
    monkeypatch.undo()


def _never(*arguments: object) -> None:
    raise AssertionError("called")


@pytest.mark.parametrize("training", [True, False])
def test_the_adapter_takes_effect_in_an_encoder_layer(x: Tensor, training: bool) -> None:
    layer = encoder().layers[0]
    plain = layer.eval()(x).detach()
    adapt(layer, RANDOM).train(training)
    slow, fast = both(layer, x)
    assert close(fast, slow)
    assert not torch.allclose(fast, plain)
    set_enabled(layer, False)
    assert close(both(layer, x)[1], plain)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("activation", ["identity", "gelu"])
def test_the_adapter_takes_effect_in_an_encoder_with_padding(x: Tensor, activation: str) -> None:
    """Without gradients an encoder turns padded batches into nested tensors, which adapters take as well."""
    model = encoder().eval()
    plain = both(model, x, src_key_padding_mask=PADDED)[1]
    adapt(model, AdapterSpec(RANDOM.targets, width=3, start="random", activation=activation))
    slow, fast = both(model, x, src_key_padding_mask=PADDED)
    assert close(fast[~PADDED], slow[~PADDED])
    assert not torch.allclose(fast[~PADDED], plain[~PADDED])


def test_merged_or_unloaded_the_encoder_is_the_same(x: Tensor) -> None:
    model = adapt(encoder().eval(), RANDOM)
    wanted, _ = both(model, x)
    merge(model)
    assert close(both(model, x)[1], wanted)
    unload(model)
    assert close(both(model, x)[1], wanted)


def test_all_linear_leaves_the_output_of_attention_alone() -> None:
    model = adapt(encoder(), AdapterSpec(width=2))
    assert [name for name, _ in adapted_layers(model)] == [
        f"layers.{k}.linear{i}" for k in (0, 1) for i in (1, 2)
    ]
    with pytest.raises(TargetError, match=r"layers.0.self_attn.out_proj: nn.MultiheadAttention never calls"):
        adapt(encoder(), AdapterSpec(("out_proj",)))


def test_attention_beside_adapters_is_untouched() -> None:
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(8, 2, batch_first=True), "out": nn.Linear(8, 8)}
    )
    x = torch.randn(2, 5, 8)
    wanted = model["attention"](x, x, x)[0]
    adapt(model, AdapterSpec(width=2, start="random"))
    assert close(model["attention"](x, x, x)[0], wanted)


@pytest.mark.peft
def test_a_language_model(tmp_path: Path) -> None:
    """A tiny GPT-2: transposed layers, a head tied to the embedding, a cache of keys and values."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, vocab_size=23)
    model, other = (transformers.GPT2LMHeadModel(config).eval() for _ in range(2))
    other.load_state_dict(model.state_dict())
    tokens = torch.arange(10).reshape(2, 5)
    wanted = model(tokens).logits
    adapt(model, AdapterSpec(width=3))
    assert len(list(adapted_layers(model))) == 2 * 4 + 1
    assert torch.equal(model(tokens).logits, wanted)
    unload(model)
    adapt(model, AdapterSpec(width=3, start="random"))
    written = model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0)
    merge(model)
    assert torch.equal(model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0), written)
    save_adapters(model, tmp_path / "adapter")
    load_adapters(other, tmp_path / "adapter")
    assert close(other(tokens).logits, model(tokens).logits)
    assert not torch.allclose(other(tokens).logits, wanted)
    assert torch.equal(model.transformer.wte.weight, other.transformer.wte.weight)


def test_a_decoder_layer(x: Tensor) -> None:
    layer = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    plain = layer(x, x).detach()
    adapt(layer, RANDOM)
    with torch.no_grad():
        fast = layer(x, x)
    assert close(fast, layer(x, x))
    assert not torch.allclose(fast, plain)
