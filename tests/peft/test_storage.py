"""Folders: what is saved is what is loaded, bit for bit, and every folder of one tool opens in the other."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")

from peft import (
    AutoPeftModelForCausalLM,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2LMHeadModel

from tests.cli.command import tntune
from tests.convert.sample import Model, lora_folder
from tests.convert.sample import inputs as model_inputs
from tests.peft.models import MARKS, TOKENS, VARIANTS, adapted, cores, decoder, gpt2, inputs, logits, tower
from tests.support.tolerance import close
from tntune.checkpoint import open_tensorguide, write_groups
from tntune.convert import ConversionSettings, Target, convert_lora, export_lora, round_adapter
from tntune.errors import OutputError, SpecError, TargetError, UnsupportedError
from tntune.maps import Group, Site, Streams
from tntune.peft import SharedTensorGuideConfig, TensorGuideConfig, TensorGuideLayer

pytestmark = [
    *MARKS,
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),  # PEFT reads it off the layer, as we do
]

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
LATENTS = ["none", "fixed"]


def restart() -> None:
    """What is loaded must not come from the generator that drew what was saved."""
    torch.manual_seed(99)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("latent", LATENTS)
def test_loaded_it_is_the_same_bits(tmp_path: Path, variant: str, dtype: torch.dtype, latent: str) -> None:
    model = decoder(variant, dtype=dtype, latent=latent, activation="gelu")
    model.save_pretrained(tmp_path)
    restart()
    loaded = PeftModel.from_pretrained(gpt2(dtype), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
        assert tensor.dtype == model.state_dict()[name].dtype


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("part", [0, 3])
def test_parts_of_tensors_are_not_saved(tmp_path: Path, variant: str, part: int) -> None:
    """As ZeRO and FSDP leave them between steps."""
    model = decoder(variant)
    core = next(p for p in model.parameters() if p.requires_grad)
    core.data = core.detach().flatten()[:part]
    with pytest.raises(UnsupportedError, match=rf"tt_core_0: is \({part},\) here, and .* as a whole; gather"):
        model.save_pretrained(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("*.safetensors"))


METHODS = ("tensorguide", "lotr", "fact_tt", "lorta", "tenslora_qkv_depth_cp")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("targets", [["c_attn", "c_fc"], ["c_fc", "mlp.c_proj"]])
def test_an_optimiser_finds_its_cores_again(tmp_path: Path, method: str, targets: list[str]) -> None:
    """It knows them by their order alone, and PEFT sorts what it writes."""
    ranks = {"ranks": 2} if method == "tensorguide" else {}
    config = SharedTensorGuideConfig(r=2, method=method, target_modules=targets, **ranks)
    model = get_peft_model(gpt2(), config)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(gpt2(), tmp_path, is_trainable=True)
    names = [[n for n, p in each.named_parameters() if p.requires_grad] for each in (model, loaded)]
    assert len(names[0]) > 2
    assert names[0] == names[1]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_under_another_name_and_on_the_meta_device(tmp_path: Path, variant: str, dtype: torch.dtype) -> None:
    model = decoder(variant, dtype=dtype, latent="fixed")
    model.save_pretrained(tmp_path)
    restart()
    for low in (True, False):
        options = {"adapter_name": "other", "low_cpu_mem_usage": low}
        loaded = PeftModel.from_pretrained(gpt2(dtype), tmp_path, **options)
        assert torch.equal(logits(loaded), logits(model))
        again = decoder(variant, dtype=dtype, target_modules=["c_proj"])
        again.load_adapter(tmp_path, **options)
        again.set_adapter("other")
        assert torch.equal(logits(again.eval()), logits(model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_of_several_adapters_is_saved_alone(tmp_path: Path, variant: str) -> None:
    model = decoder(variant, target_modules=["c_attn"])
    model.add_adapter("other", VARIANTS[variant](r=2, target_modules=["c_attn", "c_fc"], init_weights=False))
    model.save_pretrained(tmp_path)
    kept = load_file(tmp_path / "adapter_model.safetensors")
    assert not any("other" in key or "default" in key or "c_fc" in key for key in kept)
    model.set_adapter("other")
    restart()
    loaded = PeftModel.from_pretrained(gpt2(), tmp_path / "other")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_dict_is_taken_by_another_adapter(variant: str) -> None:
    model = decoder(variant)
    restart()
    other = get_peft_model(
        gpt2(), VARIANTS[variant](r=4, ranks=3, alpha=8, target_modules=["c_attn", "c_fc"])
    )
    result = set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    assert not result.unexpected_keys
    assert not any("tensorguide" in key for key in result.missing_keys)
    assert torch.equal(logits(other.eval()), logits(model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_modules_saved_whole_and_trained_tokens_come_along(tmp_path: Path, variant: str) -> None:
    config = VARIANTS[variant](r=2, target_modules=["fc"], modules_to_save=["head"], init_weights=False)
    model = adapted(tower(), config)
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.fill_(0.25)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tower(), tmp_path)
    assert torch.equal(loaded(inputs()), model(inputs()))
    tokens = decoder(variant, trainable_token_indices=[1, 3])
    with torch.no_grad():
        next(p for name, p in cores(tokens).items() if "trainable_tokens" in name).fill_(0.5)
    tokens.save_pretrained(tmp_path / "tokens")
    restart()
    assert torch.equal(logits(PeftModel.from_pretrained(gpt2(), tmp_path / "tokens")), logits(tokens))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("latent", LATENTS)
def test_a_file_is_its_cores_and_little_else(tmp_path: Path, variant: str, latent: str) -> None:
    model = decoder(variant, latent=latent)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    counted = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    trained = sum(p.numel() for p in cores(model).values())
    assert file.stat().st_size <= 1.3 * counted + 150 * len(tensors)
    if latent == "none":
        assert counted == 4 * trained


@pytest.mark.parametrize("variant", VARIANTS)
def test_auto_classes_find_the_base_and_the_adapter(tmp_path: Path, variant: str) -> None:
    gpt2().save_pretrained(tmp_path / "base")
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    model = adapted(base, VARIANTS[variant](r=4, task_type="CAUSAL_LM", init_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(model))


def test_a_shared_adapter_of_other_targets_is_refused(tmp_path: Path) -> None:
    """Its trains know a layer by its index: a model without it must not shift the others."""
    decoder("shared").save_pretrained(tmp_path)
    smaller = gpt2()
    smaller.transformer.h = smaller.transformer.h[:1]
    with pytest.raises(SpecError, match=r"shared trains have 4 targets, the model 2: \['transformer.h.1"):
        PeftModel.from_pretrained(smaller, tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_folder_opens_in_tntune(tmp_path: Path, variant: str) -> None:
    model = decoder(variant, latent="fixed")
    model.save_pretrained(tmp_path / "guide")
    folder = open_tensorguide(tmp_path / "guide")
    assert folder.params == sum(p.numel() for p in cores(model).values())
    assert tntune("inspect", tmp_path / "guide", "--json").code == 0
    report = export_lora(tmp_path / "guide", tmp_path / "lora")
    assert report.layers == 4
    assert close(logits(PeftModel.from_pretrained(gpt2(), tmp_path / "lora")), logits(model))


def test_a_saved_folder_is_rounded_and_verified(tmp_path: Path) -> None:
    decoder("per layer").save_pretrained(tmp_path / "guide")
    report = round_adapter(tmp_path / "guide", tmp_path / "small", Target(max_rank=2))
    assert report.params_after < report.params_before
    ran = tntune("verify", tmp_path / "guide", tmp_path / "small", "--json")
    assert ran.json["relative_error"] == pytest.approx(report.relative_error)
    assert PeftModel.from_pretrained(gpt2(), tmp_path / "small").peft_config["default"].r


def dense(folder: Path) -> nn.Module:
    """The sample model with the ΔW of a converted folder's own factors added to its weights."""
    model, opened = Model(), open_tensorguide(folder)
    for name, site in opened.sites.items():
        down, up = site.factors(opened.load(name))
        model.get_submodule(name).weight.data += site.scale * up[0] @ down[0]
    return model


