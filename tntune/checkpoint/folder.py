"""Opening an adapter folder of either kind."""

import os
from pathlib import Path

from tntune.checkpoint.library import LIBRARY_PEFT_TYPE, open_library
from tntune.checkpoint.lora import LoraFolder, open_lora
from tntune.checkpoint.tensorguide import TensorGuideFolder, open_tensorguide
from tntune.errors import CheckpointError, TargetError
from tntune.files import CONFIG_NAME, read_json
from tntune.maps.group import SHARED_PEFT_TYPE
from tntune.maps.site import PEFT_TYPE

__all__ = ["open_adapter"]


def open_adapter(
    folder: str | os.PathLike[str], *, carry: bool = False, member: str | None = None
) -> LoraFolder | TensorGuideFolder:
    """Open a LoRA, a TensorGuide folder or one member of a library, whichever its ``peft_type`` says.

    Args:
        folder: Holds adapter_config.json and the tensors.
        member: Name of the adapter to open; for a library, and for nothing else. It is opened with all that
            it carries.
        carry: As in :func:`tntune.checkpoint.open_lora` and :func:`tntune.checkpoint.open_tensorguide`.

    Raises:
        CheckpointError: Naming the file, the key and the reason, in one line.
        TargetError: Where the library has no such member, or the folder has none at all.

    Example:
        >>> open_adapter("nowhere")
        Traceback (most recent call last):
        tntune.errors.CheckpointError: nowhere/adapter_config.json: cannot be read: No such file or directory
    """
    file = Path(folder) / CONFIG_NAME
    kind = read_json(file).get("peft_type")
    if kind == LIBRARY_PEFT_TYPE:
        library = open_library(folder)
        if member is None:
            raise TargetError(
                f"{folder}: is a library; name one of its members: {', '.join(library.members)}"
            )
        return library.member(member)
    if member is not None:
        raise TargetError(f"{folder}: is a single adapter and has no member {member!r}")
    if kind == "LORA":
        return open_lora(folder, carry=carry)
    if kind in (PEFT_TYPE, SHARED_PEFT_TYPE):
        return open_tensorguide(folder, carry=carry)
    raise CheckpointError(
        f"{file}: peft_type: must be 'LORA', {PEFT_TYPE!r}, {SHARED_PEFT_TYPE!r} or "
        f"{LIBRARY_PEFT_TYPE!r}, not {kind!r}"
    )
