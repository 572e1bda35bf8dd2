"""What would adapters of all linear layers of a large model cost, predicted from counts and a fitted time?

    python benchmarks/cost.py            # the tables of docs/cost.md

Shapes are of public configurations. Parameters and memory are counted from the maps, and checked against a
model of transformers on the meta device that PEFT has adapted. The time to generate all factors of a training
step is predicted by a line in the number of entries, fitted to four square layers; it is checked
against one decoder block of each model, measured here. No weight of these models is ever made.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from common.machine import Machine
from common.turns import Run, duration, head, in_turn, row
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tntune.adapters import FactorGenerator
from tntune.maps import Geometry, LoRA, WeightMap, build_map
from tntune.maps.chain import Chains
from tntune.peft import TensorGuideConfig

GIGA = 1e9
STATE = 16
"""Bytes of a trained float32 parameter: itself, its gradient, Adam's two moments."""


@dataclass(frozen=True)
class Decoder:
    """A decoder's shapes, as its public configuration has them."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def block(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of the linear layers of one block: q, k, v, o, gate, up, down."""
        h, kv = self.hidden, self.hidden // self.heads * self.kv_heads
        return (h, h), (h, kv), (h, kv), (h, h), (h, self.inner), (h, self.inner), (self.inner, h)

    @property
    def linear(self) -> int:
        """Entries of the adapted matrices of all blocks."""
        return self.layers * sum(math.prod(shape) for shape in self.block)

    @property
    def params(self) -> int:
        """All parameters: the matrices, two norms a block and the last, embedding and head."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.linear + norms + 2 * self.vocabulary * self.hidden

    def on_meta(self) -> LlamaForCausalLM:
        """The model itself, without its weights."""
        sizes = {"hidden_size": self.hidden, "intermediate_size": self.inner, "vocab_size": self.vocabulary}
        heads = {"num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads}
        with torch.device("meta"):
            return LlamaForCausalLM(LlamaConfig(num_hidden_layers=self.layers, **sizes, **heads))


DECODERS = (
    Decoder("Llama 2 7B", 32, 4096, 11008, 32, 32, 32000),
    Decoder("Llama 3 70B", 80, 8192, 28672, 64, 8, 128256),
    Decoder("Llama 3.1 405B", 126, 16384, 53248, 128, 8, 128256),
)
FITTED = (2048, 6144, 16384, 40960)
"""Features of the square layers whose times are fitted."""


@dataclass(frozen=True)
class Method:
    """An adapter of one width and rank on every linear layer."""

    name: str
    width: int
    rank: int | None

    def map(self, shape: tuple[int, int]) -> WeightMap:
        """The map of one layer."""
        sizes = Geometry(*shape, self.width)
        return LoRA(*sizes) if self.rank is None else build_map("tensorguide", sizes, rank=self.rank)

    def params(self, decoder: Decoder) -> int:
        """Trained parameters of the whole model."""
        return decoder.layers * sum(self.map(shape).num_parameters for shape in decoder.block)


LORA = Method("LoRA, r = 16", 16, None)
GUIDE = Method("TensorGuide, width 16, ranks 8", 16, 8)
WIDE = Method("TensorGuide, width 64, ranks 16", 64, 16)


def entries(shape: tuple[int, int], method: Method) -> int:
    """Entries of the matrices that one layer applies."""
    generator = FactorGenerator.fresh(method.map(shape)).requires_grad_(False)
    return sum(matrix.numel() for chain in generator(0, Chains) for matrix in chain)


def counts() -> None:
    """Parameters, and the share of a LoRA's."""
    head("model", "its parameters", "method", "trained", "of LoRA's", "float32 file", "on the meta device")
    for decoder in DECODERS:
        config = TensorGuideConfig(r=GUIDE.width, ranks=GUIDE.rank, target_modules="all-linear")
        adapted = get_peft_model(decoder.on_meta(), config, low_cpu_mem_usage=True)
        trained, total = adapted.get_nb_trainable_parameters()
        for method in (LORA, GUIDE, WIDE):
            own = method.params(decoder)
            checked = f"{trained:,} of {total:,}" if method is GUIDE else ""
            assert method is not GUIDE or (trained, total) == (own, own + decoder.params)
            share = f"{own / LORA.params(decoder):.3f}"
            row(
                decoder.name,
                f"{decoder.params:,}",
                method.name,
                f"{own:,}",
                share,
                f"{own * 4e-6:,.1f} MB",
                checked,
            )


def memory() -> None:
    """What a training step holds beside activations."""
    head("model", "bfloat16 base", "method", "params, gradients, Adam", "factors of a pass, float32")
    for decoder in DECODERS:
        for method in (LORA, GUIDE, WIDE):
            held = (
                0
                if method is LORA
                else sum(entries(shape, method) for shape in decoder.block) * decoder.layers
            )
            state, base = STATE * method.params(decoder) / GIGA, 2 * decoder.params / GIGA
            row(decoder.name, f"{base:.1f} GB", method.name, f"{state:.3f} GB", f"{4 * held / GIGA:.3f} GB")


def generation(shapes: tuple[tuple[int, int], ...], method: Method) -> Run:
    """Forward and backward of the factors of these layers."""
    generators = [FactorGenerator.fresh(method.map(shape)) for shape in shapes]
    along = [[torch.randn_like(m) for chain in g(0, Chains) for m in chain] for g in generators]

    def run() -> None:
        for generator, parts in zip(generators, along, strict=True):
            torch.autograd.backward([m for chain in generator(0, Chains) for m in chain], parts)

    return run


def fitted(method: Method, rounds: int) -> Callable[[tuple[int, int]], float]:
    """Seconds of generation of one layer, a line in its entries, by least squares in relative errors."""
    runs = {str(size): generation(((size, size),), method) for size in FITTED}
    y = torch.tensor([median(found) for found in in_turn(runs, rounds).values()], dtype=torch.float64)
    x = torch.tensor([float(entries((size, size), method)) for size in FITTED], dtype=torch.float64)
    design = torch.stack([1 / y, x / y], dim=1)
    constant, slope = torch.linalg.lstsq(design, torch.ones_like(y)).solution.tolist()
    return lambda shape: constant + slope * entries(shape, method)


def times(rounds: int, tokens: int) -> None:
    """Generation in a step: predicted, checked on one block, and beside the step's own floor."""
    machine = Machine.measured()
    columns = ("one block, predicted", "measured", "measured / predicted", "all blocks, predicted")
    head("model", "method", *columns, f"floor of a step of {tokens:,} tokens", "generation over it")
    for method in (GUIDE, WIDE):
        line = fitted(method, rounds)
        for decoder in DECODERS:
            predicted = sum(line(shape) for shape in decoder.block)
            (found,) = in_turn({"block": generation(decoder.block, method)}, rounds).values()
            step = machine.floor(4 * decoder.linear * tokens, 4 * decoder.linear)
            whole = decoder.layers * predicted
            cells = (duration(predicted), duration(median(found)), f"{median(found) / predicted:.2f}")
            row(decoder.name, method.name, *cells, duration(whole), duration(step), f"{whole / step:.1e}")
    print(f"\nTimes of one thread at {machine}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for table in (counts, memory):
        table()
        print()
    times(options.rounds, options.tokens)


if __name__ == "__main__":
    main()
