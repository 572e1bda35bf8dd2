"""What a conversion will take, said before it starts."""

from pathlib import Path

from tntune.checkpoint.calibration import Calibration
from tntune.checkpoint.lora import LoraTensors, open_lora
from tntune.checkpoint.lora_file import open_lora_file
from tntune.cli.console import emit_json, table
from tntune.convert.memory import conversion_memory, resize_memory
from tntune.convert.resize_settings import ResizeSettings
from tntune.convert.settings import ConversionSettings

__all__ = ["show_estimate"]


def show_estimate(
    source: Path,
    settings: ConversionSettings | ResizeSettings,
    *,
    calibration: Calibration | None = None,
    json: bool = False,
) -> None:
    """Print the size of a source and the memory that its conversion takes at most.

    Example:
        >>> show_estimate.__name__
        'show_estimate'
    """
    opened: LoraTensors = (
        open_lora(source, carry=True) if source.is_dir() else open_lora_file(source, carry=True)
    )
    if isinstance(settings, ResizeSettings):
        memory = resize_memory(opened, settings)
    else:
        memory = conversion_memory(opened, settings, calibration=calibration)
    facts = {
        "source": str(source),
        "layers": len(opened.sites),
        "params": opened.params,
        "bytes": opened.num_bytes,
        "memory_bytes": memory,
    }
    if json:
        emit_json(facts)
        return
    rows = [(name.replace("_", " "), value) for name, value in facts.items()]
    table("nothing was written", ("", "value"), rows)
