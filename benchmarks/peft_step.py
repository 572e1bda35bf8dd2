"""What does a training step, a forward and a decoded token cost beside PEFT's own methods of the same width?

    python benchmarks/peft_step.py                    # a GPT-2 of half the small one's depth
    python benchmarks/peft_step.py --layers 12 --rows 4 --tokens 256 --rounds 5

Random weights in GPT-2's small shape, all four linear layers of every block adapted. All methods run in turn
in one process, and every ratio is taken within a round, so that other work on the machine cancels; the
table has medians over rounds, with the quartiles of the ratio. Memory is the peak of a process of its own.
The floor is what the products of the frozen model take at the measured peaks of the machine.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from statistics import median

import torch
from common.machine import Machine
from common.memory import megabytes
from common.turns import duration, head, in_turn, ratio, row, wall_seconds
from peft import LoraConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig

TARGETS = ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
METHODS = ("LoRA", "TensorGuide", "TensorGuide, shared")
VERA = "VeRA"
"""The other low-rank method of PEFT that takes GPT-2's transposed layers; LoHa and LoKr do not."""


def config(method: str, width: int) -> PeftConfig:
    """The same targets and width for all."""
    if method == "LoRA":
        return LoraConfig(r=width, target_modules=TARGETS, fan_in_fan_out=True)
    if method == VERA:
        return VeraConfig(r=width, target_modules=TARGETS, fan_in_fan_out=True)
    kind = TensorGuideConfig if method == "TensorGuide" else SharedTensorGuideConfig
    return kind(r=width, target_modules=TARGETS)


def model(method: str, options: argparse.Namespace) -> PeftModel:
    """A GPT-2 of random weights with this adapter."""
    torch.manual_seed(0)
    no = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    shape = GPT2Config(n_layer=options.layers, n_embd=options.size, n_head=options.size // 64, **no)
    return get_peft_model(GPT2LMHeadModel(shape).eval(), config(method, options.width))


def train_step(adapted: PeftModel, ids: Tensor) -> Callable[[], None]:
    """Forward, backward and one AdamW step."""
    parameters = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def run() -> None:
        adapted.train()
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def forward(adapted: PeftModel, ids: Tensor) -> Callable[[], None]:
    """A forward of the whole batch in evaluation."""

    @torch.no_grad()
    def run() -> None:
        adapted.eval()
        adapted(input_ids=ids)

    return run


def decode(adapted: PeftModel, ids: Tensor) -> Callable[[], None]:
    """Sixteen tokens after a short prompt, with a cache of keys and values."""

    @torch.no_grad()
    def run() -> None:
        adapted.eval()
        mask = torch.ones_like(ids[:1, :8])
        adapted.generate(input_ids=ids[:1, :8], attention_mask=mask, max_new_tokens=16, pad_token_id=0)

    return run


def peak(method: str) -> float:
    """Peak memory in MB of a process that trains three steps."""
    words = [sys.executable, *sys.argv, "--peak-of", method]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def compare(
    what: str,
    make: Callable[[PeftModel, Tensor], Callable[[], None]],
    options: argparse.Namespace,
    methods: tuple[str, ...],
    floor: float,
) -> None:
    """One row for each method."""
    ids = torch.randint(0, 50257, (options.rows, options.tokens), generator=torch.Generator().manual_seed(0))
    runs = {method: make(model(method, options), ids) for method in methods}
    times = in_turn(runs, options.rounds, clock=wall_seconds)
    for method in methods:
        over, quartiles = ratio(times, method, "LoRA")
        row(what, method, duration(median(times[method])), duration(floor), f"{over:.3f}", quartiles)


def multiplications(options: argparse.Namespace) -> int:
    """Entries of the frozen matrices that every token meets: twelve squares a block, and the head."""
    return options.size * (12 * options.layers * options.size + 50257)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--size", type=int, default=768)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--peak-of", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        ids = torch.zeros(options.rows, options.tokens, dtype=torch.long)
        run = train_step(model(options.peak_of, options), ids)
        for _ in range(3):
            run()
        print(megabytes())
        return
    machine, entries = Machine.measured(), multiplications(options)
    flops = 2 * entries * options.rows * options.tokens
    head("what", "method", "time", "floor", "times LoRA's", "quartiles")
    compare("training step", train_step, options, (*METHODS, VERA), machine.floor(2 * flops, 2 * entries))
    compare("forward", forward, options, METHODS, machine.floor(flops, entries))
    decoded = 16 * machine.floor(2 * entries, entries)
    compare("16 tokens decoded", decode, options, METHODS, decoded)
    peaks = {method: peak(method) for method in METHODS}
    for method, found in peaks.items():
        row("peak memory", method, f"{found:.0f} MB", "", f"{found / peaks['LoRA']:.3f}", "")
    print(
        f"\n{options.layers} blocks of {options.size}, {options.rows} x {options.tokens} tokens; {machine}."
    )


if __name__ == "__main__":
    main()
