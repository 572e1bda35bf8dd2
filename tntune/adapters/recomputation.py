"""One check: shared maps, several processes and reentrant checkpointing do not go together."""

import torch
from torch import distributed

from tntune.errors import UnsupportedError

__all__ = ["check_recomputation"]


def check_recomputation() -> None:
    """Return, save inside the recomputation of a reentrant checkpoint while several processes train.

    There each recomputed block is a backward of its own. What is shared by the blocks gets its gradient in
    parts, DDP sends it off after the first, and the ranks go on with different, wrong gradients. The kind is
    known by the node that autograd is running: a reentrant checkpoint computes inside its own node, any other
    inside that of the operation that asked for the tensor. No kind is refused in a single process, and
    ``torch.compile`` leaves the check out.

    Raises:
        UnsupportedError: Naming the remedy.

    Example:
        >>> check_recomputation()  # a forward that is no recomputation
    """
    if torch.compiler.is_compiling():
        return
    node = torch._C._current_autograd_node()
    if node is None or "checkpoint" not in type(node).__name__.lower():
        return
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise UnsupportedError(
            "reentrant activation checkpointing gives a map that layers share wrong gradients where "
            f"{distributed.get_world_size()} processes train together, as DDP does; set "
            'gradient_checkpointing_kwargs={"use_reentrant": False}, or take a method that '
            "shares nothing"
        )
