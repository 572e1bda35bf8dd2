"""Law: a LoRA folder whose update is not known for certain is refused in one line: file, key, reason."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoint.sample import (
    CONFIG,
    TENSORS,
    Damage,
    both,
    config,
    lora_config,
    lora_folder,
    raw,
    remove,
    tensors,
    truncate,
)
from tntune.checkpoint import open_lora
from tntune.errors import CheckpointError, NumericalError

A0, B0 = "h/0/fc/lora_A/weight", "h/0/fc/lora_B/weight"
KEY_A, KEY_B = (name.replace("/", ".") for name in (A0, B0))


def save_bin(value: object) -> Damage:
    """Replace the tensors by a pickle of this value."""
    return both(remove(TENSORS), lambda folder: torch.save(value, folder / "adapter_model.bin"))


class Payload:
    """Something whose unpickling would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


CONFIG_CASES = {
    "no config": (remove(CONFIG), CONFIG, "No such file"),
    "config is empty": (raw(CONFIG, b" "), CONFIG, "not JSON"),
    "config is truncated": (truncate(CONFIG, 20), CONFIG, "not JSON"),
    "config is not UTF-8": (raw(CONFIG, b'{"r": "\xff"}'), CONFIG, "not UTF-8"),
    "config is a list": (raw(CONFIG, b"[1]"), CONFIG, "must hold an object, not list"),
    "config is nested deeply": (raw(CONFIG, b"[" * 10**5), CONFIG, "nested too deeply"),
    "config repeats a key": (raw(CONFIG, b'{"r": 1, "r": 2}'), CONFIG, "r: key is repeated"),
    "config has NaN": (raw(CONFIG, b'{"lora_alpha": NaN}'), CONFIG, "NaN is not a finite number"),
    "config has 1e999": (raw(CONFIG, b'{"lora_alpha": 1e999}'), CONFIG, "1e999 is not a finite number"),
    "another method": (config(peft_type="IA3"), CONFIG, "peft_type: must be 'LORA', not 'IA3'"),
    "no method": (config(peft_type=None), CONFIG, "peft_type: must be 'LORA', not None"),
    "no rank": (config(r=None), CONFIG, "r: must be a positive integer, not None"),
    "rank 0": (config(r=0), CONFIG, "r: must be a positive integer, not 0"),
    "rank true": (config(r=True), CONFIG, "r: must be a positive integer, not True"),
    "alpha is text": (config(lora_alpha="4"), CONFIG, "lora_alpha: must be a finite number other than 0"),
    "alpha 0": (config(lora_alpha=0), CONFIG, "lora_alpha: must be a finite number other than 0, not 0"),
    "rslora is text": (config(use_rslora="no"), CONFIG, "use_rslora: must be true or false"),
    "pattern is a list": (config(rank_pattern=[1]), CONFIG, "rank_pattern: must be an object"),
    "pattern is no regex": (config(alpha_pattern={"(": 1}), CONFIG, r"alpha_pattern: '.*' is no regular"),
    "pattern with flags": (config(rank_pattern={"(?i)fc": 2}), CONFIG, "rank_pattern: '.*' is no[t ]"),
    "alpha beyond float": (config(lora_alpha=10**400), CONFIG, "lora_alpha: must be a finite number"),
    "Megatron": (config(megatron_config={"x": 1}), CONFIG, "megatron_config: Megatron's parallel"),
    "merged projections": (config(enable_lora=[True, False]), CONFIG, "enable_lora: unknown option"),
    "pattern of text": (
        config(rank_pattern={"fc": "8"}),
        CONFIG,
        "rank_pattern: fc: must be a positive integer",
    ),
    "targets are numbers": (config(target_modules=[1]), CONFIG, "target_modules: must be a list of module"),
    "saved is text": (config(modules_to_save="score"), CONFIG, "modules_to_save: must be a list of module"),
    "targets are no regex": (config(target_modules="(fc"), CONFIG, "target_modules: '\\(fc' is no regular"),
    "DoRA": (config(use_dora=True), CONFIG, "use_dora: DoRA rescales"),
    "lora_bias": (config(lora_bias=True), CONFIG, "lora_bias: biases inside LoRA layers"),
    "base biases": (config(bias="all"), CONFIG, "bias: base biases .* carry=True"),
    "token rows": (config(trainable_token_indices=[3]), CONFIG, "trainable_token_indices: .* carry=True"),
    "aLoRA": (config(alora_invocation_tokens=[1]), CONFIG, "alora_invocation_tokens: an activated LoRA"),
    "replicated layers": (config(layer_replication=[[0, 2]]), CONFIG, "layer_replication: the base model"),
    "experts": (config(target_parameters=["w1"]), CONFIG, "target_parameters: adapters of bare parameters"),
    "QA-LoRA": (config(use_qalora=True), CONFIG, "use_qalora: QA-LoRA pools"),
    "BD-LoRA": (config(use_bdlora={"nblocks": 2}), CONFIG, "use_bdlora: block-diagonal"),
    "KaSA": (config(kasa_config={"beta": 1.0}), CONFIG, "kasa_config: KaSA changes the base weights"),
    "MonteCLoRA": (config(monteclora_config={"x": 1}), CONFIG, "monteclora_config: MonteCLoRA adds"),
    "VeLoRA": (config(velora_config={"scale": 1}), CONFIG, "velora_config: VeLoRA stores"),
    "Arrow": (config(arrow_config={"top_k": 3}), CONFIG, "arrow_config: routed adapters"),
    "tied": (config(ensure_weight_tying=True), CONFIG, "ensure_weight_tying: tied adapters"),
    "PiSSA": (
        config(init_lora_weights="pissa_niter_4"),
        CONFIG,
        "init_lora_weights: 'pissa_niter_4' changed",
    ),
    "OLoRA": (config(init_lora_weights="OLoRA"), CONFIG, "init_lora_weights: 'OLoRA' changed the base"),
    "a later option": (config(use_novelty=0.5), CONFIG, "use_novelty: unknown option 0.5 may change"),
}

