"""One training by one process or by several, under torchrun or accelerate, to the same adapter.

    python examples/08_processes.py out                                        # 16 rows a step
    torchrun --standalone --nproc-per-node 2 examples/08_processes.py out      # 8 rows in each process
    accelerate launch --num_processes 2 examples/08_processes.py out           # the same, on two GPUs

The processes share out the rows of a step, so their number changes the time and not the adapter, but for
rounding: `tntune verify` compares the folders. Of tntune there is nothing in it but the configuration.
Without GPUs take torchrun: accelerate's launcher starts one process there, unless it finds MPI.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from tntune.peft import SharedTensorGuideConfig

LENGTH, ROWS = 64, 16  # bytes in a row, rows in a step


Texts = list[dict[str, Tensor]]


def split() -> tuple[Texts, Texts]:
    """Rows of bytes to train on and held out: the source of torch's optimisers, which every process has."""
    data = b"".join(path.read_bytes() for path in sorted(Path(torch.optim.__file__).parent.glob("*.py")))
    cut = torch.frombuffer(bytearray(data), dtype=torch.uint8).long().split(LENGTH)[:-1]
    rows = [{"input_ids": row, "labels": row} for row in cut]
    return [row for k, row in enumerate(rows) if k % 8], rows[::8][: 8 * ROWS]


def main(output: str, *, steps: int = 40) -> None:
    """Train one tensor train for all layers of a shape, and save it from the first process."""
    seen, unseen = split()
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    set_seed(0)  # the base and the start are the same everywhere
    sizes = {"vocab_size": 256, "n_positions": LENGTH, "n_embd": 64, "n_layer": 2, "n_head": 4}
    still = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    base = GPT2LMHeadModel(GPT2Config(**sizes, **still, bos_token_id=None, eos_token_id=None))
    config = SharedTensorGuideConfig(r=8, ranks=8, target_modules=["c_attn", "c_fc"])
    with TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=steps, learning_rate=1e-2, per_device_train_batch_size=ROWS // processes,
            save_strategy="no", seed=0, disable_tqdm=True, report_to=[], ddp_find_unused_parameters=False,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        trainer = Trainer(get_peft_model(base, config), settings, train_dataset=seen)
        trainer.train()
        loss = trainer.evaluate(unseen)["eval_loss"]
        trainer.save_model(output)  # the first process writes
    if trainer.is_world_process_zero():
        print(f"processes: {processes}, steps: {steps}, held-out loss: {loss:.4f}, saved in {output}")


if __name__ == "__main__":
    main(sys.argv[1])
