"""Where the task feels it: one LoRA at small budgets, compressed in every way, scored on held-out texts.

    python examples/05_task_aware.py                    # an hour on one core
    python examples/05_task_aware.py --figure out.svg   # and one figure (needs the plots extra)

Columns: `error` of ΔW in the Frobenius norm; `task` the error in the task norm of a calibration on training
texts; `divergence` from the LoRA's predictions on the dev texts, by which the best is chosen; `accuracy` on
the test texts, which choose nothing. "plain TT-SVD" is what a tensor train does to each layer alone.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import docstrings
import torch
from docstrings import ADAPTER, Split, encode, load_base, load_task
from safetensors.torch import load_file

from tntune.checkpoint.tensor_file import TENSORS_NAME
from tntune.convert import (
    CandidateReport,
    ConversionSettings,
    Distillation,
    Target,
    Task,
    Teacher,
    calibrate,
    convert_lora,
    export_lora,
    lora_factors,
    model_divergence,
    model_score,
    sweep_lora,
)

SHARES = (0.25, 0.05, 0.02)
AXES = {"divergence": "divergence from the LoRA", "score": "accuracy"}
TRAIN_LAYOUT = "f1 f2 (side w)"  # feature modes, then side and width: a train of three cores for every layer


# %% 1. What is known of the task: the model with its head, and three sets of texts


def load_model() -> tuple[torch.nn.Module, docstrings.Tokenizer]:
    """The encoder under the classifier that was trained with the LoRA."""
    model, tokenizer = load_base()
    head = {
        name.removeprefix("base_model.model."): value
        for name, value in load_file(ADAPTER / TENSORS_NAME).items()
        if "lora_" not in name
    }
    missing = model.load_state_dict(head, strict=False)
    assert not missing.unexpected_keys
    return model.requires_grad_(False), tokenizer


def describe(train: Split, dev: Split, test: Split) -> tuple[Task, Teacher]:
    """The calibration of the training texts, the judge on dev, the score on test; and the teacher."""
    model, tokenizer = load_model()

    def batches(split: Split, size: int = 32) -> list[dict[str, torch.Tensor]]:
        return [encode(tokenizer, split.texts[k : k + size]) for k in range(0, len(split), size)]

    def accuracy(adapted: torch.nn.Module) -> float:
        return docstrings.accuracy(adapted, tokenizer, test)

    seen = batches(train)
    task = Task(
        calibrate(model, seen, ADAPTER),
        model_divergence(model, batches(dev), ADAPTER),
        score=model_score(model, accuracy, ADAPTER),
    )
    return task, Teacher(model, seen, ADAPTER)


# %% 2. Every way, at every budget


def rows(task: Task, teacher: Teacher, shares: Sequence[float], steps: int) -> Iterator[CandidateReport]:
    """The LoRA; then at each budget TT-SVD, four truncated SVDs, what `auto` chooses, and that distilled."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        settings = [ConversionSettings(Target(params=share), "auto") for share in shares]
        sweep = sweep_lora(ADAPTER, folder / "sweep", settings, task=task)
        yield sweep.lora
        for point in sweep.points:
            yield layer_by_layer(task, folder / f"trains-{point.share:g}", point.share)
            yield from point.baselines
            yield point.written
            yield distilled(task, teacher, folder / f"distilled-{point.share:g}", point.share, steps)


def layer_by_layer(task: Task, folder: Path, share: float) -> CandidateReport:
    """Plain TT-SVD of each layer in its balanced gauge."""
    settings = ConversionSettings(Target(params=share), layouts=(TRAIN_LAYOUT,))
    report = convert_lora(ADAPTER, folder, settings)
    factors = lora_factors(export_lora(folder, folder.with_name(f"{folder.name}-lora")).output)
    return CandidateReport(
        "plain TT-SVD",
        report.params_after,
        report.relative_error,
        None,
        task.divergence(factors),
        (folder / TENSORS_NAME).stat().st_size,
        task.score.after(factors),
    )


def distilled(task: Task, teacher: Teacher, folder: Path, share: float, steps: int) -> CandidateReport:
    """What `auto` chooses, then trained to predict what the LoRA predicts."""
    own = replace(task, distillation=Distillation(teacher, steps))
    report = convert_lora(ADAPTER, folder, ConversionSettings(Target(params=share), "auto"), task=own)
    return next(each for each in report.candidates if each.name == report.chosen)


# %% 3. One table and one figure


def line(row: CandidateReport) -> str:
    """A row of the table."""
    numbers = (row.relative_error, row.task_error, row.divergence, row.score)
    cells = " | ".join("" if each is None else f"{each:.3f}" for each in numbers)
    return f"| {row.name} | {row.params:,} | {row.bytes:,} | {cells} |"


def curves(found: Sequence[CandidateReport]) -> dict[str, list[CandidateReport]]:
    """The rows by what made them: what is none of the baselines was chosen by `auto`."""
    baselines = {"plain TT-SVD": "plain TT-SVD", "svd": "SVD", "weighted svd": "weighted SVD"}
    kinds: dict[str, list[CandidateReport]] = {}
    for row in found[1:]:
        if not row.name.endswith("even ranks"):
            chosen = "auto, distilled" if row.name.endswith("distilled") else "auto"
            kinds.setdefault(baselines.get(row.name, chosen), []).append(row)
    return kinds


def draw(found: Sequence[CandidateReport], path: Path) -> None:
    """Divergence and accuracy over parameters, as SVG."""
    kinds = curves(found)

    drawing = import_module("matplotlib.figure").Figure(figsize=(9.6, 3.9), layout="constrained")
    for axis, read in zip(drawing.subplots(1, 2), ("divergence", "score"), strict=True):
        for name, own in kinds.items():
            axis.plot([row.params for row in own], [getattr(row, read) for row in own], "o-", label=name)
        axis.set(xlabel="parameters", xscale="log", ylabel=AXES[read])
        sizes = [row.params for row in kinds["plain TT-SVD"]]
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    drawing.axes[0].set_yscale("log")
    drawing.axes[0].legend()
    drawing.savefig(path, metadata={"Date": None})


def part(split: Split, most: int | None) -> Split:
    """At most so many texts, from all over the split."""
    step = -(-len(split) // (most or len(split)))
    return Split(split.texts[::step], split.targets[::step])


def main(
    *, shares: Sequence[float] = SHARES, steps: int = 120, texts: int = 1000, limit: int | None = None
) -> list[CandidateReport]:
    """Print the table; return its rows. `texts` to calibrate and train on; `limit` of those held out."""
    whole = load_task()
    train, dev, test = part(whole.train, texts), part(whole.dev, limit), part(whole.test, limit)
    task, teacher = describe(train, dev, test)
    print(f"{len(train)} texts to calibrate and distil on, {len(dev)} to choose by, {len(test)} to score\n")
    print("| stored as | parameters | bytes | error | task | divergence | accuracy |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for row in rows(task, teacher, shares, steps):
        found.append(row)
        print(line(row), flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, help="SVG to write")
    chosen = parser.parse_args().figure
    made = main()
    if chosen:
        draw(made, chosen)
