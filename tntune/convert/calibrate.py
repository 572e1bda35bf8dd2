"""calibrate: the moments that a task norm needs, streamed over batches of a model with its LoRA."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from tntune.checkpoint.calibration import Calibration
from tntune.checkpoint.lora import open_lora
from tntune.convert.attach import attached, modules_of, on_call
from tntune.convert.prediction import Batch, Predict, predict, token_mask
from tntune.errors import NumericalError, SpecError
from tntune.maps.base import Factors

__all__ = ["calibrate", "lora_factors"]

_LIMIT = 4096  # features up to which a moment is kept whole
_TEMPERATURE = 4.0


class _Moment:
    """A running second moment: whole, or as a sketch by random signs where there are many features."""

    def __init__(self, limit: int, generator: torch.Generator) -> None:
        self.limit, self.generator = limit, generator
        self.total: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Count ``rows (n, features)`` in."""
        rows = rows.detach().float()
        if rows.shape[1] > self.limit:
            signs = torch.randint(0, 2, (self.limit, rows.shape[0]), generator=self.generator) * 2.0 - 1.0
            made = signs.to(rows) @ rows / math.sqrt(self.limit)
        else:
            made = rows.mT @ rows
        self.total = made if self.total is None else self.total.add_(made)

    def over(self, count: int) -> Tensor:
        """The moment per count, on the CPU."""
        assert self.total is not None
        square = self.total.shape[0] == self.total.shape[1]
        return (self.total / (count if square else math.sqrt(count))).cpu()


