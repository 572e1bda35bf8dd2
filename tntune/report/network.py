"""NetworkKernel: the tangent kernel of a whole model over the params of an adapter folder."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tntune.adapters.adapt import install
from tntune.checkpoint.tensorguide import TensorGuideFolder
from tntune.errors import SpecError, TargetError
from tntune.maps.site import KEY_PREFIX
from tntune.report.kernel import spectrum_json
from tntune.report.layers import adapted_layers, open_layers
from tntune.theory.ntk_model import NtkPlan, ntk_plan
from tntune.theory.ntk_output import Batch, OutputFunction, last_token, logits, loss, margin
from tntune.theory.ntk_result import Ntk
from tntune.theory.spectrum import SpectrumReport

__all__ = ["KINDS", "OUTPUT_FUNCTIONS", "LayerShare", "NetworkKernel", "install_folder", "network_plan"]

OUTPUT_FUNCTIONS: dict[str, OutputFunction] = {
    "logits": logits,
    "margin": margin,
    "last-token": last_token,
    "loss": loss,
}
"""What of a prediction the kernel is taken of, by name."""

KINDS = ("full", "trace", "per_class")


@dataclass(frozen=True)
class LayerShare:
    """What one layer adds to the kernel.

    Attributes:
        name: Module path.
        params: Its trainable entries.
        share: Of the trace.
        alignment: Cosine between its part of the kernel and the whole, in the Frobenius product.

    Example:
        >>> LayerShare("h.0.fc", 20, 0.5, 0.9).share
        0.5
    """

    name: str
    params: int
    share: float
    alignment: float


@dataclass(frozen=True, eq=False)
class NetworkKernel:
    """The kernel of a model: one spectrum, or one for each class.

    Attributes:
        path: The adapter folder.
        output: Name of the output function.
        kind: ``"full"``, ``"trace"`` or ``"per_class"``.
        plan: What was computed, in words: sizes and memory.
        route: How the gradients were made.
        params: Of all adapters.
        spectra: One, or one for each class.
        layers: Every layer's part.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(3, 2)).eval(), torch.ones(4, 3)
        >>> plan = ntk_plan(model, x, logits)
        >>> found = NetworkKernel.of(plan.run(), plan, path="lora", output="logits")
        >>> found.spectra[0].rank, found.layers[0].name, found.layers[0].share
        (2, '0', 1.0)
    """

    path: str
    output: str
    kind: str
    plan: str
    route: str
    params: int
    spectra: tuple[SpectrumReport, ...]
    layers: tuple[LayerShare, ...]

    @classmethod
    def of(cls, kernel: Ntk, plan: NtkPlan, *, path: str, output: str) -> "NetworkKernel":
        """The kernel that a plan made, summarised."""
        if kernel.output == "per_class":
            spectra = tuple(SpectrumReport.from_gram(part) for part in kernel.values)
        else:
            spectra = (kernel.spectrum(),)
        return cls(
            path=path,
            output=output,
            kind=kernel.output,
            plan=str(plan),
            route=kernel.route,
            params=plan.function.num_parameters,
            spectra=spectra,
            layers=tuple(_shares(kernel)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values with stable keys."""
        return {
            "path": self.path,
            "output": self.output,
            "kind": self.kind,
            "plan": self.plan,
            "route": self.route,
            "params": self.params,
            "spectra": [spectrum_json(spectrum) for spectrum in self.spectra],
            "layers": [
                {"name": each.name, "params": each.params, "share": each.share, "alignment": each.alignment}
                for each in self.layers
            ],
        }


def network_plan(
    folder: str | os.PathLike[str],
    model: nn.Module,
    batch: Batch,
    *,
    output: str = "logits",
    kind: str = "full",
    dtype: torch.dtype = torch.float64,
) -> NtkPlan:
    """The plan of the kernel of ``model`` with the folder's adapters in it: printed, it says what it takes.

    Args:
        folder: LoRA or TensorGuide folder.
        model: A fresh model whose modules have the folder's names; it is changed, and put into eval mode.
        batch: Its inputs.
        output: Name of the output function.
        kind: ``"full"``, ``"trace"`` or ``"per_class"``.
        dtype: To compute in.

    Raises:
        SpecError: For an unknown output or kind.
        CheckpointError, TargetError, ModeError: Where folder and model do not fit together.

    Example:
        >>> network_plan("lora", nn.Identity(), torch.ones(1), output="colour")
        Traceback (most recent call last):
        tntune.errors.SpecError: output must be one of logits, margin, last-token, loss, not 'colour'
    """
    if output not in OUTPUT_FUNCTIONS:
        raise SpecError(f"output must be one of {', '.join(OUTPUT_FUNCTIONS)}, not {output!r}")
    if kind not in KINDS:
        raise SpecError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    install_folder(model, folder)
    return ntk_plan(model.eval(), batch, OUTPUT_FUNCTIONS[output], output=kind, dtype=dtype)


def install_folder(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Put a folder's adapters into a model, LoRA or TensorGuide, and its heads saved whole in their places.

    Raises:
        TargetError: Where the model lacks a module of the folder.
        ModeError: Where one has another shape.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> model = nn.Sequential(nn.Linear(5, 3))
        >>> with TemporaryDirectory() as parent:
        ...     entry = LoraEntry("0", torch.ones(2, 5), torch.ones(3, 2))
        ...     write_lora(Path(parent) / "lora", [entry], base_config={})
        ...     install_folder(model, Path(parent) / "lora")
        >>> model[0].delta_weight().sum().item()
        30.0
    """
    opened = open_layers(folder)
    own = model.state_dict(keep_vars=True)
    carried = {key: key.removeprefix(KEY_PREFIX) for key in opened.passthrough}
    missing = sorted(name for name in carried.values() if name not in own)
    if missing:
        raise TargetError(f"{folder}: carries {missing[0]}, which {type(model).__name__} does not have")
    if isinstance(opened, TensorGuideFolder) and opened.groups:
        _install_groups(model, opened)
    else:
        layers = list(adapted_layers(opened))
        sites = {layer.name: layer.site for layer in layers}
        install(model, sites, {layer.name: layer.tensors for layer in layers})
    with torch.no_grad():
        for key, name in carried.items():
            own[name].copy_(opened.tensor(key))


def _install_groups(model: nn.Module, folder: TensorGuideFolder) -> None:
    """Shared maps once each, in float64."""
    own = {name: folder.load(group.modules[0]) for name, group in folder.groups.items()}
    wide = {name: {key: tensor.double() for key, tensor in tensors.items()} for name, tensors in own.items()}
    install(model, folder.groups, wide)


def _shares(kernel: Ntk) -> list[LayerShare]:
    """Every layer's share of the trace and its alignment with the whole."""
    whole = kernel.values
    total, norm = float(_trace(whole)), float(whole.norm())
    found = []
    for name in kernel.layers:
        part = kernel.layer(name)
        size = float(part.norm())
        found.append(
            LayerShare(
                name=name.removesuffix(".generator"),
                params=sum(
                    terms[0].columns for key, terms in kernel.rows.items() if key.rpartition(".")[0] == name
                ),
                share=float(_trace(part)) / total if total else 0.0,
                alignment=float((part * whole).sum()) / (size * norm) if size * norm else math.nan,
            )
        )
    return found


def _trace(kernel: Tensor) -> Tensor:
    """Of one kernel, or of one for each class together."""
    return kernel.diagonal(dim1=-2, dim2=-1).sum()
