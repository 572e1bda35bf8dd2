"""What a conversion aims at and what it may use."""

from dataclasses import asdict, dataclass

import torch

from tntune.convert.encode import DEFAULT_LAYOUTS, check_stored
from tntune.convert.jobs import check_jobs
from tntune.convert.lift import check_lift
from tntune.convert.target import Target
from tntune.errors import SpecError
from tntune.maps.activation import activation
from tntune.maps.build import make_layout
from tntune.maps.layout import Geometry, Joined

__all__ = ["METHODS", "ConversionSettings"]

METHODS = ("tensorguide", "joint", "svd", "auto")


@dataclass(frozen=True)
class ConversionSettings:
    """How a LoRA is converted.

    Attributes:
        target: How small or how accurate.
        method: ``"tensorguide"``: a train for each layer. ``"joint"``: one train for all layers of a shape.
            ``"svd"``: truncation, weighted where there is a calibration. ``"auto"``: for each layer what is
            better of the first and third, or with a calibration for the whole adapter what is better of the
            second and third. Layer by layer, one stays as it is where nothing smaller serves a budget or
            tolerance. Where layers are converted together, for ``"joint"`` or with a calibration, a
            tolerance is that of all ΔW together.
        layouts: Joined patterns to choose from, layer by layer; where trains are made that way.
        activation: σ of the result; a nonlinear one by the exact lift, for trains only.
        dtype: Dtype to store; by default each layer keeps its own.
        jobs: Processes that work on layers at a time, where layers are converted one by one: neither by
            ``"joint"`` nor with a calibration, which refuse more than one. The result does not depend on it.

    Raises:
        SpecError: For an unknown method, a layout or activation that conversion cannot make, layouts for a
            method that chooses none, or less than one job.
        DtypeError: For a dtype that is not of floating point, or of less than 16 bits.
        UnsupportedError: For an activation without exact lift.

    Example:
        >>> ConversionSettings(Target(params=0.5), method="auto").to_json()["target"]
        {'params': 0.5}
    """

    target: Target
    method: str = "tensorguide"
    layouts: tuple[str, ...] = DEFAULT_LAYOUTS
    activation: str = "identity"
    dtype: torch.dtype | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.target, Target):
            raise SpecError(f"target must be a Target, such as Target(params=0.5), not {self.target!r}")
        if self.method not in METHODS:
            raise SpecError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        if not self.layouts:
            raise SpecError("at least one layout is needed")
        for layout in self.layouts:
            if not isinstance(make_layout(layout, Geometry(4, 4, 2)), Joined):
                raise SpecError(f"conversion needs joined layouts, not {layout!r}")
        if self.method in ("joint", "svd") and tuple(self.layouts) != DEFAULT_LAYOUTS:
            raise SpecError(f"method {self.method!r} chooses no layouts, but {self.layouts} were given")
        if self.method == "joint" and self.target.max_rank is not None:
            raise SpecError(
                f"method 'joint' needs a budget (params, max_params) or a tolerance, "
                f"not {self.target.to_json()}"
            )
        check_stored(self.dtype)
        check_jobs(self.jobs)
        if not activation(self.activation).linear:
            check_lift(self.activation)
            if self.method != "tensorguide":
                raise SpecError(
                    f"activation {self.activation!r} needs method 'tensorguide', not {self.method!r}"
                )

    def check_one_job(self) -> None:
        """Raise SpecError where several processes are asked for, and all layers are converted together."""
        if self.jobs != 1:
            raise SpecError(
                "jobs share out layers that are converted one by one; method 'joint', a calibration and a "
                f"sweep convert them together, in one process, not {self.jobs}"
            )

    def to_json(self) -> dict[str, object]:
        """Plain values, for reports, of all that the result depends on."""
        plain = {**asdict(self), "layouts": list(self.layouts), "target": self.target.to_json()}
        del plain["jobs"]
        return {**plain, "dtype": str(self.dtype) if self.dtype else None}
