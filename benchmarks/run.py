"""Run the benchmarks, write their tables to `results/`, and say which bars are met.

    python benchmarks/run.py --all                 # every script, about half an hour
    python benchmarks/run.py layer generator       # these only
    python benchmarks/run.py --all --json          # the records on stdout as one JSON document
    python benchmarks/run.py --readme              # rewrite the README's section from these tables

A table is what a script prints; a record is one of its rows by column. Nothing is judged but the bars below.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"


@dataclass(frozen=True)
class Bar:
    """A ratio that one row of a table must keep: at most, or at least, a limit.

    Attributes:
        script: Whose table.
        row: Texts that all occur in the row.
        column: Column of the ratio.
        limit: Its limit.
        most: Whether the limit is an upper one.
    """

    script: str
    row: tuple[str, ...]
    column: str
    limit: float
    most: bool = True

    def found(self, records: list[dict[str, str]]) -> float | None:
        """The ratio, where the table has the row."""
        for record in records:
            if all(any(text == cell for cell in record.values()) for text in self.row):
                return float(re.findall(r"[\d.]+", record[self.column])[0])
        return None

    def line(self, ratio: float) -> str:
        """A row of the table of bars."""
        met = ratio <= self.limit if self.most else ratio >= self.limit
        bar = f"{'at most' if self.most else 'at least'} {self.limit:g}"
        cells = (", ".join(self.row), bar, f"{ratio:g}", "met" if met else "missed", f"`{self.script}`")
        return f"| {' | '.join(cells)} |"


BARS = (
    Bar("layer", ("layer, forward and backward", "TensorGuide"), "times LoRA's", 1.10),
    Bar("layer", ("layer, one token", "TensorGuide"), "times LoRA's", 1.02),
    Bar("peft_step", ("training step", "TensorGuide"), "times LoRA's", 1.10),
    Bar("peft_step", ("training step", "TensorGuide, shared"), "times LoRA's", 1.10),
    Bar("peft_step", ("forward", "TensorGuide"), "times LoRA's", 1.05),
    Bar("peft_step", ("16 tokens decoded", "TensorGuide"), "times LoRA's", 1.02),
    Bar("peft_step", ("peak memory", "TensorGuide"), "times LoRA's", 1.05),
    Bar(
        "generator", ("start published: forward and backward, against einsum",), "other / ours", 3, most=False
    ),
    Bar("generator", ("start published: forward, against filling",), "ours / other", 12),
)


def scripts() -> list[str]:
    """All benchmarks but this one."""
    return sorted(path.stem for path in HERE.glob("*.py") if path != Path(__file__))


def rows(text: str) -> Iterator[dict[str, str]]:
    """The rows of every Markdown table in a text, by column."""
    head: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if not head:
            head = cells
        elif not set(line) <= set("|-: "):
            yield dict(zip(head, cells, strict=False))


def machine() -> str:
    """What the tables were made on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    versions = f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {device}, {versions}"


def run(name: str) -> bool:
    """Run one script and write its table; whether it succeeded."""
    command = [sys.executable, "-W", "ignore", str(HERE / f"{name}.py")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        heading = f"# {name}\n\nMade by `python benchmarks/run.py {name}` on {machine()}.\n\n"
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / f"{name}.md").write_text(heading + done.stdout, encoding="utf-8")
    return done.returncode == 0


def records() -> dict[str, list[dict[str, str]]]:
    """What the tables hold, by script."""
    return {
        path.stem: list(rows(path.read_text("utf-8"))) for path in sorted((HERE / "results").glob("*.md"))
    }


def bars() -> list[str]:
    """The table of bars, for the tables that are there."""
    known = records()
    found = [(bar, bar.found(known.get(bar.script, []))) for bar in BARS]
    head = ["| what | bar | measured | | table |", "|---|---|---|---|---|"]
    return head + [bar.line(ratio) for bar, ratio in found if ratio is not None]


def main() -> int:
    """Number of scripts that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(scripts())}")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--json", action="store_true", help="print the records of all tables")
    parser.add_argument("--readme", action="store_true", help="rewrite the section of the README")
    options = parser.parse_args()
    wanted = scripts() if options.all else options.names
    if not set(wanted) <= set(scripts()):
        parser.error(f"no such benchmark: {', '.join(sorted(set(wanted) - set(scripts())))}")
    failed = [name for name in wanted if not run(name)]
    if options.readme:
        text = README.read_text("utf-8")
        section = "\n".join([BEGIN, *bars(), END])
        README.write_text(
            re.sub(f"{BEGIN}.*{END}", lambda _: section, text, flags=re.DOTALL), encoding="utf-8"
        )
    print(json.dumps(records(), indent=2) if options.json else "\n".join(bars()))
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
