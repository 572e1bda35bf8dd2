"""What does one adapted layer cost beside PEFT's own methods of the same width, and tensorly-torch's layer?

    python benchmarks/layer.py                                # 4096 -> 4096, width 16, 512 tokens
    python benchmarks/layer.py --outputs 11008                # Llama 7B's up projection

All run in turn in one process and every ratio is taken within a round; medians of CPU seconds over rounds,
with quartiles of the ratio to LoRA. A layer is the frozen weight, which all share, with its adapter. Alone
stand the two matrices of a LoRA, the two that our train generates at each call, and tensorly-torch's
``FactorizedLinear``, whose TT-matrix has the rank that comes nearest to our number of parameters. The floor
is what the products of the base, or alone those of a LoRA, take at the measured peaks of the machine.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import tltorch
import torch
from common.machine import Machine
from common.turns import duration, head, in_turn, ratio, row
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from tntune.adapters import FactorGenerator
from tntune.peft import TensorGuideConfig
from tntune.tt import auto_modes

LORA = "PEFT LoRA"
TLTORCH = "tltorch FactorizedLinear, TT"


class Alone(nn.Module):
    """A train's two factors, applied without a base."""

    def __init__(self, generator: FactorGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.generator(0)
        return functional.linear(functional.linear(x, down[0]), up[0])


@dataclass(frozen=True)
class Case:
    """Sizes of the layer and its input, and the peaks of the machine."""

    inputs: int
    outputs: int
    width: int
    tokens: int
    machine: Machine

    def floor(self, tokens: int, *, alone: bool, backward: bool) -> float:
        """Seconds that the products take at the peaks, with a backward into the input."""
        edges = self.inputs + self.outputs
        weight = self.width * edges if alone else self.inputs * self.outputs
        passes = (3 if alone else 2) if backward else 1  # of a frozen weight no gradient is made
        traffic = passes * (weight + tokens * edges)
        return self.machine.floor(2 * passes * tokens * weight, traffic)


def on_a_base(case: Case) -> dict[str, nn.Module]:
    """Each method on one frozen weight."""
    weight = nn.Parameter(torch.randn(case.outputs, case.inputs) / case.inputs**0.5, requires_grad=False)
    same = {"target_modules": ["0"]}
    configs: dict[str, PeftConfig] = {
        LORA: LoraConfig(r=case.width, init_lora_weights=False, **same),
        "TensorGuide": TensorGuideConfig(r=case.width, init_weights=False, **same),
        "PEFT LoHa": LoHaConfig(r=case.width, init_weights=False, **same),
        "PEFT LoKr": LoKrConfig(r=case.width, init_weights=False, **same),
        "PEFT VeRA": VeraConfig(r=case.width, init_weights=False, **same),
    }
    return {name: adapted(config, weight) for name, config in configs.items()}


def alone(case: Case, generator: FactorGenerator) -> dict[str, nn.Module]:
    """The adapters without a base, tensorly-torch's with the rank that has nearest to as many parameters."""
    kind = {"bias": False, "factorization": "blocktt", "implementation": "factorized"}
    modes = [auto_modes(size, order=3).sizes for size in (case.inputs, case.outputs)]
    trains = [tltorch.FactorizedLinear(*modes, rank=rank, **kind) for rank in range(2, 9)]
    nearest = min(trains, key=lambda train: abs(trained(train) - generator.map.num_parameters))
    lora = nn.Sequential(
        nn.Linear(case.inputs, case.width, bias=False), nn.Linear(case.width, case.outputs, bias=False)
    )
    return {LORA: lora, "TensorGuide": Alone(generator), TLTORCH: nearest}


def adapted(config: PeftConfig, weight: nn.Parameter) -> PeftModel:
    """A linear layer of this very weight with an adapter."""
    base = nn.Sequential(nn.Linear(*weight.shape[::-1], bias=False, device="meta"))
    base[0].weight = weight
    return get_peft_model(base, config)


def step(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward, into the input too."""

    def run() -> None:
        module.train()
        module(x).sum().backward()

    return run


def apply(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """A forward in evaluation."""

    @torch.no_grad()
    def run() -> None:
        module.eval()
        module(x)

    return run


def trained(module: nn.Module) -> int:
    """Number of trained entries."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def compare(
    what: str, runs: dict[str, Callable[[], None]], rounds: int, floor: float
) -> dict[str, list[str]]:
    """The cells of each method: its time, the floor, and the ratio to LoRA's time."""
    times = in_turn(runs, rounds)
    cells = {}
    for name in runs:
        over, quartiles = ratio(times, name, LORA)
        cells[name] = [what, name, duration(median(times[name])), duration(floor), f"{over:.3f}", quartiles]
    if TLTORCH in runs:
        over, quartiles = ratio(times, TLTORCH, "TensorGuide")
        own = duration(median(times["TensorGuide"]))
        cells["bar"] = [f"{what}, tltorch / ours", "", own, duration(floor), f"{over:.3f}", quartiles]
    return cells


def tables(case: Case, rounds: int) -> None:
    """All rows: layers and adapters alone, forward and backward and one token."""
    made = on_a_base(case)
    generator = made["TensorGuide"].base_model.model[0].tensorguide_gen["default"]
    x = torch.randn(case.tokens, case.inputs, requires_grad=True)
    token = torch.randn(1, case.inputs)
    for what, modules in (("layer", made), ("adapter alone", alone(case, generator))):
        kinds = (
            ("forward and backward", step, x, rounds, case.tokens),
            ("one token", apply, token, 10 * rounds, 1),
        )
        for kind, make, data, count, tokens in kinds:
            floor = case.floor(tokens, alone=what != "layer", backward=make is step)
            runs = {name: make(module, data) for name, module in modules.items()}
            for name, cells in compare(f"{what}, {kind}", runs, count, floor).items():
                row(*cells[:2], f"{trained(modules[name]):,}" if name in modules else "", *cells[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--outputs", type=int, default=4096)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine = Machine.measured()
    case = Case(options.inputs, options.outputs, options.width, options.tokens, machine)
    head("what", "method", "trained", "time", "floor", "times LoRA's", "quartiles")
    tables(case, options.rounds)
    print(f"\n{options.inputs} -> {options.outputs}, width {options.width}; one thread, {machine}.")


if __name__ == "__main__":
    main()
