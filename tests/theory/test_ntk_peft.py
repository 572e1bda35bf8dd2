"""The kernel of a transformers model with our adapters."""

import pytest
import torch

from tests.support.tolerance import close
from tntune.adapters import adapt
from tntune.maps import Geometry, Site, build_map
from tntune.theory import last_token, loss, ntk, ntk_operator

pytestmark = pytest.mark.peft


@pytest.mark.statement("N3")
def test_gpt2_by_two_routes() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=13,
        bos_token_id=0,
        eos_token_id=0,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        attn_implementation="sdpa",
    )
    model = transformers.GPT2LMHeadModel(config)
    map = build_map("tensorguide", Geometry(8, 24, 2), start="random")
    sites = {f"transformer.h.{k}.attn.c_attn": Site(map) for k in range(2)}
    generator = torch.Generator().manual_seed(0)
    adapt(model, sites, generator=generator)
    model.double().eval()
    ids = torch.randint(13, (3, 6), generator=generator)
    batch = {"input_ids": ids, "labels": ids, "use_cache": False}
    own = [param for param in model.parameters() if param.requires_grad]
    for output_fn in (loss, last_token):
        out = output_fn(model, batch).flatten()
        grads = [torch.autograd.grad(entry, own, retain_graph=True) for entry in out]
        a = torch.stack([torch.cat([g.flatten() for g in grad]) for grad in grads])
        found = ntk(model, batch, output_fn)
        assert found.route == "vmap"
        assert close(found.values, a @ a.T)
        masked = ntk(model, {**batch, "attention_mask": torch.ones_like(ids)}, output_fn)
        assert masked.route.startswith(
            "loop, since vmap failed"
        )  # transformers branches on the mask's values
        assert close(masked.values, found.values)
    operator = ntk_operator(model, batch, loss)
    assert close(torch.from_numpy(operator @ torch.eye(3).numpy()), ntk(model, batch, loss).values)
