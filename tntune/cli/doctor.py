"""``tntune doctor``: versions, devices and a self-check, to paste into an issue."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import typer

from tntune.cli.console import emit_json, note, table
from tntune.cli.options import Json
from tntune.maps.build import build_map
from tntune.maps.layout import Geometry
from tntune.tt.decompose import tt_svd
from tntune.tt.train import dense

__all__ = ["doctor"]

_PACKAGES = (
    "tntune",
    "torch",
    "tensorly",
    "tensorly-torch",
    "opt_einsum",
    "numpy",
    "scipy",
    "safetensors",
    "peft",
    "transformers",
    "accelerate",
    "matplotlib",
)


def doctor(json: Json = False) -> None:
    """Print versions and devices, and check that trains and maps compute what they should.

    Example: tntune doctor --json
    """
    checks = {"tt_svd": _tt_svd_error() < 1e-12, "identity_at_start": _starts_at_zero()}
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "packages": {name: _version(name) for name in _PACKAGES},
        "checks": checks,
    }
    if json:
        emit_json(facts)
    else:
        packages = [(name, found or "not installed") for name, found in facts["packages"].items()]
        rows = [(key, facts[key]) for key in ("python", "platform", "threads")]
        rows.append(("devices", ", ".join(facts["devices"])))
        table("tntune doctor", ("", "found"), [*rows, *packages, *checks.items()])
    if not all(checks.values()):
        note(f"failed: {', '.join(name for name, passed in checks.items() if not passed)}")
        raise typer.Exit(1)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _tt_svd_error() -> float:
    x = torch.arange(210, dtype=torch.float64).sin().reshape(5, 6, 7)
    return float((dense(tt_svd(x).value) - x).norm() / x.norm())


def _starts_at_zero() -> bool:
    map = build_map("tensorguide", Geometry(12, 10, 4))
    params, fixed = map.init(torch.Generator().manual_seed(0))
    return not bool(map.delta(params, fixed).any())
