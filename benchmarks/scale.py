"""Does a 7B-shaped LoRA convert in bounded time, and in the memory that was stated beforehand?

    python benchmarks/scale.py
    python benchmarks/scale.py --layers 4          # an eighth of it

Makes a rank-16 LoRA of the shapes of Llama 7B (224 sites, bfloat16, random factors whose singular values
decay) and takes it through `convert --method joint --params 0.1`, `convert --method tensorguide --params
0.25` and `resize --params 0.25`, each in a process of its own. Memory is the growth of the process's peak
(VmHWM) over what it had after the imports; stated is what `tntune.convert.conversion_memory` or
`resize_memory` says before the work.
"""

import argparse
import json
import time
from pathlib import Path
from subprocess import PIPE, run
from sys import executable
from tempfile import TemporaryDirectory

import torch
from conversion import DTYPES, entries, megabytes

from tntune.checkpoint import open_lora, write_lora
from tntune.convert import (
    ConversionSettings,
    ResizeSettings,
    Target,
    conversion_memory,
    convert_lora,
    resize_lora,
    resize_memory,
)

TASKS = {"joint": 0.1, "tensorguide": 0.25, "resize": 0.25}


def measured(source: Path, task: str) -> dict[str, float]:
    """One conversion in this process: stated and measured memory, time, sizes and error."""
    share, output = TASKS[task], source.with_name(task)
    settings = ConversionSettings(Target(params=share), "joint" if task == "resize" else task)
    opened = open_lora(source)
    stated = (
        resize_memory(opened, ResizeSettings(params=share))
        if task == "resize"
        else conversion_memory(opened, settings)
    )
    before, start, busy = megabytes("VmHWM"), time.perf_counter(), time.process_time()
    report = (
        resize_lora(source, output, ResizeSettings(params=share))
        if task == "resize"
        else convert_lora(source, output, settings)
    )
    return {
        "seconds": time.perf_counter() - start,
        "busy": time.process_time() - busy,
        "growth": megabytes("VmHWM") - before,
        "stated": stated / 1e6,
        "before": report.params_before / 1e6,
        "after": report.params_after / 1e6,
        "error": report.relative_error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32, help="decoder layers of seven sites each")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    parser.add_argument("--convert", type=Path, help="convert the adapter there by one task, and no more")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.convert:
        print(json.dumps(measured(options.convert, *options.task)))
        return
    print("| task | parameters | time | CPU time | memory stated | measured | stated / measured | error |")
    print("|---|---|---|---|---|---|---|---|")
    with TemporaryDirectory() as parent:
        lora = Path(parent) / "lora"
        write_lora(lora, entries(options.layers, DTYPES[options.dtype]), base_config={})
        for task in options.task:
            command = [executable, __file__, "--convert", str(lora), "--task", task]
            command += ["--threads", str(options.threads)]
            row = json.loads(run(command, check=True, stdout=PIPE, text=True).stdout)
            print(
                f"| {task} to {TASKS[task]:.0%} | {row['before']:.1f} M to {row['after']:.2f} M "
                f"| {row['seconds']:.0f} s | {row['busy']:.0f} s | {row['stated']:.0f} MB "
                f"| {row['growth']:.0f} MB | {row['stated'] / row['growth']:.2f} | {row['error']:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
