"""Convert a trained LoRA, export it back, and score every version: `make demo` (minutes on two cores).

Columns: `error` is the relative error of ΔW against the LoRA as trained, over all layers; `SVD` that of plain
SVD truncation with as many parameters; `agrees` the share of held-out texts that get the LoRA's label.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from docstrings import ADAPTER, Split, hit_rate, load_base, load_task, logits
from peft import PeftModel

from tntune.adapters import load_adapters, set_enabled
from tntune.checkpoint import open_adapter
from tntune.convert import ConversionSettings, Target, compare_adapters, convert_lora, export_lora

SHARES = (0.5, 0.25)


class Row(NamedTuple):
    """One version of the adapter."""

    name: str
    params: int
    size: int
    error: float
    svd: float | None
    scores: torch.Tensor


# %% 1. Scores: through PEFT for LoRA folders, through tntune for converted ones


def score_peft(folder: Path, split: Split) -> torch.Tensor:
    model, tokenizer = load_base()
    return logits(PeftModel.from_pretrained(model, folder), tokenizer, split.texts)


def score_tntune(folder: Path, split: Split, *, enabled: bool = True) -> torch.Tensor:
    model, tokenizer = load_base()
    set_enabled(load_adapters(model, folder), enabled)
    return logits(model, tokenizer, split.texts)


# %% 2. Convert at several sizes, export each to a plain LoRA, verify both against the original


def versions(source: Path, folder: Path, split: Split, shares: Sequence[float]) -> Iterator[Row]:
    lora = open_adapter(source)
    yield Row("LoRA as trained", lora.params, lora.num_bytes, 0.0, None, score_peft(source, split))
    for share in shares:
        converted, exported = folder / f"guide-{share}", folder / f"lora-{share}"
        report = convert_lora(source, converted, ConversionSettings(Target(params=share)))
        error = compare_adapters(source, converted).relative_error
        if abs(error - report.relative_error) > 1e-5:
            raise SystemExit(f"verify found {error}, the report says {report.relative_error}")
        if share == shares[0]:
            off = score_tntune(converted, split, enabled=False)
            yield Row("adapter off, same head", 0, 0, 1.0, None, off)
        scores = score_tntune(converted, split)
        svd = report.svd_relative_error
        yield Row(f"TensorGuide, {share:.0%}", report.params_after, report.bytes_after, error, svd, scores)
        back = export_lora(converted, exported)
        error = compare_adapters(source, exported).relative_error
        scores = score_peft(exported, split)
        yield Row("  exported to LoRA", back.params_after, back.bytes_after, error, svd, scores)


# %% 3. One table


def main(*, source: Path = ADAPTER, shares: Sequence[float] = SHARES, limit: int | None = None) -> list[Row]:
    """Print the table; return its rows. `limit` takes the first held-out texts only."""
    test = load_task().test
    split = Split(test.texts[:limit], test.targets[:limit])
    print(f"{len(split)} held-out texts, {source.name}\n")
    print(f"| {'':24} | {'parameters':>10} | {'bytes':>9} | {'error':>6} | {'SVD':>6} | accuracy | agrees |")
    print(f"|{'-' * 26}|{'-' * 12}|{'-' * 11}|{'-' * 8}|{'-' * 8}|----------|--------|")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in versions(source, Path(folder), split, shares):
            rows.append(row)
            svd = "-" if row.svd is None else f"{row.svd:.4f}"
            agrees = float((row.scores.argmax(1) == rows[0].scores.argmax(1)).double().mean())
            cells = f"| {row.name:24} | {row.params:10,} | {row.size:9,} | {row.error:6.4f} | {svd:>6} "
            print(f"{cells}| {hit_rate(row.scores, split):8.3f} | {agrees:6.3f} |", flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, default=ADAPTER, help="LoRA folder on this base")
    main(source=parser.parse_args().source)
