"""The same two steps of training, by one process on the whole batch or by several on their parts of it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils.other import fsdp_auto_wrap_policy
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from tests.peft.models import gpt2
from tntune.peft import SharedTensorGuideConfig, TensorGuideCallback, TensorGuideConfig

CONFIGS = {"per layer": TensorGuideConfig, "shared": SharedTensorGuideConfig}
STEPS, LEARNING_RATE = 2, 10.0  # far enough that a wrong gradient shows

State = dict[str, Tensor]


def adapted(variant: str, reentrant: bool | None = None, dtype: torch.dtype = torch.float64) -> PeftModel:
    """The decoder with random adapters, alike in every process, without checkpointing or with one kind."""
    config = CONFIGS[variant](r=3, ranks=2, target_modules=["c_attn", "c_fc"], init_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(gpt2(dtype), config)
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    return model.train()


def batch() -> Tensor:
    """Four texts of one length."""
    return torch.randint(0, 11, (4, 8), generator=torch.Generator().manual_seed(2))


def part() -> Tensor:
    """This process's texts."""
    return batch().chunk(distributed.get_world_size())[distributed.get_rank()]


def train(model: nn.Module, tokens: Tensor, *, lr: float = LEARNING_RATE) -> None:
    """Two steps of gradient descent."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


def trained_alone(variant: str, folder: Path) -> State:
    """The adapter that one process trains on the whole batch, saved as well."""
    model = adapted(variant)
    train(model, batch())
    model.save_pretrained(folder)
    return get_peft_model_state_dict(model)


def trained_together(variant: str, wrapping: str, reentrant: bool | None, folder: Path) -> State:
    """The adapter as each process sees it in the end; the first one saves it."""
    model = adapted(variant, reentrant)
    wrapped = WRAPPINGS[wrapping](model)
    train(wrapped, part())
    whole = gathered(wrapped)
    if distributed.get_rank() == 0:
        model.save_pretrained(folder, state_dict=whole)
    return get_peft_model_state_dict(model, state_dict=whole)


def trained_in_half_precision(variant: str, wrapping: str) -> State:
    """The adapter of a bfloat16 base, whose cores are float32."""
    model = adapted(variant, dtype=torch.bfloat16)
    wrapped = WRAPPINGS[wrapping](model)
    train(wrapped, part(), lr=1.0)
    return get_peft_model_state_dict(model, state_dict=gathered(wrapped))


def gradients_around_an_evaluation(variant: str, reentrant: bool) -> State:
    """What DDP leaves after a backward, where a forward without gradients came between it and its forward."""
    model = adapted(variant, reentrant)
    wrapped = DistributedDataParallel(model)
    loss = wrapped(input_ids=part(), labels=part()).loss
    with torch.no_grad():
        model(input_ids=batch())
    loss.backward()
    return gradients(model)


def measured_together(variant: str, wrapping: str) -> dict[str, float]:
    """What the callback logs after one step in every process."""
    wrapped = WRAPPINGS[wrapping](adapted(variant))
    wrapped(input_ids=part(), labels=part()).loss.backward()
    return measured(wrapped)


def measured(model: nn.Module) -> dict[str, float]:
    """What the callback logs of a model that has gradients."""
    callback = TensorGuideCallback(print)
    told = (TrainingArguments(use_cpu=True), TrainerState(), TrainerControl())
    callback.on_train_begin(*told, model=model)
    callback.on_pre_optimizer_step(*told, model=model)
    return callback.metrics(model)


def gradients(model: nn.Module) -> State:
    """Of all that is trained, by name."""
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


def gathered(wrapped: nn.Module) -> State:
    """All tensors of the unwrapped model, whole."""
    return get_model_state_dict(wrapped, options=StateDictOptions(full_state_dict=True))


def sharded(model: PeftModel, *, use_orig_params: bool, by_block: bool = False) -> nn.Module:
    """FSDP1, with the units of PEFT's policy or one for each block."""
    policy = ModuleWrapPolicy({GPT2Block}) if by_block else fsdp_auto_wrap_policy(model)
    return FullyShardedDataParallel(
        model, auto_wrap_policy=policy, use_orig_params=use_orig_params, device_id=torch.device("cpu")
    )


def sharded_by_tensor(model: PeftModel) -> nn.Module:
    """FSDP2, with a unit for each block and one for the rest."""
    for module in list(model.modules()):
        if isinstance(module, GPT2Block):
            fully_shard(module)
    return fully_shard(model)


WRAPPINGS: dict[str, Callable[[PeftModel], nn.Module]] = {
    "ddp": DistributedDataParallel,
    "fsdp1 flat": partial(sharded, use_orig_params=False),
    "fsdp1 original": partial(sharded, use_orig_params=True),
    "fsdp1 original by block": partial(sharded, use_orig_params=True, by_block=True),
    "fsdp2": sharded_by_tensor,
}
