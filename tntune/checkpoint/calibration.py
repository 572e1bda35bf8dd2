"""Calibration files: second moments of the inputs and output gradients of each adapted layer."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tntune.checkpoint.tensor_file import write_tensors
from tntune.errors import (
    CheckpointError,
    DtypeError,
    ModeError,
    NumericalError,
    SpecError,
    TargetError,
    TntuneError,
)
from tntune.files import new_file

__all__ = ["CALIBRATION_VERSION", "Calibration", "open_calibration", "save_calibration"]

CALIBRATION_VERSION = 1
_KEY = "tntune"


@dataclass(frozen=True)
class Calibration:
    """What a model does with each layer's error: ``‖G^½ E C^½‖²`` is its mean effect on the output.

    A moment is a matrix ``(n, n)``, or fewer rows ``(k, n)`` whose Gram matrix ``rowsᵀ rows`` estimates it.

    Attributes:
        inputs: C, the mean of x xᵀ over tokens, by name; layers that read the same activations share one.
        outputs: G, the sum of g gᵀ over a prediction's tokens, in the mean over predictions, by layer;
            g is the gradient of the output with respect to the layer's output.
        input_of: Name in ``inputs`` of each layer's C.
        notes: How it was made: tokens, predictions, temperature, and so on; anything that has a JSON form.

    Raises:
        SpecError: Where a layer of ``outputs`` has no inputs, or the reverse.
        ModeError: Where a moment is no matrix, or has more rows than columns.
        DtypeError: Where one does not hold real floats.
        NumericalError: Where one is not finite.

    Example:
        >>> calibration = Calibration({"fc": torch.eye(3)}, {"fc": torch.eye(2)}, {"fc": "fc"})
        >>> [tuple(moment.shape) for moment in calibration.moments("fc")]
        [(3, 3), (2, 2)]

    Reference: Martens and Grosse (2015), Optimizing neural networks with Kronecker-factored curvature.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    input_of: Mapping[str, str]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.input_of) != set(self.outputs) or set(self.input_of.values()) != set(self.inputs):
            raise SpecError(
                f"{len(self.outputs)} layers have output moments, {len(self.input_of)} have inputs, "
                f"which name {len(set(self.input_of.values()))} of {len(self.inputs)} moments"
            )
        for name, moment in (*self.inputs.items(), *self.outputs.items()):
            if moment.ndim != 2 or moment.shape[0] > moment.shape[1] or not moment.numel():
                raise ModeError(
                    f"{name}: a moment is (n, n), or (k, n) with k < n, not {tuple(moment.shape)}"
                )
            if not moment.is_floating_point():
                raise DtypeError(f"{name}: has a moment of {moment.dtype}, which must be real floats")
            if not bool(torch.isfinite(moment).all()):
                raise NumericalError(f"{name}: has a moment that is not finite")

    @property
    def names(self) -> tuple[str, ...]:
        """The layers."""
        return tuple(self.outputs)

    def moments(self, name: str) -> tuple[Tensor, Tensor]:
        """``(C, G)`` of a layer; :class:`TargetError` where there is none of that name."""
        if name not in self.outputs:
            raise TargetError(f"{name}: the calibration has no such layer; it has {list(self.outputs)[:3]}..")
        return self.inputs[self.input_of[name]], self.outputs[name]


def save_calibration(
    path: str | os.PathLike[str], calibration: Calibration, *, overwrite: bool = False
) -> None:
    """Write one safetensors file: ``open_calibration(path)`` has the same moments, bit for bit.

    Raises:
        OutputError: Where the file exists and ``overwrite`` is False, or cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from pathlib import Path
        >>> made = Calibration({"fc": torch.eye(3)}, {"fc": torch.eye(2)}, {"fc": "fc"}, {"tokens": 9})
        >>> with TemporaryDirectory() as folder:
        ...     save_calibration(Path(folder) / "c.safetensors", made)
        ...     found = open_calibration(Path(folder) / "c.safetensors")
        >>> found.notes, torch.equal(found.inputs["fc"], made.inputs["fc"])
        ({'tokens': 9}, True)
    """
    about = {
        "version": CALIBRATION_VERSION,
        "input_of": dict(calibration.input_of),
        "notes": dict(calibration.notes),
    }
    tensors = {f"inputs.{name}": value for name, value in calibration.inputs.items()}
    tensors |= {f"outputs.{name}": value for name, value in calibration.outputs.items()}
    with new_file(path, overwrite=overwrite) as draft:
        write_tensors(draft, tensors, metadata={_KEY: json.dumps(about)})


def open_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Read what :func:`save_calibration` wrote.

    Raises:
        CheckpointError: Where the file cannot be read, is no calibration, or one of a newer version.

    Example:
        >>> open_calibration("nowhere.safetensors")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere.safetensors: cannot be read: ...
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(about, dict) or set(about) != {"version", "input_of", "notes"}:
        raise CheckpointError(f"{path}: is no calibration file of tntune; tntune calibrate makes one")
    if about["version"] != CALIBRATION_VERSION:
        raise CheckpointError(
            f"{path}: version {about['version']!r}; this tntune reads {CALIBRATION_VERSION}"
        )
    inputs, outputs = (
        {key.removeprefix(kind): value for key, value in tensors.items() if key.startswith(kind)}
        for kind in ("inputs.", "outputs.")
    )
    try:
        return Calibration(inputs, outputs, about["input_of"], about["notes"])
    except (TntuneError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
