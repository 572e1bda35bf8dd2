"""What does a training step cost with each map of the family, over a LoRA's of as many parameters?

    python benchmarks/family.py                                           # a table
    python benchmarks/family.py --json benchmarks/results/family.json     # and what family_table.py reads
    python benchmarks/family.py --quick                                   # one layer and three rounds

A BERT of MiniLM's shape (384 features, random weights), all six linear layers of every block adapted,
batches of 16 texts of 16 tokens: forward, backward and one AdamW step. Every method gets the same budget and
takes what its ranks make of it. All run in turn in one process and every ratio is taken within a round, so
that other work on the machine cancels; the table has medians over rounds, with the quartiles of the ratio.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from common.family import SYSTEMS
from common.turns import duration, head, in_turn, ratio, row, wall_seconds
from run import machine
from torch import nn
from transformers import BertConfig, BertModel

from tntune.adapters import AdapterSpec, adapt

LORA = "lora"
SIZE, HEADS = 384, 12
SILENT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STEP = "training step"


def bert(layers: int) -> nn.Module:
    """MiniLM's encoder without its vocabulary, which no adapter meets."""
    torch.manual_seed(0)
    sizes = {"hidden_size": SIZE, "num_attention_heads": HEADS, "intermediate_size": 4 * SIZE}
    config = BertConfig(vocab_size=1000, num_hidden_layers=layers, **sizes, **SILENT)
    return BertModel(config, add_pooling_layer=False)


def adapted(method: str, layers: int, params: int) -> nn.Module:
    """A fresh encoder with this adapter."""
    return adapt(bert(layers), AdapterSpec(method=method, params=params))


def size(model: nn.Module) -> int:
    """Parameters that train."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def train_step(model: nn.Module, rows: int, tokens: int) -> Callable[[], None]:
    """Forward, backward and one AdamW step."""
    ids = torch.randint(0, 1000, (rows, tokens), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        model(input_ids=ids).last_hidden_state.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def measured(options: argparse.Namespace) -> dict[str, dict[str, float | int | str]]:
    """Parameters, milliseconds, and the ratio to LoRA's with its quartiles, of every method."""
    models = {method: adapted(method, options.layers, options.params) for method in SYSTEMS}
    runs = {
        method: train_step(model.train(), options.rows, options.tokens) for method, model in models.items()
    }
    times = in_turn(runs, options.rounds, clock=wall_seconds)
    found: dict[str, dict[str, float | int | str]] = {}
    for method, model in models.items():
        over, quartiles = ratio(times, method, LORA)
        found[method] = {
            "params": size(model),
            "ms": round(1e3 * median(times[method]), 3),
            "ratio": round(over, 3),
            "quartiles": quartiles,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--params", type=int, default=165_888, help="a LoRA of width 4 on six layers")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument(
        "--quick", action="store_true", help="one layer and three rounds: only whether it runs"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.params, options.rounds = 1, options.params // options.layers, 3
    found = measured(options)
    head("what", "method", "parameters", "time", "times LoRA's", "quartiles")
    for method, own in found.items():
        time = duration(own["ms"] / 1e3)
        row(STEP, SYSTEMS[method], f"{own['params']:,}", time, f"{own['ratio']:.3f}", own["quartiles"])
    sizes = {name: getattr(options, name) for name in ("layers", "params", "rows", "tokens", "rounds")}
    print(f"\n{options.layers} blocks of {SIZE}, {options.rows} x {options.tokens} tokens; {machine()}.")
    if options.json:
        text = json.dumps({"machine": machine(), **sizes, "methods": found}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