@pytest.mark.parametrize("target", [Target(params=0.5), Target(tolerance=0.1), Target(max_rank=2)], ids=str)
@pytest.mark.parametrize("method", ["tensorguide", "auto"])
def test_a_converted_folder_loads_and_training_goes_on(tmp_path: Path, target: Target, method: str) -> None:
    convert_lora(lora_folder(tmp_path / "lora"), tmp_path / "guide", ConversionSettings(target, method))
    model = PeftModel.from_pretrained(Model(), tmp_path / "guide", is_trainable=True)
    x, before = model_inputs(), model(model_inputs()).detach()
    assert close(before, dense(tmp_path / "guide")(x))
    optimizer = torch.optim.SGD(cores(model).values(), lr=1e-8)
    model(x).square().sum().backward()
    optimizer.step()
    assert model(x).square().sum() < before.square().sum()
    model.save_pretrained(tmp_path / "trained")
    assert torch.equal(PeftModel.from_pretrained(Model(), tmp_path / "trained")(x), model(x))
    assert close(dense(tmp_path / "trained")(x), model(x))


def test_a_converted_nonlinear_folder_has_the_function_of_its_lora(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "lora")
    settings = ConversionSettings(Target(tolerance=1e-5), activation="relu")
    convert_lora(lora, tmp_path / "guide", settings)
    guide = PeftModel.from_pretrained(Model(), tmp_path / "guide")
    assert close(guide(model_inputs()), PeftModel.from_pretrained(Model(), lora)(model_inputs()), factor=10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_a_lora_it_has_the_same_updates(variant: str, dtype: torch.dtype) -> None:
    model = decoder(variant, dtype=dtype, latent="fixed")
    config, tensors = model.base_model.to_lora()
    twin = get_peft_model(gpt2(dtype), config)
    result = set_peft_model_state_dict(twin, tensors)
    assert not result.unexpected_keys
    ours = {name: m for name, m in model.named_modules() if isinstance(m, TensorGuideLayer)}
    theirs = dict(twin.named_modules())
    for name, layer in ours.items():
        assert close(theirs[name].get_delta_weight("default"), layer.get_delta_weight("default"))
    assert close(logits(twin.eval()), logits(model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_conversion_of_peft_agrees(variant: str) -> None:
    """PEFT's own, by SVD of each ΔW, is exact at the width."""
    model = decoder(variant)
    config, tensors = convert_to_lora(model, rank=4)
    twin = get_peft_model(gpt2(), config)
    set_peft_model_state_dict(twin, tensors)
    assert close(logits(twin.eval()), logits(model), factor=10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_nonlinear_adapter_is_no_lora(tmp_path: Path, variant: str) -> None:
    model = decoder(variant, activation="relu")
    for attempt in (model.base_model.to_lora, lambda: model.base_model.save_as_lora(tmp_path / "lora")):
        with pytest.raises(UnsupportedError, match=r"'relu': it is no matrix, .* nor converted to LoRA"):
            attempt()
    assert not (tmp_path / "lora").exists()
    assert not model.supports_lora_conversion()
    with pytest.raises(TypeError, match="do not support LoRA conversion"):
        convert_to_lora(model, rank=4)


def test_an_absent_adapter_is_no_lora_and_a_folder_is_not_replaced(tmp_path: Path) -> None:
    model = decoder("per layer").base_model
    with pytest.raises(TargetError, match=r"no layer has an adapter 'other'; there are \['default'\]"):
        model.to_lora("other")
    model.save_as_lora(tmp_path / "lora")
    with pytest.raises(OutputError, match="lora"):
        model.save_as_lora(tmp_path / "lora")


WITHOUT_TNTUNE = """
import sys
sys.modules["tntune"] = None
import torch
from peft import PeftModel
from transformers import GPT2LMHeadModel
for variant in sys.argv[1:]:
    model = PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained("base"), variant).eval()
    torch.save(model(input_ids=torch.load("tokens.pt")).logits.detach(), variant + ".pt")
"""


def test_as_a_lora_it_loads_without_tntune(tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "base")
    torch.save(TOKENS, tmp_path / "tokens.pt")
    models = {variant: decoder(variant) for variant in VARIANTS}
    for variant, model in models.items():
        model.base_model.save_as_lora(tmp_path / variant)
    command = [sys.executable, "-c", WITHOUT_TNTUNE, *models]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    for variant, model in models.items():
        assert close(torch.load(tmp_path / f"{variant}.pt"), logits(model))


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_modules_go_along_into_a_lora(tmp_path: Path, variant: str) -> None:
    config = VARIANTS[variant](r=2, target_modules=["fc", "up"], modules_to_save=["head"], init_weights=False)
    model = adapted(tower(), config)
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].weight.fill_(0.25)
    model.base_model.save_as_lora(tmp_path / "lora")
    assert close(PeftModel.from_pretrained(tower(), tmp_path / "lora")(inputs()), model(inputs()))


def test_a_folder_with_a_field_too_new_is_refused(tmp_path: Path) -> None:
    decoder("per layer").save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(SpecError, match=r"format.*99"):
        PeftModel.from_pretrained(gpt2(), tmp_path)


def test_sites_are_written_for_every_target(tmp_path: Path) -> None:
    model = decoder("per layer")
    model.save_pretrained(tmp_path)
    sites = TensorGuideConfig.from_pretrained(tmp_path).sites
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, TensorGuideLayer):
            assert Site.from_json(sites.pop(name)).map == module.generator("default").map
    assert not sites
    shutil.rmtree(tmp_path)


def test_layers_of_many_shapes_share_streams(tmp_path: Path) -> None:
    modules = ("blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down")
    streams = Streams((6, 10, 6), (3, 4, 2), (0, 1, 0, 1), (1, 2, 1, 2), (2, 1, 3, 2), start="random")
    params, _ = streams.init(torch.Generator().manual_seed(0))
    group = Group(streams, modules, (1.0, 0.5, 2.0, 1.0))
    write_groups(tmp_path / "streams", {"all": (group, params)}, config={})
    export_lora(tmp_path / "streams", tmp_path / "lora")
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    model = PeftModel.from_pretrained(tower(), tmp_path / "streams", is_trainable=True)
    assert close(model(x), PeftModel.from_pretrained(tower(), tmp_path / "lora")(x), factor=10)
    model(x).square().sum().backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(streams.param_shapes)
    assert all(p.grad is not None and p.grad.any() for p in trained.values())
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(PeftModel.from_pretrained(tower(), tmp_path / "saved")(x), model(x))
