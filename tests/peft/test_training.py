"""Training: checkpointing, compilation and transformers' own tools change nothing in what is learned."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

from tests.peft.models import MARKS, TOKENS, VARIANTS, adapted, cores, decoder, gpt2, inputs, logits, tower
from tests.support.tolerance import close
from tntune.peft import TensorGuideConfig

pytestmark = MARKS

FIELDS = {"r": 4, "ranks": 3, "target_modules": ["c_attn", "c_fc"], "init_weights": False}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    return {name: p.grad.clone() for name, p in cores(model).items()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("sigma", ["identity", "relu"])
def test_checkpointing_keeps_the_gradients(variant: str, reentrant: bool, sigma: str) -> None:
    model = decoder(variant, dtype=torch.float64, activation=sigma, latent="fixed")
    wanted = gradients(model)
    logits(model.eval())  # what evaluation keeps must not come into the recomputation
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = gradients(model)
    assert found.keys() == wanted.keys()
    assert all(close(found[name], wanted[name]) for name in wanted)
    assert all(gradient.any() for gradient in wanted.values())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_draws_a_latent_once(reentrant: bool) -> None:
    """The recomputation sees the z of the first pass: else gradients are of another function."""
    model, draws = decoder("per layer", dtype=torch.float64, latent="resample"), []
    for kind in (None, reentrant):
        if kind is not None:
            model.gradient_checkpointing_enable({"use_reentrant": kind})
            model.enable_input_require_grads()
        torch.manual_seed(7)
        draws.append(gradients(model))
    assert all(close(draws[1][name], draws[0][name]) for name in draws[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_compiles_in_one_graph(variant: str, training: bool) -> None:
    config = VARIANTS[variant](r=4, ranks=3, target_modules=["fc", "up"], init_weights=False, dropout=0.1)
    layer = adapted(tower(torch.float64), config).base_model.model.fc
    x = inputs(torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    layer.train(training)
    torch.manual_seed(0)
    wanted = layer(x)
    for _ in range(2):
        torch.manual_seed(0)
        assert close(compiled(x), wanted)
    compiled(x).square().sum().backward()
    assert all(p.grad.any() for p in layer.parameters() if p.requires_grad)


def test_transformers_adds_saves_loads_and_deletes_an_adapter(tmp_path: Path) -> None:
    model = gpt2()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.add_adapter(TensorGuideConfig(**FIELDS), adapter_name="first")
    wanted = logits(model)
    assert torch.equal(wanted, logits(adapted(gpt2(), TensorGuideConfig(**FIELDS))))
    model.save_pretrained(tmp_path / "adapter")
    loaded = gpt2()
    loaded.load_adapter(str(tmp_path / "adapter"), adapter_name="other")
    assert torch.equal(logits(loaded), wanted)
    loaded.disable_adapters()
    assert torch.equal(logits(loaded), logits(gpt2()))
    loaded.enable_adapters()
    loaded.delete_adapter("other")
    assert not any("tensorguide_gen.other" in name for name in loaded.state_dict())
    assert torch.equal(logits(PeftModel.from_pretrained(gpt2(), tmp_path / "adapter")), wanted)


def test_transformers_loads_base_and_adapter_at_once(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "base")
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    model = adapted(base, TensorGuideConfig(task_type="CAUSAL_LM", **FIELDS))
    model.save_pretrained(tmp_path / "adapter")
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded), logits(model))


class Texts(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Sixteen short texts with a pattern."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        tokens = (torch.arange(8) * (1 + i % 3) + i) % 11
        return {"input_ids": tokens, "labels": tokens}


def trainer(variant: str, folder: Path, steps: int) -> Trainer:
    torch.manual_seed(2)
    model = get_peft_model(gpt2(), VARIANTS[variant](r=4, ranks=3, target_modules=["c_attn", "c_fc"]))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        metric_for_best_model="eval_loss",
        load_best_model_at_end=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
    )
    return Trainer(model, arguments, train_dataset=Texts(), eval_dataset=Texts())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the Trainer, which are many
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, variant: str) -> None:
    whole = trainer(variant, tmp_path / "whole", 6)
    whole.train()
    losses = {log["step"]: log["eval_loss"] for log in whole.state.log_history if "eval_loss" in log}
    assert losses[6] < losses[2]
    resumed = trainer(variant, tmp_path / "whole", 6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, core in cores(resumed.model).items():
        assert torch.equal(core, cores(whole.model)[name])
    best = whole.state.best_model_checkpoint
    kept = PeftModel.from_pretrained(gpt2(), best)
    assert torch.equal(logits(kept), logits(whole.model.eval()))
    assert whole.evaluate()["eval_loss"] == pytest.approx(min(losses.values()))
