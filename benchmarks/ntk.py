"""How fast, and in how much memory, is the tangent kernel of an adapter beside torch.func and nngeometry?

    python benchmarks/ntk.py

Layers: 512 -> 10 features at width 64 with GELU, 256 inputs, the full (2560, 2560) kernel in float32; a LoRA,
and a tensor train of four cores that generates its factors. Transformers: two blocks of width 128, 16 tokens,
adapters of width 8 on q and v, 10 classes, 64 inputs. Every route runs in a process of its own; memory is the
growth of its peak in the first call, the result included, and time is the least of some calls on one thread.
The floor is writing the kernel once.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from common.machine import Machine
from common.memory import megabytes
from common.turns import duration
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tntune.adapters import adapt
from tntune.maps import Geometry, Joined, LoRA, Site, TensorGuide, WeightMap, build_map
from tntune.theory import layer_ntk, logits, ntk

try:
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object import FMatDense
except ImportError:
    FMatDense = None

SIZES = Geometry(512, 10, 64)
INPUTS = 256
BLOCK = (128, 4, 16)  # width, heads, tokens
Route = Callable[[], Tensor]


class Attention(nn.Module):
    """A residual block with attention alone."""

    def __init__(self) -> None:
        super().__init__()
        width, self.heads, _ = BLOCK
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(x)
        q, k, v = (p(inner).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        weights = (q @ k.mT * k.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + functional.gelu(x)


class Classifier(nn.Module):
    """Two blocks and a head on the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(Attention(), Attention()), nn.Linear(BLOCK[0], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(1))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def layer_map(case: str) -> WeightMap:
    if case == "LoRA layer":
        return LoRA(*SIZES, "random")
    return TensorGuide(*SIZES, Joined("w1 w2 io1 io2", (8, 8, 18, 29)), (1, 8, 16, 8, 1), start="random")


def layer_routes(case: str) -> dict[str, Route]:
    map, x = layer_map(case), torch.randn(INPUTS, 512, generator=generator())
    params, _ = map.init(generator())

    def outputs(own: dict[str, Tensor], one: Tensor) -> Tensor:
        down, up = map.factors(own, {})
        return functional.gelu(one @ down[0].mT) @ up[0].mT

    routes: dict[str, Route] = {
        "tntune": lambda: layer_ntk(Site(map, activation="gelu"), params, x).values,
        "torch.func": lambda: jacrev_vmap(outputs, params, x),
    }
    if case == "LoRA layer" and FMatDense is not None:
        routes["nngeometry"] = lambda: by_nngeometry(params, x)
    return routes


def model_routes(case: str) -> dict[str, Route]:
    method = "lora" if "LoRA" in case else "tensorguide"
    width, _, tokens = BLOCK
    map = build_map(method, Geometry(width, width, 8), start="random")
    torch.manual_seed(0)
    model = Classifier()
    adapt(model, {f"blocks.{k}.{p}": Site(map) for k in range(2) for p in "qv"}, generator=generator())
    model.eval()
    x = torch.randn(64, tokens, width, generator=generator())
    own = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return {
        "tntune": lambda: ntk(model, x, logits).values,
        "torch.func": lambda: jacrev_vmap(lambda p, one: functional_call(model, p, (one[None],))[0], own, x),
    }


def jacrev_vmap(function: Callable, params: dict[str, Tensor], x: Tensor) -> Tensor:
    """The recipe of torch's tutorial."""
    parts = torch.func.vmap(torch.func.jacrev(function), (None, 0))(params, x)
    kernels = (torch.einsum("icp,jdp->icjd", part.flatten(2), part.flatten(2)) for part in parts.values())
    whole = next(kernels)
    for kernel in kernels:
        whole += kernel
    return whole.flatten(2).flatten(0, 1)


def by_nngeometry(params: dict[str, Tensor], x: Tensor) -> Tensor:
    model = nn.Sequential(nn.Linear(512, 64, bias=False), nn.GELU(), nn.Linear(64, 10, bias=False))
    model[0].weight.data, model[2].weight.data = params["lora_down"], params["lora_up"]
    backend = TorchHooksJacobianBackend(layer_collection=LayerCollection.from_model(model), model=model)
    kernel = FMatDense(backend, examples=DataLoader(TensorDataset(x), batch_size=len(x))).to_torch()
    return kernel.transpose(0, 1).transpose(2, 3).reshape(len(x) * 10, -1)  # theirs is output-major


CASES = {
    "LoRA layer": layer_routes,
    "TT layer": layer_routes,
    "LoRA transformer": model_routes,
    "TT transformer": model_routes,
}
ROUTES = ("tntune", "torch.func", "nngeometry")


def measure(case: str, route: str, repeats: int) -> dict[str, float] | None:
    """Seconds, megabytes, and two numbers by which kernels compare; None where the route does not exist."""
    torch.set_num_threads(1)
    run = CASES[case](case).get(route)
    if run is None:
        return None
    _ = torch.ones(64, 64) @ torch.ones(64, 64)
    before = megabytes()
    kernel = run()
    grown = megabytes() - before
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    probe = torch.randn(len(kernel), generator=generator())
    return {
        "s": min(seconds),
        "MB": grown,
        "norm": float(kernel.norm()),
        "probe": float(probe @ kernel @ probe),
    }


def rows(case: str, repeats: int, machine: Machine) -> list[str]:
    size = 10 * (INPUTS if "layer" in case else 64)
    floor = duration(machine.floor(0, size**2))
    found = {}
    for route in ROUTES:
        command = [sys.executable, __file__, "--case", case, "--route", route, "--repeats", str(repeats)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[route] = json.loads(answer.splitlines()[-1])
    ours, lines = found["tntune"], []
    for route, theirs in found.items():
        if theirs is None:
            if case == "LoRA layer":
                lines.append(f"| {case} | {route} | not installed | | | | |")
            continue
        error = max(abs(theirs[key] / ours[key] - 1) for key in ("norm", "probe"))
        lines.append(
            f"| {case} | {route} | {theirs['s'] * 1e3:,.1f} ms | {theirs['s'] / ours['s']:.1f} "
            f"| {theirs['MB']:,.0f} MB | {error:.0e} | {floor} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case", choices=CASES, help="measure this case alone, in this process")
    parser.add_argument("--route", choices=ROUTES, default="tntune")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options.route, options.repeats)))
        return
    torch.set_num_threads(1)
    machine = Machine.measured()
    print("| case | route | time | ratio | memory | disagreement | floor |\n|---|---|---|---|---|---|---|")
    for case in CASES:
        print("\n".join(rows(case, options.repeats, machine)), flush=True)


if __name__ == "__main__":
    main()
