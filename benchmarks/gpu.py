"""All that needs an accelerator, in one call and one table: steps, generation and decoding beside LoRA.

    python benchmarks/gpu.py                           # a Llama of the 1B shape, random weights
    python benchmarks/gpu.py --device cpu --tiny       # the same code on a small model, to see that it runs

Medians over rounds in turn, with quartiles of the ratio to PEFT LoRA's of the same width; the device is
waited for around every call that is timed. Autocast runs in bfloat16 and in float16 over float32 weights.
"tntune.adapt" is the same adapter without PEFT around it. Generation is of all adapters of a Llama of the
7B shape, 224 sites: a contraction for each, or one for all of a shape, and both replayed as CUDA graphs. The
last rows run layers where a wait of the host is an error.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import torch
from batching import Always, alone, matrices, together
from common.turns import Run, head, in_turn, ratio, row
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tntune.adapters import AdapterSpec, FactorGenerator, adapt
from tntune.maps import Geometry, build_map
from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig

LORA = "PEFT LoRA"
OWN = "TensorGuide, tntune.adapt"
Model = PeftModel | nn.Module
CONFIGS: dict[str, Callable[..., PeftConfig]] = {
    LORA: LoraConfig,
    "TensorGuide": TensorGuideConfig,
    "TensorGuide, shared": SharedTensorGuideConfig,
}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def shape(tiny: bool) -> LlamaConfig:
    """A decoder of the 1B class, or a tiny one."""
    hidden, inner, layers, heads, kv, vocabulary = (
        (64, 128, 2, 4, 2, 256) if tiny else (2048, 8192, 16, 32, 8, 128256)
    )
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )


class Bench:
    """One device, its clock and its sizes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.tiny, self.rounds, self.width = options.tiny, options.rounds, options.width
        self.tokens = 16 if options.tiny else options.tokens

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    def clock(self, run: Run) -> float:
        """Seconds of one call, with all that it launched."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()

    def compare(self, what: str, runs: dict[str, Run], reference: str) -> None:
        """One row for each route."""
        times = in_turn(runs, self.rounds, clock=self.clock)
        for name in runs:
            over, quartiles = ratio(times, name, reference)
            row(what, name, f"{1e3 * median(times[name]):.3f}", f"{over:.3f}", quartiles)

    def models(self) -> dict[str, Model]:
        """The decoder with each method; every one has the same random weights of its own."""
        made: dict[str, Model] = {}
        for name, config in CONFIGS.items():
            made[name] = get_peft_model(self.base(), config(r=self.width, target_modules=TARGETS))
        made[OWN] = adapt(self.base(), AdapterSpec(TARGETS, width=self.width))
        return made

    def base(self) -> LlamaForCausalLM:
        """The decoder without adapters."""
        torch.manual_seed(0)
        with self.device:
            return LlamaForCausalLM(shape(self.tiny))

    def ids(self) -> Tensor:
        return torch.randint(0, 256, (4, self.tokens), device=self.device)

    def steps(self, models: dict[str, Model], dtype: torch.dtype) -> dict[str, Run]:
        """A training step under autocast."""
        ids = self.ids()

        def step(model: Model, optimizer: torch.optim.Optimizer) -> None:
            with torch.autocast(self.device.type, dtype):
                loss = model.train()(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        trained = {name: [p for p in m.parameters() if p.requires_grad] for name, m in models.items()}
        return {name: partial(step, m, torch.optim.AdamW(trained[name])) for name, m in models.items()}

    def decodes(self, models: dict[str, Model]) -> dict[str, Run]:
        """Sixteen tokens one by one in bfloat16."""
        ids = self.ids()[:1, :8]

        @torch.no_grad()
        def decode(model: Model) -> None:
            with torch.autocast(self.device.type, torch.bfloat16):
                model.eval().generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=16,
                    min_new_tokens=16,
                    pad_token_id=0,
                )

        return {name: partial(decode, model) for name, model in models.items()}

    def memory(self, steps: dict[str, Run]) -> None:
        """Peak of a training step above the models that are there."""
        peaks = {}
        for name, step in steps.items():
            step()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            peaks[name] = torch.cuda.max_memory_allocated() - before
        for name, peak in peaks.items():
            row(f"memory of a step: {peak / 1e6:.0f} MB", name, "", f"{peak / peaks[LORA]:.3f}", "")

    def adapters(self) -> list[list[FactorGenerator]]:
        """One for each linear layer of a 7B shape, those of equal maps together."""
        hidden, inner, layers = (64, 96, 2) if self.tiny else (4096, 11008, 32)
        groups = []
        for sizes, count in (((hidden, hidden), 4), ((hidden, inner), 2), ((inner, hidden), 1)):
            kind = build_map("tensorguide", Geometry(*sizes, self.width), start="random")
            groups.append([FactorGenerator.fresh(kind).to(self.device) for _ in range(count * layers)])
        return groups

    def generation(self) -> None:
        """All their factors, forward, and forward and backward."""
        groups = self.adapters()
        along = [[torch.randn_like(part) for part in matrices(group[:1])] for group in groups]

        def over(route: Callable[[list[FactorGenerator], list[Tensor]], None]) -> None:
            for group, parts in zip(groups, along, strict=True):
                route(group, parts)

        what = f"generation of {sum(map(len, groups))} sites"
        both: dict[str, Run] = {"one by one": partial(over, alone), "together": partial(over, together)}
        self.compare(f"{what}, forward and backward", both, "one by one")
        once: dict[str, Run] = {
            "one by one": partial(over, forward),
            "together": partial(over, forward_together),
        }
        if self.on_cuda:
            once |= {f"{name}, a CUDA graph": captured(run) for name, run in once.items()}
        self.compare(f"{what}, forward", once, "one by one")


def forward(group: list[FactorGenerator], along: list[Tensor]) -> None:
    """What every layer of a group applies."""
    matrices(group)


def forward_together(group: list[FactorGenerator], along: list[Tensor]) -> None:
    """The same, by one contraction."""
    batch = Always(group[0].map, group)
    batch.begin()
    matrices(group)
    batch.end()


def captured(run: Run) -> Run:
    """A call as a graph that is replayed."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@contextmanager
def no_waiting() -> Iterator[None]:
    """Inside, an operation that makes the host wait for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(device: torch.device) -> None:
    """Rows that say whether the forward and backward of two layers ever wait; an error otherwise."""
    layers = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512)).to(device)
    adapt(layers, AdapterSpec(width=16, start="random"))
    x = torch.randn(64, 512, device=device)
    for mode in ("training", "evaluation"):
        layers.train(mode == "training")
        with no_waiting(), torch.set_grad_enabled(mode == "training"):
            y = layers(x)
            if y.requires_grad:
                y.sum().backward()
        row(f"waits of the host in {mode}: none", "TensorGuide", "", "", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that the script runs")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("Not run: torch finds no CUDA device here.")
        return
    bench = Bench(options)
    name = torch.cuda.get_device_name() if bench.on_cuda else "the CPU, which says nothing about a GPU"
    print(f"On {name}.\n")
    head("what", "method", "ms", "ratio", "quartiles")
    models = bench.models()
    for half, dtype in HALF.items():
        steps = bench.steps(models, dtype)
        bench.compare(f"training step, autocast {half}", steps, LORA)
        if bench.on_cuda:
            bench.memory(steps)
    bench.compare("16 tokens decoded, autocast bfloat16", bench.decodes(models), LORA)
    bench.generation()
    if bench.on_cuda:
        waits(bench.device)


if __name__ == "__main__":
    main()
