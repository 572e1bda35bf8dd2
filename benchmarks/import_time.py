"""How long does `import tntune` take beside `import torch`? `python benchmarks/import_time.py`."""

import argparse
import statistics
import subprocess
import sys
import time

STATEMENTS = ("import torch", "import torch, tltorch", "import tntune", "import tntune.cli.main")


def seconds(statement: str) -> float:
    """Wall time of a fresh interpreter that runs one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main(*, runs: int) -> None:
    for statement in STATEMENTS:
        seconds(statement)  # warm the file cache
    times = {statement: [] for statement in STATEMENTS}
    for _ in range(runs):
        for statement in STATEMENTS:
            times[statement].append(seconds(statement))
    medians = {statement: statistics.median(values) for statement, values in times.items()}
    print("| statement | median s | over torch |")
    print("|---|---|---|")
    for statement, median in medians.items():
        print(f"| `{statement}` | {median:.2f} | {median / medians[STATEMENTS[0]]:.2f}x |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    main(runs=parser.parse_args().runs)
