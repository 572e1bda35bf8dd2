"""Opening an adapter folder of either kind."""

import os
from pathlib import Path

from tntune.checkpoint.lora import LoraFolder, open_lora
from tntune.checkpoint.tensorguide import TensorGuideFolder, open_tensorguide
from tntune.errors import CheckpointError
from tntune.files import CONFIG_NAME, read_json
from tntune.maps.group import SHARED_PEFT_TYPE
from tntune.maps.site import PEFT_TYPE

__all__ = ["open_adapter"]


def open_adapter(folder: str | os.PathLike[str], *, carry: bool = False) -> LoraFolder | TensorGuideFolder:
    """Open a LoRA or a TensorGuide folder, whichever its ``peft_type`` says.

    Args:
        folder: Holds adapter_config.json and the tensors.
        carry: As in :func:`tntune.checkpoint.open_lora` and :func:`tntune.checkpoint.open_tensorguide`.

    Raises:
        CheckpointError: Naming the file, the key and the reason, in one line.

    Example:
        >>> open_adapter("nowhere")
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere/adapter_config.json: cannot be read: No such file or directory
    """
    file = Path(folder) / CONFIG_NAME
    kind = read_json(file).get("peft_type")
    if kind == "LORA":
        return open_lora(folder, carry=carry)
    if kind in (PEFT_TYPE, SHARED_PEFT_TYPE):
        return open_tensorguide(folder, carry=carry)
    raise CheckpointError(
        f"{file}: peft_type: must be 'LORA', {PEFT_TYPE!r} or {SHARED_PEFT_TYPE!r}, not {kind!r}"
    )
