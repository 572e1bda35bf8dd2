"""A small GPT-2 fine-tuned by transformers' Trainer: TensorGuide beside PEFT's LoRA (minutes on two cores).

Nothing is downloaded: the base model learns the prose of Python's standard library, its docstrings, byte by
byte; the adapters then teach it the library's code. Scores are bits per byte of code that was held out.
"""

import ast
import math
import sysconfig
from pathlib import Path

import torch
from comparison import Row, fit, show, weigh
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig

LENGTH = 64  # bytes in a row
LAYERS = ["c_attn", "c_proj", "c_fc"]
METHODS: dict[str, tuple[PeftConfig, float]] = {  # each with the best learning rate of those tried
    "LoRA, r=8": (LoraConfig(r=8, lora_alpha=8, target_modules=LAYERS), 1e-2),
    "LoRA, r=1": (LoraConfig(r=1, lora_alpha=1, target_modules=LAYERS), 3e-2),
    "TensorGuide, one a layer": (TensorGuideConfig(r=8, ranks=8, target_modules=LAYERS), 3e-2),
    "TensorGuide, shared": (SharedTensorGuideConfig(r=8, ranks=8, target_modules=LAYERS), 3e-2),
}

# %% 1. Text that every machine has

Texts = list[dict[str, Tensor]]


def library() -> tuple[str, str]:
    """The docstrings and the code of the standard library's top-level modules."""
    sources = [p.read_text(encoding="utf-8") for p in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return "\n\n".join(filter(None, map(ast.get_docstring, nodes))), "\n".join(sources)


def split(text: str, *, held_out: int = 512) -> tuple[Texts, Texts]:
    """Rows of bytes to train on, and of every eighth row the first few, held out."""
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    rows = [{"input_ids": row, "labels": row} for row in data.split(LENGTH)[:-1]]
    return [row for k, row in enumerate(rows) if k % 8], rows[::8][:held_out]


# %% 2. A base model, then each adapter on it


def main(*, base_steps: int = 1000, steps: int = 200) -> dict[str, Row]:
    """Print and return the comparison."""
    (prose, _), (code, unseen) = map(split, library())
    set_seed(0)
    sizes = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 128, "n_layer": 3, "n_head": 4}
    still = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    base = GPT2LMHeadModel(GPT2Config(**sizes, **still, bos_token_id=None, eos_token_id=None))
    trainer = fit(base, prose, steps=base_steps, rate=3e-3, batch=16)
    before = trainer.evaluate(unseen)["eval_loss"] / math.log(2)
    rows = {}
    for name, (config, rate) in METHODS.items():
        model = get_peft_model(base, config)
        trainer = fit(model, code, steps=steps, rate=rate, batch=16)
        rows[name] = weigh(trainer, trainer.evaluate(unseen)["eval_loss"] / math.log(2))
        model.unload()
    show(before, rows, score="bits a byte")
    return rows


if __name__ == "__main__":
    main()
