"""Law: what several processes train, each on its part of a batch, is what one process trains on all of it."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from safetensors.torch import load_file

from tests.peft.workers import training
from tests.peft.workers.training import CONFIGS, State
from tests.support.processes import Outcome, run
from tests.support.tolerance import TOLERANCE, close

pytestmark = [
    pytest.mark.peft,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

KINDS = {"plain": None, "non-reentrant": False, "reentrant": True}
"""Activation checkpointing: none, or the value of use_reentrant."""

SHARDED = [name for name in training.WRAPPINGS if name != "ddp"]


RUNS = [run for run in product(CONFIGS, KINDS) if run != ("shared", "reentrant")]
"""What can be trained together; the other one is refused."""

Reference = dict[str, tuple[State, Path]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """What one process trained, and the folder that it saved, by variant."""
    folders = {variant: tmp_path_factory.mktemp("alone") for variant in CONFIGS}
    return {variant: (training.trained_alone(variant, folder), folder) for variant, folder in folders.items()}


def values(outcomes: list[Outcome]) -> list[State]:
    """What the processes returned; none of them raised."""
    assert [outcome.error for outcome in outcomes] == [""] * len(outcomes)
    return [outcome.value for outcome in outcomes]


def agree(found: State, wanted: State) -> bool:
    """Whether both have the same tensors, up to rounding."""
    assert found.keys() == wanted.keys()
    return all(close(found[name], wanted[name]) for name in wanted)


def described(folder: Path) -> dict[str, object]:
    """What a folder says about its adapter; PEFT writes sets in any order."""
    fields = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return {name: sorted(value) if isinstance(value, list) else value for name, value in fields.items()}


def check(variant: str, wrapping: str, kind: str, alone: Reference, folder: Path) -> None:
    """Every process ends with the same adapter, and the folder is the same."""
    wanted, saved = alone[variant]
    own = folder / "adapter"
    states = values(run(training.trained_together, variant, wrapping, KINDS[kind], own, folder=folder))
    assert all(agree(state, wanted) for state in states)
    assert agree(load_file(own / "adapter_model.safetensors"), wanted)
    assert described(own) == described(saved)


@pytest.mark.parametrize("variant", CONFIGS)
def test_every_tensor_is_trained(variant: str, alone: Reference) -> None:
    """A run that left all as it was would agree with every other."""
    start, end = training.get_peft_model_state_dict(training.adapted(variant)), alone[variant][0]
    moved = {name: float((end[name] - start[name]).norm() / start[name].norm()) for name in start}
    assert min(moved.values()) > 1e5 * TOLERANCE[torch.float64], moved


@pytest.mark.parametrize(("variant", "kind"), RUNS)
def test_ddp_trains_what_one_process_trains(
    variant: str, kind: str, alone: Reference, tmp_path: Path
) -> None:
    check(variant, "ddp", kind, alone, tmp_path)


def test_shared_trains_refuse_reentrant_checkpointing(tmp_path: Path) -> None:
    """DDP would send off the gradient of the last block as that of all of them."""
    outcomes = run(training.trained_together, "shared", "ddp", True, tmp_path / "adapter", folder=tmp_path)
    for outcome in outcomes:
        assert outcome.error.startswith("UnsupportedError: reentrant activation checkpointing")
        assert '"use_reentrant": False' in outcome.error


def test_an_evaluation_before_the_backward_is_no_reentrant_checkpoint(tmp_path: Path) -> None:
    states = values(run(training.gradients_around_an_evaluation, "shared", False, folder=tmp_path))
    model, tokens = training.adapted("shared"), training.batch()
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(agree(state, training.gradients(model)) for state in states)


@pytest.mark.slow
@pytest.mark.parametrize("wrapping", SHARDED)
@pytest.mark.parametrize(("variant", "kind"), RUNS)
def test_fsdp_trains_what_one_process_trains(
    variant: str, kind: str, wrapping: str, alone: Reference, tmp_path: Path
) -> None:
    check(variant, wrapping, kind, alone, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("wrapping", ["ddp", "fsdp1 flat", "fsdp1 original", "fsdp2"])
def test_half_precision_bases_keep_float32_cores(variant: str, wrapping: str, tmp_path: Path) -> None:
    """Where a unit held bases and cores, FSDP would refuse their two dtypes."""
    model = training.adapted(variant, dtype=torch.bfloat16)
    training.train(model, training.batch(), lr=1.0)
    wanted = training.get_peft_model_state_dict(model)
    for state in values(run(training.trained_in_half_precision, variant, wrapping, folder=tmp_path)):
        assert {tensor.dtype for tensor in state.values()} == {torch.float32}
        assert agree(state, wanted)