class _Recorder:
    """Forward hooks that keep each layer's inputs at once and its outputs until their gradients are known."""

    def __init__(self, names: Iterable[str], limit: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.outputs = {name: _Moment(limit, generator) for name in names}
        self.inputs = {name: _Moment(limit, generator) for name in self.outputs}
        self.input_of: dict[str, str] = {}
        self.tokens: dict[str, int] = dict.fromkeys(self.outputs, 0)
        self.mask: Tensor | None = None
        self.live: dict[str, list[Tensor]] = {}
        self._seen: dict[tuple[int, int], tuple[str, Tensor]] = {}
        self._calls: dict[str, list[tuple[int, int]]] = {}

    def seen(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        """Count a call's inputs in, unless another layer has the same; what follows may change its output."""
        key = (id(x), 0 if x.is_inference() else x._version)  # changed in place it is another
        owner, _ = self._seen.setdefault(key, (name, x))
        if self.input_of.setdefault(name, owner) != owner:
            raise SpecError(f"{name}: reads what {owner} reads at one call and not at another")
        if owner == name:
            self.inputs[name].add(self._rows(x))
            self.tokens[name] += self._rows(x).shape[0]
        if not output.requires_grad:
            output.requires_grad_()
        self._calls.setdefault(name, []).append(key)
        self.live.setdefault(name, []).append(output)
        return output.clone()

    def finish(self, total: Tensor) -> None:
        """Count the gradients of ``total`` at all outputs of the batch in."""
        for name, keys in self._calls.items():
            owner = self.input_of[name]
            if keys != self._calls[owner]:
                raise SpecError(
                    f"{name}: reads what {owner} reads at some of its calls, {len(keys)} against "
                    f"{len(self._calls[owner])}; layers of one input are to be called together"
                )
        calls = [(name, output) for name, outputs in self.live.items() for output in outputs]
        gradients = torch.autograd.grad(total, [output for _, output in calls], allow_unused=True)
        for (name, output), gradient in zip(calls, gradients, strict=True):
            self.outputs[name].add(self._rows(torch.zeros_like(output) if gradient is None else gradient))
        self.live.clear()
        self._seen.clear()
        self._calls.clear()

    def _rows(self, value: Tensor) -> Tensor:
        if self.mask is not None and value.shape[:-1] == self.mask.shape:
            return value[self.mask.to(value.device)]
        return value.reshape(-1, value.shape[-1])


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    source: str | os.PathLike[str],
    *,
    predict: Predict = predict,
    limit: int = _LIMIT,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Calibration:
    """Moments of a LoRA's layers at work: ``‖G^½ E C^½‖²`` is, to first order, what E does to the output.

    One forward and one backward pass a batch. C is the mean of x xᵀ over tokens. G is that of gradients of
    random combinations of the logits, whose covariance is the Fisher matrix of the model's own predictions,
    mixed half and half with those at temperature 4, lest confident predictions weigh nothing; no labels are
    needed. Memory: one moment of ``n²`` numbers for each layer side of n
    features, ``limit * n`` where n exceeds the limit; layers that read the same activations share theirs.

    Args:
        model: The base model, with trained heads in place, in evaluation mode where it has dropout. Its
            tensors are not changed.
        batches: What the model sees: mappings of keyword arguments, or single arguments.
        source: The LoRA folder.
        predict: From model and batch to logits ``(predictions, classes)``.
        limit: Features up to which a moment is kept whole; above, a sketch of so many rows.
        seed: Seed of the random combinations and sketches.
        progress: Called with the number of batches done.

    Raises:
        SpecError: For a limit below 1, no batch that reaches every layer, or layers that read the same
            activations at some calls only.
        TargetError: Where the model lacks a layer of the LoRA, or calls one without a tensor.
        NumericalError: Where a moment is not finite.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from tntune.checkpoint.lora_writer import LoraEntry, write_lora
        >>> model = nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 4))
        >>> with TemporaryDirectory() as parent:
        ...     entry = LoraEntry("0", torch.ones(2, 5), torch.ones(3, 2))
        ...     write_lora(Path(parent) / "lora", [entry], base_config={})
        ...     calibration = calibrate(model, [torch.randn(8, 5)], Path(parent) / "lora")
        >>> [tuple(moment.shape) for moment in calibration.moments("0")], calibration.notes["predictions"]
        ([(5, 5), (3, 3)], 8)

    Reference: Martens and Grosse (2015), section 3; Woodruff (2014), section 2, for the sketch.
    """
    if limit < 1:
        raise SpecError(f"limit must be at least 1, not {limit}")
    factors = lora_factors(source)
    recorder = _Recorder(factors, limit, seed)
    generator = torch.Generator().manual_seed(seed)
    done = predictions = 0
    with attached(model, factors):
        modules = modules_of(model, factors)
        handles = [on_call(name, module, partial(recorder.seen, name)) for name, module in modules.items()]
        try:
            for batch in batches:
                recorder.mask = token_mask(batch)
                with torch.inference_mode(False), torch.enable_grad():
                    logits = predict(model, batch)
                    recorder.finish((logits * _direction(logits.detach(), generator)).sum())
                done, predictions = done + 1, predictions + logits.shape[0]
                if progress:
                    progress(done)
        finally:
            for handle in handles:
                handle.remove()
    notes = {"batches": done, "predictions": predictions, "temperature": _TEMPERATURE, "limit": limit}
    return _calibration(recorder, predictions, {**notes, "tokens": max(recorder.tokens.values())})


@torch.inference_mode(False)
def lora_factors(source: str | os.PathLike[str]) -> dict[str, Factors]:
    """Down and up of each layer of a LoRA folder, the scale in up, in float32 at least.

    Example:
        >>> lora_factors("nowhere")
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere/adapter_config.json: cannot be read: No such file or directory
    """
    folder = open_lora(source, carry=True)
    loaded = {site.name: folder.load(site) for site in folder.sites}
    return {name: Factors(_wide(down), scale * _wide(up)) for name, (down, up, scale) in loaded.items()}


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _direction(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A random combination of each row whose covariance is ``diag(p) − p pᵀ``."""
    chances = (logits.float().softmax(-1) + (logits.float() / _TEMPERATURE).softmax(-1)) / 2
    signs = torch.randint(0, 2, chances.shape, generator=generator).to(chances) * 2 - 1
    drawn = chances.sqrt() * signs
    return (drawn - chances * drawn.sum(-1, keepdim=True)).to(logits)


def _calibration(recorder: _Recorder, predictions: int, notes: Mapping[str, float]) -> Calibration:
    idle = [name for name in recorder.outputs if name not in recorder.input_of]
    if not predictions or idle:
        raise SpecError(f"{predictions} predictions were made, and none reached the layers {idle[:3]}")
    owners = dict.fromkeys(recorder.input_of.values())
    inputs = {name: recorder.inputs[name].over(recorder.tokens[name]) for name in owners}
    outputs = {name: moment.over(predictions) for name, moment in recorder.outputs.items()}
    if not any(bool(moment.any()) for moment in outputs.values()):
        raise NumericalError(
            "the output depends on no adapted layer: all gradients are zero; is the head loaded?"
        )
    return Calibration(inputs, outputs, recorder.input_of, notes)
