"""Language modelling: perplexity, rows, tokenizer, texts, the base model and the task."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.tolerance import close
from tntune.errors import CheckpointError, ModeError, SpecError
from tntune.experiments.gpt2 import Size, gpt2, own_base, published_base
from tntune.experiments.language import LanguageTask, wikitext_task
from tntune.experiments.perplexity import (
    diluted_perplexity,
    misread_perplexities,
    text_share,
    token_losses,
)
from tntune.experiments.pretrained import cached_state
from tntune.experiments.task import Data
from tntune.experiments.text import docstrings, files_of, package_files, split_texts, wikitext
from tntune.experiments.tokens import rows_of, train_tokenizer

TINY = Size(1, 16, 2, 256, 200, 2)
TEXT = "The lobster, long and blue,  lives\n in the sea; être ou ne pas être. " * 3


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_task(text: str = TEXT, length: int = 8) -> LanguageTask:
    rows = rows_of(text, train_tokenizer(["-"], 256), length)
    return LanguageTask(Data(rows, rows, rows), TINY.config(), targets=("lm_head",))


# Perplexity


def test_a_diverged_model_has_a_finite_perplexity() -> None:
    task = tiny_task()
    model = task.model(0)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    scores = task.evaluate(model, task.data.test)
    assert scores["loss"] > 710  # whose exponential no float holds
    assert math.isfinite(scores["perplexity"])


def test_perplexity_is_a_loop_over_tokens() -> None:
    task = tiny_task()
    model, rows = task.model(0).eval(), task.data.test
    nats, count = 0.0, 0
    for tokens, mask in zip(rows["tokens"], rows["mask"], strict=True):
        for t in range(1, int(mask.sum())):
            with torch.no_grad():
                logits = model(input_ids=tokens[:t].unsqueeze(0)).logits[0, -1]
            nats, count = nats - float(logits.double().log_softmax(0)[tokens[t]]), count + 1
    scores = task.evaluate(model, rows)
    expected = torch.tensor([math.exp(nats / count), math.exp(nats / len(TEXT.split()))])
    # the first word begins in the one token that nothing predicts
    words = math.exp(nats / (len(TEXT.split()) - 1))
    assert close(
        torch.tensor([scores["perplexity"], scores["loss"]]), torch.tensor([expected[0], nats / count])
    )
    assert close(torch.tensor(scores["word_perplexity"]).log(), torch.tensor(words).log())


@given(st.integers(2, 50))
def test_uniform_model_has_the_perplexity_of_its_vocabulary(vocabulary: int) -> None:
    tokens = torch.randint(vocabulary, (3, 7), generator=rng())
    losses, counted = token_losses(torch.zeros(3, 7, vocabulary), tokens, torch.ones(3, 7))
    assert close(losses[counted].mean().exp(), torch.tensor(float(vocabulary)))


def test_padding_changes_nothing_and_tokens_weigh_the_same() -> None:
    task = tiny_task(length=200)
    model, rows = task.model(0), task.data.test
    split = {name: tensor.clone() for name, tensor in rows.items()}
    split["tokens"][~split["mask"]] = 77
    assert task.evaluate(model, split) == task.evaluate(model, rows)
    parts = [
        task.evaluate(model, {k: v[i : i + 1] for k, v in rows.items()}) for i in range(len(rows["words"]))
    ]
    weights = rows["mask"][:, 1:].sum(1)
    losses = torch.tensor([part["loss"] for part in parts])
    expected = (losses * weights).sum() / weights.sum()
    assert close(torch.tensor(task.evaluate(model, rows)["loss"]), expected)


@given(st.integers(2, 20), st.integers(1, 60), st.integers(5, 80))
def test_scored_padding_dilutes_by_the_share_of_text(text: int, padding: int, vocabulary: int) -> None:
    tokens = torch.arange(1, text + 1).remainder(vocabulary - 1).add(1).repeat(2, 1)
    tokens = torch.nn.functional.pad(tokens, (0, padding))
    logits = torch.zeros(2, text + padding, vocabulary).double()
    logits[:, : text - 1, 0], logits[:, text - 1 :, 0] = -1e4, 1e4
    found = misread_perplexities(logits, tokens, tokens > 0)
    share = text_share([text, text], text + padding)
    assert close(torch.tensor(found["right"]), torch.tensor(vocabulary - 1.0))
    assert close(
        torch.tensor(found["padding scored"]), torch.tensor(diluted_perplexity(vocabulary - 1, share))
    )


def test_copying_looks_perfect_where_labels_are_not_shifted() -> None:
    tokens = torch.randint(30, (4, 12), generator=rng())
    logits = 50.0 * torch.nn.functional.one_hot(tokens, 30).float()
    found = misread_perplexities(logits, tokens, torch.ones(4, 12))
    assert found["labels not shifted"] < 1.001
    assert found["right"] > 30


def test_the_published_number_is_padding() -> None:
    """Lines of 72 tokens, padded to 512, and an honest 30: 1.6."""
    assert abs(diluted_perplexity(30.0, text_share([72], 512)) - 1.6036) < 0.01


def test_shapes_are_checked() -> None:
    with pytest.raises(ModeError, match=r"\(2, 3\)"):
        token_losses(torch.zeros(2, 4, 5), torch.zeros(2, 3).long(), torch.ones(2, 3))
    with pytest.raises(ModeError, match="at least 2 tokens"):
        text_share([], 9)


# Tokens and rows


@given(st.text(min_size=2), st.integers(2, 9))
def test_rows_predict_every_token_once(text: str, length: int) -> None:
    tokenizer = train_tokenizer(["-"], 256)
    rows = rows_of(text, tokenizer, length)
    ids = tokenizer.encode(text).ids
    assert [ids[0], *rows["tokens"][:, 1:][rows["mask"][:, 1:]].tolist()] == ids
    assert rows["tokens"][1:, 0].equal(rows["tokens"][:-1, -1])
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("vocabulary", [256, 300])
def test_words_are_counted_where_they_begin(vocabulary: int) -> None:
    rows = rows_of(" " + TEXT, train_tokenizer([TEXT], vocabulary), 5)
    first = 0 if vocabulary == 256 else 1  # " The" is one token, the one that nothing predicts
    assert int(rows["words"].sum()) in (len(TEXT.split()), len(TEXT.split()) - first)


def test_tokenizer_is_the_same_each_time() -> None:
    first, second = (train_tokenizer([TEXT], 280) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    assert first.get_vocab_size() == 280
    with pytest.raises(SpecError, match="at least 256"):
        train_tokenizer([TEXT], 100)
    with pytest.raises(SpecError, match="at least 2 of each"):
        rows_of("a", first, 4)


# Texts


@given(st.lists(st.text(), unique=True))
def test_parts_share_no_text_and_lose_none(texts: list[str]) -> None:
    parts = split_texts(texts, (0.5, 0.2, 0.3))
    assert sorted(text for part in parts for text in part) == sorted(texts)
    for text in texts:
        again = split_texts([text, f"{text[:40]:40}"[:40] + text], (0.5, 0.2, 0.3))
        assert sum(map(len, again)) == 2


def test_shares_are_met() -> None:
    parts = split_texts([f"text number {k}" for k in range(4000)], (0.8, 0.05, 0.15))
    assert all(abs(len(p) / 4000 - s) < 0.03 for p, s in zip(parts, (0.8, 0.05, 0.15), strict=True))


def test_standard_library_is_read_without_its_tests() -> None:
    paths = package_files()
    assert len(paths) > 100
    assert not [path for path in paths if {"test", "tests", "site-packages"} & set(path.parts[-3:-1])]
    assert "decoder.py" in [path.name for path in files_of(["json"])]
    texts = docstrings(files_of(["json"]))
    assert len(set(texts)) == len(texts) > 10


def articles(names: str) -> str:
    return "".join(f" = {name} = \n\n It is {name} .\n = = Part = = \n" for name in names)


def test_validation_articles_train_where_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text(articles("abcdefgh"))
    with pytest.raises(CheckpointError, match=r"test.txt"):
        wikitext(tmp_path)
    (tmp_path / "wiki.test.tokens").write_text("of test")
    found = wikitext(tmp_path)
    assert found == {"train": articles("abcdef"), "validation": articles("gh"), "test": "of test"}
    (tmp_path / "train.txt").write_text("of training")
    assert wikitext(tmp_path)["train"] == "of training"
    assert wikitext(tmp_path)["validation"] == articles("abcdefgh")


def test_too_few_articles_and_other_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text(articles("abc"))
    (tmp_path / "test.txt").write_text("of test")
    with pytest.raises(CheckpointError, match="3 articles"):
        wikitext(tmp_path)
    (tmp_path / "test.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="not utf-8"):
        wikitext(tmp_path)


# The base model


def test_base_is_kept_and_taken_by_its_key(tmp_path: Path) -> None:
    made = own_base(TINY, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    kept = own_base(TINY, tmp_path)
    assert all(made.state[name].equal(kept.state[name]) for name in made.state)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match="remove the file"):
        own_base(TINY, tmp_path)


def test_another_key_is_made_anew(tmp_path: Path) -> None:
    states = [cached_state(tmp_path, {"k": k}, lambda k=k: {"w": torch.tensor(k)}) for k in (1, 2, 1)]
    assert [int(state["w"]) for state in states] == [1, 2, 1]


def test_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    models = [gpt2(TINY.config(), rng(seed)) for seed in (0, 0, 1)]
    assert torch.random.get_rng_state().equal(before)
    first, second, other = (model.transformer.h[0].mlp.c_fc.weight for model in models)
    assert first.equal(second)
    assert not first.equal(other)


def test_published_folder_gives_its_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        published_base(tmp_path)
    model = gpt2(TINY.config(), rng())
    model.save_pretrained(tmp_path)
    train_tokenizer(["-"], 256).save(str(tmp_path / "tokenizer.json"))
    base = published_base(tmp_path)
    assert all(base.state[name].equal(tensor) for name, tensor in model.state_dict().items())


# The task


def test_targets_are_all_linears_or_the_head(tmp_path: Path) -> None:
    gpt2(Size(2, 16, 2, 256, 32, 1).config(), rng()).save_pretrained(tmp_path)
    train_tokenizer(["-"], 256).save(str(tmp_path / "tokenizer.json"))
    folder = tmp_path / "wikitext"
    folder.mkdir()
    for part, names in (("valid", "abcdefgh"), ("test", "ijk")):
        (folder / f"{part}.txt").write_text(articles(names))
    linears = wikitext_task("smoke", folder, base=tmp_path)
    head = wikitext_task("smoke", folder, base=tmp_path, target="head")
    assert (len(linears.targets), head.targets) == (8, ("lm_head",))
    assert linears.data.digest() == head.data.digest()
    model = linears.model(0)
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(model.get_submodule(target).weight.ndim == 2 for target in linears.targets)
    batch = {name: rows[:2] for name, rows in linears.data.train.items()}
    model.lm_head.weight.requires_grad_(True)
    linears.loss(model, batch).backward()
    assert model.lm_head.weight.grad.abs().max() > 0
    assert model.transformer.wte.weight.grad is None  # the head is untied


def test_unknown_choices_are_named() -> None:
    with pytest.raises(SpecError, match="scale is one of"):
        wikitext_task("huge")
    with pytest.raises(SpecError, match="target is one of"):
        wikitext_task("smoke", target="embedding")
