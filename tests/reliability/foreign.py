"""Folders and files of other libraries: their own ΔW is the judge, there and back.

The folders are PEFT's, of the installed version, with drawn options. Configurations of older versions are
made from a fresh one by leaving out what that version did not write: a list by hand of the release that
brought each key. Should one be listed a release too late or too early, a folder is tested that nobody wrote.
"""

import json
import re
import warnings
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoint import lora_files
from tests.checkpoint.models import deltas, stir, tower
from tests.reliability.campaign import Campaign, Tally, drawn
from tests.support.tolerance import close
from tntune.checkpoint import open_lora, open_lora_file
from tntune.convert import ConversionSettings, ResizeSettings, Target, convert_lora, export_lora, resize_lora
from tntune.errors import CheckpointError

__all__ = ["CAMPAIGNS"]

BROUGHT: dict[str, tuple[str, ...]] = {
    "0.6": ("alpha_pattern", "rank_pattern"),
    "0.7": ("loftq_config", "megatron_config", "megatron_core"),
    "0.8": ("use_rslora",),
    "0.9": ("use_dora",),
    "0.10": ("layer_replication",),
    "0.14": ("eva_config", "exclude_modules", "lora_bias"),
    "0.15": ("corda_config", "trainable_token_indices"),
    "0.17": ("qalora_group_size", "target_parameters", "use_qalora"),
    "0.18": ("alora_invocation_tokens", "arrow_config", "ensure_weight_tying", "peft_version"),
}
"""Keys of adapter_config.json by the release of PEFT that first wrote them."""

VERSIONS = ("0.5", *BROUGHT)
LONG_KNOWN = (
    *("auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode"),
    *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout"),
    *("modules_to_save", "peft_type", "r", "revision", "target_modules", "task_type"),
)
"""Keys that PEFT 0.5 wrote."""

REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"use_dora": True}, "DoRA"),
    ({"use_dora": True, "use_rslora": True}, "DoRA"),
    ({"lora_bias": True, "bias": "none"}, "lora_bias"),
    ({"bias": "all"}, "bias: base biases were trained too"),
    ({"bias": "lora_only"}, "bias: base biases were trained too"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ({"init_lora_weights": "olora"}, "init_lora_weights"),
)
"""Options of PEFT whose folders are no plain LoRA, and the words that say so."""


def options(draw: Random, *, version: str | None = None) -> dict[str, Any]:
    """Drawn options of a plain LoRA, those that a version knew."""
    known = set(LONG_KNOWN)
    for release, keys in BROUGHT.items():
        if version is None or VERSIONS.index(release) <= VERSIONS.index(version):
            known |= set(keys)
    targets: list[Any] = [["fc"], ["proj"], ["fc", "proj"], ["h.0.fc", "proj"], r"(.*\.)?(fc|proj)"]
    drawn_options: dict[str, Any] = {
        "target_modules": draw.choice(targets),
        "lora_alpha": draw.choice((1, 3, 8, 16, 0.5)),
        "use_rslora": draw.random() < 0.4,
        "rank_pattern": draw.choice(({}, {"h.0.fc": 2}, {"^fc": 3, "deep.*": 1}, {r".*\.proj": 5})),
        "alpha_pattern": draw.choice(({}, {"h.1.fc": 7}, {r"h\.[01]\.proj": 2.5}, {"^fc": 1})),
        "layers_to_transform": draw.choice((None, None, [0], [0, 1])),
        "modules_to_save": draw.choice((None, None, ["score"])),
        "lora_dropout": draw.choice((0.0, 0.1)),
    }
    if isinstance(drawn_options["target_modules"], str) or not drawn_options["layers_to_transform"]:
        drawn_options["layers_to_transform"] = None
    else:
        drawn_options["layers_pattern"] = "h"
    if drawn_options["target_modules"] == ["fc"] and draw.random() < 0.3:
        drawn_options["target_modules"] = ["fc", "emb"]
    drawn_options["fan_in_fan_out"] = drawn_options["target_modules"] == ["proj"]
    return {key: value for key, value in drawn_options.items() if key in known}


def compared(folder: Path, model: PeftModel, *, factor: float = 1.0) -> None:
    """Each ΔW of the folder against the model's own."""
    lora, found = open_lora(folder), dict(deltas(model))
    assert {site.name for site in lora.sites} == set(found)
    for site in lora.sites:
        down, up, scale = lora.load(site)
        close(scale * up.double() @ down.double(), found[site.name], factor=factor)


def merged(model: PeftModel, folder: Path, dtype: torch.dtype) -> None:
    """The weights that PEFT merges against the base's plus ΔW as tntune reads it."""
    before = {name: value.clone() for name, value in tower(dtype=dtype).state_dict().items()}
    after = model.merge_and_unload().state_dict()
    lora = open_lora(folder)
    for site in lora.sites:
        down, up, scale = lora.load(site)
        delta: Tensor = scale * up.double() @ down.double()
        own = after[f"{site.name}.weight"].double() - before[f"{site.name}.weight"].double()
        turned = site.name.endswith("proj")  # stored as (in, out), as GPT-2's layers are
        close(delta.T if turned else delta, own.to(dtype), factor=100)


