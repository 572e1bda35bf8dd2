"""TensorGuideConfig: what to adapt and with which map, as PEFT's users write it."""

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from peft import PeftConfig

from tntune.adapters.spec import AUTO
from tntune.errors import SpecError, UnknownFieldError
from tntune.maps.activation import activation
from tntune.maps.base import finite, positive
from tntune.maps.build import LAYER_METHODS
from tntune.maps.build_joint import STACK_METHODS
from tntune.maps.group import SHARED_PEFT_TYPE, group_config, groups_from_config
from tntune.maps.recipe import Recipe
from tntune.maps.site import FORMAT_VERSION, check_version, site_config, sites_from_config
from tntune.peft.ranks import check_auto, check_ranks
from tntune.peft.registration import TensorGuidePeftType

__all__ = ["FROM_LORA", "SharedTensorGuideConfig", "TensorGuideConfig"]

FROM_LORA = "lora:"
"""What ``init_weights`` starts with where a trained LoRA is the start: ``"lora:<folder>"``."""

_FOREIGN = {
    "bias": "biases of the base model are not trained",
    "lora_alpha": "write alpha",
    "lora_bias": "adapters have no bias",
    "lora_dropout": "write dropout",
    "rank": "write ranks for the TT-ranks, r for the width",
    "target_parameters": "only modules can be adapted",
    "use_dora": "magnitudes are not trained",
    "use_rslora": "write alpha = r ** 0.5 for the scale of rsLoRA",
}
"""Fields of other methods that change what an adapter computes, and what to write instead."""

_DESCRIBED = ("sites", "groups")  # what the other fields came to, module by module
_BOOKKEEPING = frozenset(
    (
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "modules_to_save", "target_modules", "exclude_modules", "init_weights"),
        *("layers_to_transform", "layers_pattern", "metadata", "embeddings", "format_version", *_DESCRIBED),
        "trainable_token_indices",
    )
)


