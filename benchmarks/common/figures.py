"""Figures: what the README says of speed, each put together from cells of the tables in `results/`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["FIGURES", "Figure", "Records", "cell", "figures"]

Records = Mapping[str, Sequence[Mapping[str, str]]]
"""The rows of each table, by column."""


def cell(rows: Sequence[Mapping[str, str]], texts: tuple[str, ...], column: str) -> str | None:
    """The cell of a column in the first row that has all these texts as cells, if there is one."""
    for row in rows:
        if all(text in row.values() for text in texts):
            return row[column]
    return None


@dataclass(frozen=True)
class Figure:
    """One line of the README.

    Attributes:
        question: What was asked.
        script: The benchmark that answers, and the name of its table.
        text: The answer, with a pair of braces for each cell.
        cells: Texts of a row, and a column, for each pair of braces.
        options: Of the script.
    """

    question: str
    script: str
    text: str
    cells: tuple[tuple[tuple[str, ...], str], ...]
    options: str = ""

    def line(self, records: Records) -> str:
        """A row of the README's table."""
        found = [cell(records.get(self.script, ()), *place) for place in self.cells]
        answer = "not measured" if None in found else self.text.format(*found)
        command = f"python benchmarks/{self.script}.py {self.options}".strip()
        return f"| {self.question} | {answer} | `{command}` |"


TRAIN, FACTORS = "2^40: 4^20, r = 6", "2^16: 4^8, r = 6"
FASTER = "{}x / {}x faster; errors {} / {} (ours {})"
OVER = "times LoRA's"


def _svd(dtype: str) -> tuple[tuple[tuple[str, ...], str], ...]:
    size, peers = f"2^24 {dtype}", ("tensorly", "torchTT")
    ratios = tuple(((size, peer), "ratio") for peer in peers)
    return (*ratios, *(((size, library), "error") for library in (*peers, "tntune")))


FIGURES = (
    Figure(
        "TT-SVD of 2^24 numbers, float64, tolerance 1e-6, against tensorly / torchTT",
        "tt_svd",
        FASTER,
        _svd("float64"),
        "--size 24",
    ),
    Figure("the same in float32, tolerance 1e-3", "tt_svd", FASTER, _svd("float32"), "--size 24"),
    Figure(
        "rounding, time over torchTT's: 4^20 r20 / 32^5 r20 / 16^6 r120, ranks halved",
        "rounding",
        "{} / {} / {}, equal errors",
        tuple(((case, "tntune"), "ratio") for case in ("4^20 r20->10", "32^5 r20->10", "16^6 r120->60")),
    ),
    Figure(
        "converting a LoRA of the shapes of Llama 7B (224 layers, 40 M numbers, 160 MB) to half",
        "conversion",
        "{}; {} above the imports, {} times the file; error {}, plain SVD {}",
        tuple(
            (("tensorguide",), column) for column in ("time", "growth", "of the file", "error", "SVD error")
        ),
    ),
    Figure(
        "the same to a tenth, with bases shared by all layers",
        "scale",
        "{}; {} (stated beforehand: at most {})",
        tuple((("joint to 10%",), column) for column in ("time", "measured", "memory stated")),
    ),
    Figure(
        "training step of GPT-2's small shape (4 x 256 tokens) over PEFT LoRA's: per layer / shared",
        "peft_step",
        "{} / {}",
        tuple((("training step", name), OVER) for name in ("TensorGuide", "TensorGuide, shared")),
        "--layers 12 --rows 4 --tokens 256",
    ),
    Figure(
        "its forward / 16 decoded tokens, over LoRA's, per layer",
        "peft_step",
        "{} / {}",
        tuple(((what, "TensorGuide"), OVER) for what in ("forward", "16 tokens decoded")),
        "--layers 12 --rows 4 --tokens 256",
    ),
    Figure(
        "generating the factors of 48 such sites, together over one by one",
        "batching",
        "{}x faster, {} products of matrices",
        tuple(
            (("GPT-2 small", "48"), column) for column in ("alone / together", "products alone / together")
        ),
    ),
    Figure(
        "`import tntune` over `import torch`",
        "import_time",
        "{}",
        ((("`import tntune`",), "over torch"),),
    ),
    Figure(
        "exact JᵀJ of a train of 2^40 entries, 2,528 parameters",
        "jacobian",
        "{}, with its spectrum {}",
        (((TRAIN, "JᵀJ"), "time"), ((TRAIN, "JᵀJ and its spectrum"), "time")),
    ),
    Figure(
        "the same at 2^16 entries against `torch.func`",
        "jacobian",
        "{} in time, {} in the result",
        tuple(((FACTORS, what), "ratio, gap or rank") for what in ("torch.func.jacfwd and a product", "JᵀJ")),
    ),
    Figure(
        "tangent kernel of a LoRA layer (512 features, width 64): jacrev+vmap / nngeometry over ours",
        "ntk",
        "{} / {}",
        tuple((("LoRA layer", route), "ratio") for route in ("torch.func", "nngeometry")),
    ),
    Figure(
        "tangent kernel through a train: jacrev+vmap over ours",
        "ntk",
        "{}",
        ((("TT layer", "torch.func"), "ratio"),),
    ),
    Figure(
        "the same of a small transformer with LoRA / with trains",
        "ntk",
        "{} / {}",
        tuple(((case, "torch.func"), "ratio") for case in ("LoRA transformer", "TT transformer")),
    ),
)


def figures(records: Records) -> list[str]:
    """The table, as far as the tables that it reads are there."""
    head = ["| question | figure | command |", "|---|---|---|"]
    return head + [figure.line(records) for figure in FIGURES]