FILE_CASES = {
    "no tensors": (remove(TENSORS), "lora", "has neither adapter_model.safetensors nor adapter_model.bin"),
    "sharded": (
        both(remove(TENSORS), raw(f"{TENSORS}.index.json", b"{}")),
        f"{TENSORS}.index.json",
        "sharded weights are not read",
    ),
    "tensors are empty": (raw(TENSORS, b""), TENSORS, "not a whole safetensors file"),
    "header is cut": (truncate(TENSORS, 60), TENSORS, "not a whole safetensors file"),
    "values are cut": (
        lambda f: truncate(TENSORS, (f / TENSORS).stat().st_size - 8)(f),
        TENSORS,
        "not a whole",
    ),
    "header is noise": (raw(TENSORS, b"\xff" * 64), TENSORS, "not a whole safetensors file"),
    "bin is noise": (both(remove(TENSORS), raw("adapter_model.bin", b"PK\x03\x04")), "bin", "cannot be read"),
    "bin is empty": (both(remove(TENSORS), raw("adapter_model.bin", b"")), "bin", "cannot be read"),
    "bin runs code": (save_bin({"w": Payload()}), "adapter_model.bin", "cannot be read without running code"),
    "bin is a list": (
        save_bin([torch.ones(1)]),
        "adapter_model.bin",
        "must hold a dict of tensors, not list",
    ),
    "bin holds text": (save_bin({"w": "x"}), "adapter_model.bin", "w: must be a dense tensor, not str"),
    "bin holds sparse": (
        save_bin({"w": torch.eye(2).to_sparse()}),
        "adapter_model.bin",
        "w: must be a dense",
    ),
}

TENSOR_CASES = {
    "nothing of LoRA": (
        lambda f: (f / TENSORS).write_bytes(b"\x02\0\0\0\0\0\0\0{}") and None,
        TENSORS,
        "has no LoRA factors",
    ),
    "A without B": (tensors(**{B0: None}), KEY_A, "lora_B is missing"),
    "B without A": (tensors(**{A0: None}), KEY_B, "lora_A is missing"),
    "rank of A": (tensors(**{A0: torch.ones(4, 5)}), KEY_A, "has rank 4, adapter_config.json says 2"),
    "rank of B": (tensors(**{B0: torch.ones(3, 4)}), KEY_B, "has rank 4, lora_A has 2"),
    "rank of the pattern": (config(rank_pattern={"h.0.fc": 4}), KEY_A, "has rank 2, .* says 4"),
    "integers": (
        tensors(**{A0: torch.ones(2, 5, dtype=torch.int64)}),
        KEY_A,
        "dtype torch.int64 is not a float",
    ),
    "8-bit floats": (tensors(**{B0: torch.ones(3, 2).to(torch.float8_e4m3fn)}), KEY_B, "dtype torch.float8"),
    "complex": (tensors(**{B0: torch.ones(3, 2, dtype=torch.complex64)}), KEY_B, "dtype torch.complex64"),
    "empty factor": (tensors(**{B0: torch.ones(0, 2)}), KEY_B, r"shape \(0, 2\) is empty"),
    "flat factor": (tensors(**{A0: torch.ones(10)}), KEY_A, r"shape \(10,\) must have 2 axes"),
    "convolution": (
        tensors(**{A0: torch.ones(2, 5, 3, 3)}),
        KEY_A,
        r"shape \(2, 5, 3, 3\) is a convolution's",
    ),
    "two adapters": (
        tensors(**{"h/2/fc/lora_A/other/weight": torch.ones(2, 5)}),
        "h.2.fc.lora_A.other.weight",
        "adapter name 'other' beside None",
    ),
    "not a target": (
        tensors(**{"h/0/q/lora_A/weight": torch.ones(2, 5), "h/0/q/lora_B/weight": torch.ones(3, 2)}),
        "h.0.q.lora_A.weight",
        "target_modules of adapter_config.json do not name this module",
    ),
    "wrapped layer": (
        both(
            config(target_modules="all-linear"),
            tensors(
                **{
                    "a/base_layer/out/lora_A/weight": torch.ones(2, 5),
                    "a/base_layer/out/lora_B/weight": torch.ones(3, 2),
                }
            ),
        ),
        "a.base_layer.out.lora_A.weight",
        "a LoRA inside a wrapped layer is not supported",
    ),
    "DoRA magnitude": (
        tensors(**{"h/0/fc/lora_magnitude_vector": torch.ones(3)}),
        "h.0.fc.lora_magnitude_vector",
        "a DoRA magnitude rescales",
    ),
    "LoRA bias": (
        tensors(**{"h/0/fc/lora_B/bias": torch.ones(3)}),
        "h.0.fc.lora_B.bias",
        "a bias inside a LoRA",
    ),
    "KaSA diagonal": (tensors(**{"h/0/fc/lora_diag": torch.ones(2)}), "h.0.fc.lora_diag", "an unknown part"),
    "base bias": (tensors(**{"h/0/fc/bias": torch.ones(3)}), "h.0.fc.bias", "unknown tensor; carry=True"),
    "token rows saved": (
        tensors(**{"emb/token_adapter/trainable_tokens_delta": torch.ones(1, 5)}),
        "emb.token_adapter.trainable_tokens_delta",
        "unknown tensor; carry=True",
    ),
    "kohya key": (
        tensors(**{"lora_unet_x/lora_down/weight": torch.ones(3)}),
        "lora_down.weight",
        "an unknown part",
    ),
}