@dataclass
class TensorGuideConfig(PeftConfig):
    """One map for each target: with ``init_weights=True`` the model's function is unchanged at the start.

    Attributes:
        r: The width M of every adapter; what a LoRA calls its rank.
        ranks: TT-ranks: one bound for all bonds, lowered to what the modes allow, or one rank for each inner
            bond. By default 8. ``"auto"``: found in training, within ``params``; see below.
        params: In place of ``ranks``, a budget: the share of the parameters that a LoRA of width ``r`` has;
            the largest bound of the ranks that keeps it is taken. With ``ranks="auto"`` it holds at the end:
            maps start at ranks of four times as many (a LoRA at width ``r``, with a budget below 1), and
            :class:`tntune.peft.AutoRanksCallback` shrinks them as the Trainer goes on.
        alpha: The scale is ``alpha / r``; None means ``alpha = r``.
        target_modules: Names, a regular expression, or ``"all-linear"``; by default what PEFT's LoRA takes.
        exclude_modules: Names, or a regular expression, that are left alone.
        layers_to_transform: Indexes of the blocks to adapt; all by default.
        layers_pattern: Name of the list of blocks, where PEFT does not know it.
        rank_pattern: ``r`` for the modules that a pattern matches.
        alpha_pattern: ``alpha`` for the modules that a pattern matches.
        modules_to_save: Modules that are trained and saved whole.
        trainable_token_indices: Rows of the embeddings that are trained too, as in PEFT.
        dropout: Probability of dropout on the input of the adapter, in training.
        init_weights: True: ΔW = 0. False: random. ``"paper"``, ``"published"``: those starts of TensorGuide.
            Where σ is not linear, units come in opposite pairs, so that none of a few is dead.
            ``"lora:<folder>"``: a trained LoRA, by TT-SVD at these ranks; what is saved then says False.
        activation: Name of σ between the two factors; only the identity can be merged or become a LoRA.
        method: Kind of the maps: one of :data:`tntune.maps.LAYER_METHODS`.
        layout: ``"concat"``, or a pattern of named legs; by default ``"f1 f2 (side w)"``.
        latent: ``"none"``, ``"fixed"``, ``"resample"`` or ``"mean"``.
        seed: Seed of the latents.
        fan_in_fan_out: Whether weights are stored (in, out). It is read off each target, so this is a check.
        format_version: Version of the folder format.
        sites: The map, scale and activation of each target, once it is known; written by tntune.
        embeddings: Scales of embedding tensors that a converted folder carries along; PEFT cannot apply them.
        metadata: What ``tntune convert`` noted.

    Raises:
        SpecError: For a value that means nothing, two that contradict each other, or a newer format.

    Example:
        >>> config = TensorGuideConfig(r=16, ranks=4, target_modules=["q_proj", "v_proj"])
        >>> config.peft_type.value, sorted(config.target_modules)
        ('TENSORGUIDE', ['q_proj', 'v_proj'])

    Reference: Qi et al. (arXiv 2506.16456), eqs. 1-3.
    """

    _methods: ClassVar[tuple[str, ...]] = LAYER_METHODS

    r: int = 8
    ranks: int | list[int] | str | None = None
    params: float | None = None
    alpha: float | None = None
    target_modules: Collection[str] | str | None = None
    exclude_modules: Collection[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    dropout: float = 0.0
    init_weights: bool | str = True
    activation: str = "identity"
    method: str = "tensorguide"
    layout: str | None = None
    latent: str = "none"
    seed: int = 0
    fan_in_fan_out: bool | None = None
    format_version: int = FORMAT_VERSION
    sites: dict[str, Any] | None = None
    embeddings: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = TensorGuidePeftType.TENSORGUIDE
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list | tuple):
                setattr(self, name, set(getattr(self, name)))
        self._check_selection()
        self._check_values()
        self._check_described()
        self._given, self._settled = self.sites, self._choices()

    def __new__(cls, *args: Any, **kwargs: Any) -> "TensorGuideConfig":
        """Refuse what other methods know and what would change the function, before PEFT drops it."""
        for key in sorted(_FOREIGN.keys() & kwargs.keys()):
            if kwargs[key] not in (None, False, "none", {}, []):
                raise UnknownFieldError(
                    f"{key}={kwargs[key]!r} is no field of {cls.__name__}; {_FOREIGN[key]}"
                )
        return super().__new__(cls)

    def to_dict(self) -> dict[str, Any]:
        """As PEFT does; an adapter that was made starts from its own tensors, and no more from a LoRA."""
        found: dict[str, Any] = super().to_dict()
        is_made = any(found.get(name) for name in _DESCRIBED)
        if is_made and str(self.init_weights).startswith(FROM_LORA):
            found["init_weights"] = False
        return found

    def described(self) -> dict[str, Any]:
        """The sites that were given, as a file gives them; none where a field was changed since.

        Sites that were noted by :meth:`describe` are not among them: the fields make them anew.
        """
        return dict(self._given or {}) if self._settled == self._choices() else {}

    def describe(self, sites: dict[str, Any]) -> None:
        """Note what the fields came to, so that it is stored."""
        self.sites = sites or None

    def _choices(self) -> dict[str, object]:
        """The fields that shape the maps."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _BOOKKEEPING}

    def _check_selection(self) -> None:
        """What PEFT checks of its own methods."""
        if self.layers_pattern and self.layers_to_transform is None:
            raise SpecError("layers_pattern is given without layers_to_transform; give both or neither")
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            for name in ("layers_to_transform", "layers_pattern"):
                if getattr(self, name) is not None:
                    raise SpecError(
                        f"{name} cannot be used where target_modules is the expression "
                        f"{self.target_modules!r}; name the layers in the expression"
                    )

    def _check_values(self) -> None:
        positive("r", self.r)
        if self.ranks == AUTO:
            check_auto(self.params, self.method, self.layout, self.init_weights)
        else:
            check_ranks(self.ranks, self.params, self.method)
        for alpha in (self.r if self.alpha is None else self.alpha, *self.alpha_pattern.values()):
            if finite("alpha", alpha) == 0:
                raise SpecError("alpha is 0, so that no adapter would do anything; give another number")
        for pattern, width in self.rank_pattern.items():
            positive(f"rank_pattern[{pattern!r}]", width)
        if not 0 <= finite("dropout", self.dropout) < 1:
            raise SpecError(f"dropout must be at least 0 and less than 1, not {self.dropout}")
        if self.method not in self._methods:
            hint = "; that one is SharedTensorGuideConfig's" if self.method in STACK_METHODS else ""
            raise SpecError(f"method must be one of {', '.join(self._methods)}, not {self.method!r}{hint}")
        starts = (True, False, "paper", "published")
        if self.init_weights not in starts and not str(self.init_weights).startswith(FROM_LORA):
            raise SpecError(
                "init_weights must be True, False, 'paper', 'published' or 'lora:<folder>', "
                f"not {self.init_weights!r}"
            )
        activation(self.activation)

    def _check_described(self) -> None:
        """What a folder says beyond the fields."""
        check_version(self.format_version)
        if self.embeddings:
            raise SpecError(
                f"the adapter carries LoRA tensors of the embeddings {sorted(self.embeddings)}, which PEFT "
                "cannot apply beside it; tntune export makes a LoRA that has both"
            )
        if self.sites is not None:
            sites_from_config({**site_config({}), "sites": self.sites})


@dataclass
class SharedTensorGuideConfig(TensorGuideConfig):
    """One map for all targets of a shape: layer and projection are modes of one tensor.

    Fields as in :class:`TensorGuideConfig`, with a layout that may name ``layer`` and ``proj`` legs, by
    default ``"layer proj f1 f2 (side w)"`` without legs of size 1. Targets that differ in size or width share
    no map. ``sites`` is not used; ``groups`` takes its place.

    The method is ``"tensorguide"`` (its train) or one of :data:`tntune.maps.build_joint.STACK_METHODS`, such
    as ``"lotr"`` or ``"tenslora_qkv_depth"``. Those have one rank, ``r``, and neither ranks, layout nor
    latent; targets of roles that only some blocks have are then a map of their own.

    Attributes:
        head_dim: Size of an attention head, for methods with a mode for heads; by default what the model's
            configuration says.
        input_heads: Endings of the paths of targets whose heads split the input, as attention's output
            projection does.
        groups: For each train its map, its targets in their order, scales and activation, once they are
            known; written by tntune.

    Raises:
        SpecError: As above, and for methods and latents that cannot be shared.

    Example:
        >>> SharedTensorGuideConfig(r=4, target_modules="all-linear").peft_type.value
        'TENSORGUIDE_SHARED'
    """

    _methods: ClassVar[tuple[str, ...]] = ("tensorguide", *STACK_METHODS)

    head_dim: int | None = None
    input_heads: list[str] = field(default_factory=list)
    groups: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = TensorGuidePeftType.TENSORGUIDE_SHARED
        self._given = self.groups
        if self.method != "tensorguide":
            self._check_stack()
        if self.layout == "concat":
            raise SpecError("only a TensorGuide with named legs is shared over layers: not layout 'concat'")
        if self.latent == "resample":
            raise SpecError(
                "latent 'resample' draws z at every call, and a shared train is called once for each layer; "
                "choose 'fixed' or 'mean'"
            )

    def _check_stack(self) -> None:
        """What a map with one rank does not have."""
        if self.ranks is not None:
            raise SpecError(f"method {self.method!r} has one rank, and that is r: not ranks={self.ranks}")
        Recipe(
            method=self.method,
            layout=self.layout,
            latent=self.latent,
            head_dim=self.head_dim,
            input_heads=tuple(self.input_heads),
        )

    def describe(self, groups: dict[str, Any]) -> None:
        """Note what the fields came to, so that it is stored."""
        self.groups = groups or None

    def _check_described(self) -> None:
        super()._check_described()
        if self.sites is not None:
            raise SpecError(f"a {SHARED_PEFT_TYPE} adapter has groups, and no sites of its own")
        if self.groups is not None:
            groups_from_config({**group_config({}), "groups": self.groups})