def there(draw: Random, folder: Path) -> str:
    """PEFT writes, tntune reads: ΔW, and the merged weights."""
    dtype = draw.choice((torch.float32, torch.float64, torch.bfloat16, torch.float32))
    config = LoraConfig(r=draw.choice((1, 4, 6)), **options(draw))
    model = get_peft_model(tower(dtype=dtype), config, autocast_adapter_dtype=False)
    stir(model)
    model.save_pretrained(folder / "lora", safe_serialization=draw.random() < 0.8)
    loaded = PeftModel.from_pretrained(tower(dtype=dtype), folder / "lora", autocast_adapter_dtype=False)
    compared(folder / "lora", loaded)
    if dtype != torch.bfloat16:
        merged(loaded, folder / "lora", dtype)
    return "read as PEFT computes it"


def back(draw: Random, folder: Path) -> str:
    """PEFT writes, tntune converts and exports, or resizes, exactly; PEFT loads the same model."""
    config = LoraConfig(r=4, **options(draw))
    model = get_peft_model(tower(dtype=torch.float64), config, autocast_adapter_dtype=False)
    stir(model)
    model.save_pretrained(folder / "lora")
    if draw.random() < 0.5:
        method = draw.choice(("tensorguide", "auto", "svd"))
        convert_lora(folder / "lora", folder / "guide", ConversionSettings(Target(tolerance=1e-12), method))
        export_lora(folder / "guide", folder / "back")
    else:
        resize_lora(folder / "lora", folder / "back", ResizeSettings(rank=6))
    before = PeftModel.from_pretrained(
        tower(dtype=torch.float64), folder / "lora", autocast_adapter_dtype=False
    )
    after = PeftModel.from_pretrained(
        tower(dtype=torch.float64), folder / "back", autocast_adapter_dtype=False
    )
    tokens = torch.arange(7)
    close(after.eval()(tokens), before.eval()(tokens))
    own, found = dict(deltas(before)), dict(deltas(after))
    assert all(not delta.any() for name, delta in found.items() if name not in own)
    for name, delta in own.items():
        close(found[name], delta)
    return "same model in PEFT"


def older(draw: Random, folder: Path) -> str:
    """A folder as an older PEFT wrote it, its configuration without the keys that came later."""
    version = draw.choice(VERSIONS)
    config = LoraConfig(r=4, **options(draw, version=version))
    model = get_peft_model(tower(), config)
    stir(model)
    model.save_pretrained(folder / "lora", safe_serialization=VERSIONS.index(version) >= 2)
    path = folder / "lora" / "adapter_config.json"
    known = set(LONG_KNOWN).union(*(BROUGHT[each] for each in VERSIONS[1 : VERSIONS.index(version) + 1]))
    written = {key: value for key, value in json.loads(path.read_text()).items() if key in known}
    path.write_text(json.dumps(written))
    compared(folder / "lora", PeftModel.from_pretrained(tower(), folder / "lora"))
    return f"PEFT {version}"


def refused(draw: Random, folder: Path) -> str:
    """What is not plain LoRA, and tensors that nobody knows: refused, by name."""
    kind = draw.randrange(len(REFUSED) + 3)
    named, words = REFUSED[kind] if kind < len(REFUSED) else ({}, "")
    model = get_peft_model(tower(), LoraConfig(r=2, target_modules=["h.0.fc"], **named))
    stir(model)
    model.save_pretrained(folder / "lora")
    weights = folder / "lora" / "adapter_model.safetensors"
    if kind >= len(REFUSED):
        key, words = (
            ("base_model.model.stranger.weight", "stranger.weight: unknown tensor"),
            ("base_model.model.h.0.fc.lora_C.weight", "lora_C.weight: an unknown part of a LoRA"),
            ("base_model.model.h.0.fc.lora_magnitude_vector", "DoRA magnitude"),
        )[kind - len(REFUSED)]
        save_file({**load_file(weights), key: torch.ones(3)}, weights)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        open_lora(folder / "lora")
    return "refused by name"


def single(draw: Random, folder: Path) -> str:
    """A file of kohya's scripts or diffusers, read and resized exactly, against ΔW from its raw tensors."""
    style, alphas = draw.choice(list(lora_files.PLACES)), draw.choice(list(lora_files.ALPHAS.values()))
    dtype = draw.choice((torch.float32, torch.float16, torch.bfloat16, torch.float64))
    path = lora_files.lora_file(folder / "one.safetensors", lora_files.tensors(style, alphas, dtype=dtype))
    resize_lora(path, folder / "two.safetensors", ResizeSettings(rank=draw.choice((4, 5, 10**6))))
    exact = lora_files.deltas(path)
    for file in (path, folder / "two.safetensors"):
        lora = open_lora_file(file)
        assert {site.name for site in lora.sites} == set(exact)
        for site in lora.sites:
            down, up, scale = lora.load(site)
            close((scale * up.double() @ down.double()).reshape(exact[site.name].shape), exact[site.name])
    for name, delta in lora_files.deltas(folder / "two.safetensors").items():
        close(delta, exact[name])
    return f"{'kohya' if 'kohya' in style else 'diffusers'}: same ΔW"


CASES = (there, back, older, refused, single)


def run(cases: int) -> Tally:
    """Each kind in turn."""
    tally = Tally()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(cases):
            case, draw = CASES[number % len(CASES)], drawn("foreign", number)
            with TemporaryDirectory() as folder:
                tally.attempt(f"{case.__name__} {number}", lambda c=case, d=draw, f=folder: c(d, Path(f)))
    return tally


CAMPAIGNS = (
    Campaign(
        "foreign",
        "folders of PEFT (drawn options, configurations of 0.5 to 0.18), files of kohya and diffusers, there "
        "and back: ΔW and merged weights are those that PEFT computes; all else is refused by name",
        run,
        600,
        50,
    ),
)