@pytest.mark.parametrize(
    ("damage", "place", "reason"),
    [pytest.param(*case, id=name) for name, case in {**CONFIG_CASES, **FILE_CASES, **TENSOR_CASES}.items()],
)
def test_damaged_folder_is_refused_by_name(tmp_path: Path, damage: Damage, place: str, reason: str) -> None:
    folder = lora_folder(tmp_path / "lora")
    open_lora(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=rf"(?s)\A.*{re.escape(place)}: (.*: )?{reason}") as caught:
        open_lora(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [A0, B0])
def test_non_finite_factor_is_refused_when_it_is_loaded(tmp_path: Path, name: str, value: float) -> None:
    folder = lora_folder(tmp_path / "lora")
    bad = torch.ones((2, 5) if name == A0 else (3, 2))
    bad[1, 1] = value
    tensors(**{name: bad})(folder)
    lora = open_lora(folder)
    key = re.escape(name.replace("/", "."))
    with pytest.raises(
        NumericalError, match=rf"{TENSORS}: base_model\.model\.{key}: has entries that are NaN"
    ):
        lora.load(lora.sites[0])
    lora.load(lora.sites[1])


@pytest.mark.parametrize("start", [True, False, "gaussian", "eva", "orthogonal", "mica"])
def test_a_start_that_leaves_the_base_alone_is_read(tmp_path: Path, start: object) -> None:
    assert len(open_lora(lora_folder(tmp_path / "lora", init_lora_weights=start)).sites) == 2


def test_unset_unknown_options_are_read(tmp_path: Path) -> None:
    unset = {"later_a": None, "later_b": False, "later_c": {}, "later_d": [], "later_e": ""}
    folder = lora_folder(tmp_path / "lora")
    (folder / CONFIG).write_text(json.dumps(lora_config(**unset)))
    assert len(open_lora(folder).sites) == 2


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lora").write_text("")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: cannot be read: Not a directory"):
        open_lora(tmp_path / "lora")


def test_variants_are_refused_even_with_carry(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora", use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora: DoRA rescales"):
        open_lora(folder, carry=True)
    folder = lora_folder(tmp_path / "magnitude")
    tensors(**{"h/0/fc/lora_magnitude_vector": torch.ones(3)})(folder)
    with pytest.raises(CheckpointError, match="lora_magnitude_vector: a DoRA magnitude"):
        open_lora(folder, carry=True)


MADE_UP = {
    "expanded": lambda: torch.ones(1).expand(2**40),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "on no device": lambda: torch.ones(2, 5, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2, 5), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MADE_UP.values(), ids=MADE_UP)
def test_tensors_whose_entries_are_not_on_disk(tmp_path: Path, make: Callable[[], torch.Tensor]) -> None:
    folder = lora_folder(tmp_path / "lora")
    (folder / TENSORS).unlink()
    torch.save({"base_model.model.h.0.fc.lora_A.weight": make()}, folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"must be a dense tensor|without running code"):
        open_lora(folder)


def test_a_rank_of_many_digits(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora", use_rslora=True, r=10**400)
    with pytest.raises(CheckpointError, match="r: must be a positive integer"):
        open_lora(folder)
