"""Everything that tntune raises on purpose: each error is also the builtin a caller would expect."""

__all__ = [
    "CheckpointError",
    "DtypeError",
    "MergeError",
    "ModeError",
    "NumericalError",
    "OutputError",
    "RankError",
    "SpecError",
    "TargetError",
    "TargetTypeError",
    "TntuneError",
    "UnknownFieldError",
    "UnsupportedError",
    "WorkerError",
]


class TntuneError(Exception):
    """Base of every error that tntune raises on purpose."""


class ModeError(TntuneError, ValueError):
    """A shape or mode size does not fit; the message names the core or tensor and both sizes."""


class RankError(TntuneError, ValueError):
    """A TT-rank or rank rule cannot be met; the message carries the ranks and the limits."""


class SpecError(TntuneError, ValueError):
    """A map, layout or adapter specification contradicts itself or has an unknown key."""


class UnknownFieldError(SpecError, TypeError):
    """A configuration was given a field of another method that would change what it computes."""


class DtypeError(TntuneError, TypeError):
    """A dtype is not supported, or two tensors that must share a dtype or device do not."""


class NumericalError(TntuneError, ArithmeticError):
    """Non-finite or all-zero values, or a decomposition that did not converge."""


class MergeError(NumericalError, ValueError):
    """A merged weight would not be finite; the message names the adapter, and nothing was changed."""


class CheckpointError(TntuneError, ValueError):
    """An adapter folder cannot be read; the message names the file, the key and the reason."""


class OutputError(TntuneError, OSError):
    """An output cannot be written, or exists already; nothing was changed."""


class TargetError(TntuneError, LookupError):
    """Target modules were not found or cannot be adapted; the message lists what was looked for."""


class TargetTypeError(TargetError, TypeError):
    """A target module is of a type that cannot be adapted; the message names the module and the type."""


class UnsupportedError(TntuneError, NotImplementedError):
    """The operation does not exist for this map or activation; the message says what to do instead."""


class WorkerError(TntuneError, RuntimeError):
    """A process that shared the work failed or was killed; nothing was written."""
