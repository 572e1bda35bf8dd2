"""How long does it take to convert a 40 M parameter adapter, and how much memory?

    python benchmarks/conversion.py

Makes a rank-16 LoRA of the shapes of Llama 7B (seven projections in each of 32 layers, random factors whose
singular values decay) and converts it to half of its parameters, each method in a process of its own. Memory
is the peak of the process (VmHWM), less what it had after the imports.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from common.memory import megabytes

from tntune.checkpoint import LoraEntry, write_lora
from tntune.convert import ConversionSettings, Target, convert_lora

HIDDEN, MLP, RANK = 4096, 11008, 16
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, MLP),
    "mlp.up_proj": (HIDDEN, MLP),
    "mlp.down_proj": (MLP, HIDDEN),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def entries(layers: int, dtype: torch.dtype) -> Iterator[LoraEntry]:
    """Factors of every projection, the singular values of each falling by a rate of its own."""
    generator = torch.Generator().manual_seed(0)
    for layer in range(layers):
        for name, (in_features, out_features) in SHAPES.items():
            rate = 0.7 + 0.29 * torch.rand(1, generator=generator)
            decay = rate ** torch.arange(RANK)
            down = torch.randn(RANK, in_features, generator=generator) / in_features**0.5
            up = torch.randn(out_features, RANK, generator=generator) / out_features**0.5
            yield LoraEntry(f"model.layers.{layer}.{name}", down.to(dtype), (up * decay).to(dtype))


def measured(source: Path, output: Path, method: str, share: float) -> dict[str, float]:
    """One conversion in this process: its time, its memory and its report."""
    before, start, busy = megabytes(), time.perf_counter(), time.process_time()
    report = convert_lora(source, output, ConversionSettings(Target(params=share), method))
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    peak = megabytes()
    return {
        "seconds": seconds,
        "busy": busy,
        "growth": peak - before,
        "peak": peak,
        "file": report.bytes_before / 1e6,
        "before": report.params_before / 1e6,
        "after": report.params_after / 1e6,
        "error": report.relative_error,
        "svd_error": report.svd_relative_error or 0.0,
    }


def in_child(arguments: list[str]) -> str:
    """Standard output of this script in a fresh process."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--params", type=float, default=0.5, help="share of the parameters to keep")
    parser.add_argument("--method", nargs="+", default=["tensorguide", "auto"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--make", type=Path, help="make the adapter there, and no more")
    parser.add_argument("--convert", type=Path, help="convert the adapter there by one method, and no more")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.make:
        write_lora(options.make, entries(options.layers, DTYPES[options.dtype]), base_config={})
        return
    if options.convert:
        (method,) = options.method
        output = options.convert.with_name(method)
        print(json.dumps(measured(options.convert, output, method, options.params)))
        return
    print("| method | parameters | time | cores | peak memory | growth | of the file | error | SVD error |")
    print("|---|---|---|---|---|---|---|---|---|")
    with TemporaryDirectory() as parent:
        lora, passed = Path(parent) / "lora", ["--params", str(options.params)]
        passed += ["--threads", str(options.threads)]
        in_child(["--make", str(lora), "--layers", str(options.layers), "--dtype", options.dtype])
        for method in options.method:
            row = json.loads(in_child(["--convert", str(lora), "--method", method, *passed]))
            print(
                f"| {method} | {row['before']:.1f} M to {row['after']:.1f} M | {row['seconds']:.1f} s "
                f"| {row['busy']:.1f} s | {row['peak']:.0f} MB | {row['growth']:.0f} MB "
                f"| {row['growth'] / row['file']:.2f} "
                f"| {row['error']:.4f} | {row['svd_error']:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
