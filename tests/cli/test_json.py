"""Law: with --json stdout is one document of known keys, and exit codes tell how it went."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.cli.command import spawn, tntune
from tests.convert.sample import lora_folder, same

LAYER_KEYS = {
    "name",
    "shape",
    "method",
    "layout",
    "ranks",
    "width",
    "params_before",
    "params_after",
    "norm",
    "relative_error",
    "svd_relative_error",
    "task_error",
}
REPORT_KEYS = {
    "source",
    "output",
    "settings",
    "measure",
    "params_before",
    "params_after",
    "bytes_before",
    "bytes_after",
    "dtypes",
    "relative_error",
    "svd_relative_error",
    "svd_wins",
    "target_met",
    "passthrough",
    "layers",
    "norm",
    "task_error",
    "divergence",
    "chosen",
    "candidates",
    "distillation",
    "score_before",
    "score_after",
}
SHAPE_KEYS = {
    "name",
    "shape",
    "norm",
    "kind",
    "width",
    "ranks",
    "layout",
    "params",
    "scale",
    "activation",
    "shared",
}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return lora_folder(tmp_path / "lora", saved=True)


def test_the_whole_way(lora: Path, tmp_path: Path) -> None:
    guide, back, small = tmp_path / "guide", tmp_path / "back", tmp_path / "small"
    report = spawn("convert", lora, "-o", guide, "--params", 0.5, "--json")
    assert (report.code, report.json.keys()) == (0, REPORT_KEYS)
    assert all(layer.keys() == LAYER_KEYS for layer in report.json["layers"])
    verified = tntune("verify", lora, guide, "--json")
    assert same(1 + verified.json["relative_error"], 1 + report.json["relative_error"])
    exported = tntune("export", guide, "--to", "lora", "-o", back, "--json")
    assert exported.json["relative_error"] < 1e-6
    assert tntune("verify", guide, back, "--tolerance", 1e-5, "--json").code == 0
    rounded = tntune("round", guide, "-o", small, "--tolerance", 0.5, "--json")
    assert (rounded.code, rounded.json.keys()) == (0, REPORT_KEYS)


def test_convert(lora: Path, tmp_path: Path) -> None:
    ran = tntune("convert", lora, "-o", tmp_path / "out", "--params", 0.5, "--method", "auto", "--json")
    assert (ran.code, ran.json.keys(), ran.err) == (0, REPORT_KEYS, "")
    assert ran.json["settings"].keys() == {"target", "method", "layouts", "activation", "dtype"}
    assert ran.json["settings"]["target"] == {"params": 0.5}
    assert [layer["name"] for layer in ran.json["layers"]] == ["h.0.fc", "h.0.proj", "h.1.fc", "head"]
    assert ran.json["passthrough"] == 1
    assert ran.json["target_met"] is True


def test_a_missed_tolerance_exits_1_with_its_report(tmp_path: Path) -> None:
    lora = lora_folder(tmp_path / "lora")
    ran = tntune(
        "convert", lora, "-o", tmp_path / "out", "--tolerance", 1e-6, "--dtype", "bfloat16", "--json"
    )
    assert (ran.code, ran.json["target_met"]) == (1, False)
    assert "the target was missed" in ran.err
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_inspect(lora: Path, tmp_path: Path) -> None:
    tntune("convert", lora, "-o", tmp_path / "out", "--params", 0.5, "--activation", "relu")
    for folder, kind in ((lora, "LORA"), (tmp_path / "out", "TENSORGUIDE")):
        ran = tntune("inspect", folder, "--json")
        assert ran.json.keys() == {
            "path",
            "peft_type",
            "base_model",
            "params",
            "bytes",
            "dtypes",
            "passthrough",
            "untrained",
            "layers",
        }
        assert (ran.code, ran.err, ran.json["peft_type"], ran.json["untrained"]) == (0, "", kind, [])
        assert all(layer.keys() == SHAPE_KEYS and layer["norm"] > 0 for layer in ran.json["layers"])
        assert ran.json["params"] == sum(layer["params"] for layer in ran.json["layers"])
        assert ran.json["passthrough"] == ["base_model.model.score.weight"]


def test_inspect_names_what_was_never_trained(tmp_path: Path) -> None:
    made = {
        "h.0.fc": (torch.ones(4, 12), torch.zeros(20, 4)),
        "h.1.fc": (torch.ones(4, 12), torch.ones(20, 4)),
    }
    ran = tntune("inspect", lora_folder(tmp_path / "lora", made=made), "--json")
    assert ran.json["untrained"] == ["h.0.fc"]
    assert "1 of 2 layers have ΔW = 0" in ran.err


def test_verify(lora: Path, tmp_path: Path) -> None:
    tntune("convert", lora, "-o", tmp_path / "out", "--params", 0.5)
    keys = {
        "first",
        "second",
        "relative_error",
        "layers",
        "passthrough_differs",
        "tolerance",
        "within_tolerance",
    }
    loose = tntune("verify", lora, tmp_path / "out", "--tolerance", 0.9, "--json")
    tight = tntune("verify", lora, tmp_path / "out", "--tolerance", 0.001, "--json")
    assert (loose.code, loose.json.keys(), loose.json["within_tolerance"]) == (0, keys, True)
    assert (tight.code, tight.json.keys(), tight.json["within_tolerance"]) == (1, keys, False)
    assert {"name", "norm", "distance", "relative_error", "measure"} == loose.json["layers"][0].keys()
    assert "is above 0.001" in tight.err


def test_export(lora: Path, tmp_path: Path) -> None:
    tntune("convert", lora, "-o", tmp_path / "out", "--params", 0.5)
    ran = tntune("export", tmp_path / "out", "-o", tmp_path / "back", "--dtype", "bfloat16", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json.keys() == {
        "source",
        "output",
        "layers",
        "rank",
        "params_before",
        "params_after",
        "bytes_before",
        "bytes_after",
        "dtypes",
        "relative_error",
    }
    assert ran.json["dtypes"] == ["torch.bfloat16"]


PLAN_KEYS = {
    "params",
    "lora_params",
    "layer_params",
    "flops",
    "peak_entries",
    "applied",
    "generated",
    "advice",
    "site",
} | {
    "steps",
    "plans",
}


@pytest.mark.parametrize(
    ("method", "described"),
    [
        ("tensorguide", {"layout", "modes", "ranks", "latent"}),
        ("tt_lora", {"modes", "ranks", "latent"}),
        ("lora", set()),
    ],
)
def test_plan(method: str, described: set[str]) -> None:
    ran = tntune("plan", "--in", 384, "--out", 1536, "--method", method, "--json")
    assert (ran.code, ran.json.keys(), ran.err) == (0, PLAN_KEYS | described, "")
    assert ran.json["lora_params"] == 8 * (384 + 1536)
    assert ran.json["layer_params"] == 384 * 1536


def test_doctor() -> None:
    ran = tntune("doctor", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.json.keys() == {"python", "platform", "threads", "devices", "packages", "checks"}
    assert ran.json["checks"] == {"tt_svd": True, "identity_at_start": True}
    assert ran.json["packages"]["torch"] == version("torch")


def test_what_json_lacks_is_null(tmp_path: Path) -> None:
    """A layer that only the second adapter has is infinitely far from none."""
    made = {
        "h.0.fc": (torch.ones(4, 12), torch.ones(20, 4)),
        "h.1.fc": (torch.ones(4, 12), torch.ones(20, 4)),
    }
    both = lora_folder(tmp_path / "both", made=made)
    one = lora_folder(tmp_path / "one", made={"h.0.fc": made["h.0.fc"]})
    ran = tntune("verify", one, both, "--json")
    assert [layer["relative_error"] is None for layer in ran.json["layers"]] == [False, True]
    assert same(ran.json["relative_error"], 1.0)
