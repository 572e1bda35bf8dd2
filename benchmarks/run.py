"""Run the benchmarks, write their tables to `results/`, and say which bars are met.

    python benchmarks/run.py --all                 # every script, somewhat less than half an hour
    python benchmarks/run.py layer generator       # these only
    python benchmarks/run.py --all --json          # the records on stdout as one JSON document
    python benchmarks/run.py --readme              # rewrite the README's bars and the tables of docs/cost.md

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
from common.chart import chart

HERE = Path(__file__).parent
README, COST = HERE.parent / "README.md", HERE.parent / "docs" / "cost.md"
SMALL_GPT2 = ("--layers", "12", "--rows", "4", "--tokens", "256", "--rounds", "5")
VARIANTS = {
    "layer": {"": (), "layer_7b_up": ("--outputs", "11008", "--rounds", "7")},
    "peft_step": {"": SMALL_GPT2},
    "growth": {"": ("--plot", str(HERE / "results" / "growth.png"))},
}
"""Arguments by name of the table, where it is not the script's own with its defaults."""


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

    def line(self, ratio: float | None) -> str:
        """A row of the table of bars."""
        bar = f"{'at most' if self.most else 'at least'} {self.limit:g}"
        found, verdict = "", "not measured"
        if ratio is not None:
            found = f"{ratio:g}"
            verdict = "met" if (ratio <= self.limit if self.most else ratio >= self.limit) else "missed"
        return f"| {' | '.join((', '.join(self.row), bar, found, verdict, f'`{self.script}`'))} |"


STEP, DECODED = "training step", "16 tokens decoded"
GENERATED = "start published: forward"
BARS = (
    Bar("layer", ("layer, forward and backward", "TensorGuide"), "times LoRA's", 1.10),
    Bar("layer", ("layer, one token", "TensorGuide"), "times LoRA's", 1.02),
    Bar("layer", ("adapter alone, forward and backward, tltorch / ours",), "times LoRA's", 5, most=False),
    Bar("layer_7b_up", ("layer, forward and backward", "TensorGuide"), "times LoRA's", 1.10),
    Bar("peft_step", (STEP, "TensorGuide"), "times LoRA's", 1.10),
    Bar("peft_step", (STEP, "TensorGuide, shared"), "times LoRA's", 1.10),
    Bar("peft_step", (DECODED, "TensorGuide"), "times LoRA's", 1.02),
    Bar("peft_step", ("peak memory", "TensorGuide"), "times LoRA's", 1.05),
    Bar("generator", (f"{GENERATED} and backward, against einsum",), "other / ours", 3, most=False),
    Bar("generator", (f"{GENERATED}, against filling",), "ours / other", 12),
    Bar("gpu", (f"{STEP}, autocast bfloat16", "TensorGuide"), "ratio", 1.03),
    Bar("gpu", (f"{STEP}, autocast float16", "TensorGuide"), "ratio", 1.03),
    Bar("gpu", ("generation of 224 sites, forward", "one by one, a CUDA graph"), "ms", 0.3),
    Bar("gpu", (f"{DECODED}, autocast bfloat16", "TensorGuide"), "ratio", 1.02),
)
"""Those of ``gpu`` need one; elsewhere they say that they were not measured."""


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


def run(script: str) -> bool:
    """Run one script, write its tables and charts; whether it succeeded."""
    (HERE / "results").mkdir(exist_ok=True)
    for variant, arguments in VARIANTS.get(script, {"": ()}).items():
        command = [sys.executable, "-W", "ignore", str(HERE / f"{script}.py"), *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            return False
        name = variant or script
        heading = f"# {name}\n\nMade by `python benchmarks/run.py {script}` on {machine()}.\n\n"
        (HERE / "results" / f"{name}.md").write_text(heading + done.stdout, encoding="utf-8")
        chart(list(rows(done.stdout)), HERE / "results" / f"{name}.png")
    return True


def records() -> dict[str, list[dict[str, str]]]:
    """What the tables hold, by script."""
    return {
        path.stem: list(rows(path.read_text("utf-8"))) for path in sorted((HERE / "results").glob("*.md"))
    }


def bars() -> list[str]:
    """The table of bars, as far as the tables are there."""
    known = records()
    head = ["| what | bar | measured | | table |", "|---|---|---|---|---|"]
    return head + [bar.line(bar.found(known.get(bar.script, []))) for bar in BARS]


def fill(page: Path, name: str, lines: list[str]) -> None:
    """Put these lines between the two comments of that name."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = "\n".join([begin, *lines, end])
    text = re.sub(f"{begin}.*{end}", lambda _: section, page.read_text("utf-8"), flags=re.DOTALL)
    page.write_text(text, encoding="utf-8")


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
        fill(README, "benchmarks", bars())
        fill(COST, "cost", (HERE / "results" / "cost.md").read_text("utf-8").splitlines()[2:])
    print(json.dumps(records(), indent=2) if options.json else "\n".join(bars()))
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
