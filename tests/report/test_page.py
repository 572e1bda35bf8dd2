"""Laws: a page is one well-formed file that fetches nothing; summaries lose no layer and no failure."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.convert.sample import lora_folder
from tests.report.sample import MAPS, guide_folder, layer_of
from tntune.errors import OutputError
from tntune.report import (
    AnalysisReport,
    KernelReport,
    Probe,
    adapter_kernels,
    analysis_page,
    analyze_adapter,
    compare_methods,
    kernel_page,
    write_page,
)
from tntune.report.plots import curves
from tntune.report.summary import grid, shown, summarize
from tntune.theory import Bound

PROBE = Probe(samples=5, outputs=3)
VOID = {"meta", "br", "link", "img", "input", "hr", "use", "path"}


class Reader(HTMLParser):
    """Collects what a page refers to, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.sections: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag == "section":
            self.sections.append(own.get("id") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("folders")
    layers = {
        f"h.{k}.{name}": layer_of(MAPS[kind])
        for k in (0, 1)
        for name, kind in (("fc", "io w"), ("<b>", "latent"))
    }
    return [guide_folder(root / "guide", layers), lora_folder(root / "lora")]


def test_the_analysis_page(folders: list[Path]) -> None:
    pytest.importorskip("matplotlib")
    adapters = tuple(analyze_adapter(folder, PROBE) for folder in folders)
    report = AnalysisReport(
        "tntune analyze", PROBE, adapters, compare_methods(folders, PROBE, layer="h.0.fc")
    )
    text = analysis_page(report)
    page = read(text)
    assert page.sections == [
        "conditioning",
        "jacobian",
        "kernels",
        "descent",
        "generalisation",
        "bounds",
        "layers",
        "reading",
    ]
    assert all(reference.startswith("#") for reference in page.references)
    assert "http" not in text
    assert not {"script", "link", "img", "iframe", "b>"} & set(page.tags)
    assert page.tags.count("svg") == 2 + 3
    words = " ".join(page.text)
    assert all(name in words for name in ("h.0.fc", "h.1.<b>", "head", "tntune analyze", "torch", "E26+"))
    assert "fails" not in words.replace("fails in", "")
    assert "#0000" not in text.replace("#000000", "")
    assert analysis_page(report) == text


def test_the_kernel_page(folders: list[Path]) -> None:
    pytest.importorskip("matplotlib")
    report = KernelReport(
        "tntune ntk", PROBE, tuple(adapter_kernels(folder, PROBE) for folder in folders), ()
    )
    page = read(kernel_page(report))
    assert page.sections == ["layers"]
    assert page.tags.count("svg") == 4
    assert all(reference.startswith("#") for reference in page.references)


@pytest.mark.parametrize("sizes", [[421], [421, 438, 443], [1_000, 10_000, 100_000, 1_000_000, 12_500_000]])
def test_ticks_of_sizes_are_few_and_apart(sizes: list[int]) -> None:
    pytest.importorskip("matplotlib")
    errors = [1.0 / size for size in sizes]
    text = curves("demo", {"a": [("one", sizes, errors, 0, "o-")]}, x="parameters", y=["error"], log_x=True)
    labels = re.findall(r"<text[^>]*>([\d.]+[kM]?)</text>", text)
    assert 1 <= len(labels) <= 5
    assert set(labels) <= {"421", "438", "443", "1k", "10k", "100k", "1M", "12.5M"}


def test_pages_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_page(file, "one")
    with pytest.raises(OutputError, match="exists already"):
        write_page(file, "two")
    with pytest.raises(OutputError, match="has no UTF-8 form"):
        write_page(file, "\ud800", overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        write_page(tmp_path, "two", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert file.read_text() == "one"
    write_page(file, "two", overwrite=True)
    assert file.read_text() == "two"


def test_summaries_count_every_layer() -> None:
    good, bad = (Bound("T6", "s", 4.0, measured, ("a",)) for measured in (2.0, 8.0))
    (found,) = summarize([good, bad, good])
    assert (found.held, found.layers, found.tightest, found.example) == (2, 3, 0.5, bad)


def test_places_are_blocks_and_projections_or_a_list() -> None:
    rows, columns, places = grid(["a.10.x.2.q", "a.2.x.2.q", "a.2.k"])
    assert (rows, columns) == (["2", "10"], ["x.2.q", "k"])
    assert places["a.10.x.2.q"] == (1, 0)
    assert grid(["a.0.q", "b.0.q"])[0] == ["a.0.q", "b.0.q"]
    assert grid(["a.0.q", "head"])[1] == [""]


def test_numbers_for_people() -> None:
    cases = {0.0: "0", 1.0: "1", 999.6: "1,000", 123456.0: "123,000", 2e7: "2e+07", 0.5: "0.5", 1e-9: "1e-09"}
    assert {value: shown(value) for value in cases} == cases
