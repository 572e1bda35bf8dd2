"""What does one adapted layer cost beside PEFT's LoRA of the same width, and tensorly-torch's own layer?

    python benchmarks/layer.py          # 4096 -> 4096, width 16, 512 tokens

All run in turn in one process and every ratio is taken within a round; medians of CPU seconds over rounds,
with quartiles of the ratio to LoRA. A layer is the frozen weight, which all share, with its adapter. Alone
stand the two matrices of a LoRA, the two that our train generates at each call, and tensorly-torch's
``FactorizedLinear``, whose TT-matrix has the rank that comes nearest to our number of parameters.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median, quantiles

import tltorch
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from tntune.adapters import FactorGenerator
from tntune.peft import TensorGuideConfig

LORA = "PEFT LoRA"


class Alone(nn.Module):
    """A train's two factors, applied without a base."""

    def __init__(self, generator: FactorGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.generator(0)
        return functional.linear(functional.linear(x, down[0]), up[0])


def on_a_base(options: argparse.Namespace) -> dict[str, nn.Module]:
    """Each method on one frozen weight."""
    weight = nn.Parameter(torch.randn(options.size, options.size) / options.size**0.5, requires_grad=False)
    lora = LoraConfig(r=options.width, target_modules=["0"], init_lora_weights=False)
    guide = TensorGuideConfig(r=options.width, target_modules=["0"], init_weights=False)
    return {LORA: adapted(lora, weight), "TensorGuide": adapted(guide, weight)}


def alone(options: argparse.Namespace, generator: FactorGenerator) -> dict[str, nn.Module]:
    """The adapters without a base, tensorly-torch's with the rank that has nearest to as many parameters."""
    size, width = options.size, options.width
    side = round(size ** (1 / 3))
    modes = (side,) * 3 if side**3 == size else (16, size // 256, 16)
    kind = {"bias": False, "factorization": "blocktt", "implementation": "factorized"}
    trains = [tltorch.FactorizedLinear(modes, modes, rank=rank, **kind) for rank in range(2, 9)]
    nearest = min(trains, key=lambda train: abs(trained(train) - generator.map.num_parameters))
    lora = nn.Sequential(nn.Linear(size, width, bias=False), nn.Linear(width, size, bias=False))
    return {LORA: lora, "TensorGuide": Alone(generator), "tltorch FactorizedLinear, TT": nearest}


def adapted(config: PeftConfig, weight: nn.Parameter) -> PeftModel:
    """A linear layer of this very weight with an adapter."""
    base = nn.Sequential(nn.Linear(*weight.shape, bias=False, device="meta"))
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


def seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(
    what: str, runs: dict[str, Callable[[], None]], modules: dict[str, nn.Module], rounds: int
) -> None:
    """One row for each method."""
    for run in runs.values():
        run()
    times = [{name: seconds(run) for name, run in runs.items()} for _ in range(rounds)]
    for name in runs:
        ratios = [each[name] / each[LORA] for each in times]
        low, _, high = quantiles(ratios, n=4)
        own = median(each[name] for each in times)
        cells = (
            what,
            name,
            f"{trained(modules[name]):,}",
            f"{own * 1e3:.1f} ms",
            f"{median(ratios):.3f}",
            f"{low:.3f} to {high:.3f}",
        )
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = on_a_base(options)
    generator = made["TensorGuide"].base_model.model[0].tensorguide_gen["default"]
    own = alone(options, generator)
    x, token = torch.randn(options.tokens, options.size, requires_grad=True), torch.randn(1, options.size)
    print("| what | method | trained | time | times LoRA's | quartiles |\n|---|---|---|---|---|---|")
    compare("layer, forward and backward", {n: step(m, x) for n, m in made.items()}, made, options.rounds)
    compare("layer, one token", {n: apply(m, token) for n, m in made.items()}, made, 10 * options.rounds)
    compare(
        "adapter alone, forward and backward", {n: step(m, x) for n, m in own.items()}, own, options.rounds
    )
    compare(
        "adapter alone, one token", {n: apply(m, token) for n, m in own.items()}, own, 10 * options.rounds
    )


if __name__ == "__main__":
    main()
