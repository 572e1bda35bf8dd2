"""The names that tensors have in single LoRA files of kohya's scripts and of diffusers."""

from typing import NamedTuple

__all__ = ["FactorKey", "factor_key", "refusal"]


class FactorKey(NamedTuple):
    """What a tensor's name says.

    Attributes:
        name: The module, as the file spells it.
        side: ``"down"`` or ``"up"``.
        style: ``"kohya"`` or ``"diffusers"``.

    Example:
        >>> FactorKey("unet.mid_block.attentions.0.proj_in", "down", "diffusers").side
        'down'
    """

    name: str
    side: str
    style: str


_ENDINGS = {
    ".lora_down.weight": ("down", "kohya"),
    ".lora_up.weight": ("up", "kohya"),
    ".lora_A.weight": ("down", "diffusers"),
    ".lora_B.weight": ("up", "diffusers"),
    ".lora.down.weight": ("down", "diffusers"),
    ".lora.up.weight": ("up", "diffusers"),
    ".lora_linear_layer.down.weight": ("down", "diffusers"),
    ".lora_linear_layer.up.weight": ("up", "diffusers"),
    "_lora.down.weight": ("down", "diffusers"),
    "_lora.up.weight": ("up", "diffusers"),
}
_REFUSED = {
    "dora_scale": "a DoRA magnitude rescales the updated weight; merge it into a plain LoRA first",
    "lora_magnitude_vector": "a DoRA magnitude rescales the updated weight; merge it into a plain LoRA first",
    "hada_": "a LoHa factor: its update is an entrywise product of two LoRAs",
    "lokr_": "a LoKr factor: its update is a Kronecker product",
    "lora_mid": "a third factor between down and up (Tucker) is not read",
    "oft_": "an OFT factor: it rotates the weight",
    "boft_": "an OFT factor: it rotates the weight",
    "lora_embedding_": "a LoRA of an embedding is not read from a single file",
    "reshape_weight": "the base weight is reshaped, so this is no update of it",
    "set_weight": "the base weight is replaced, so this is no update of it",
}
_REFUSED_ENDINGS = {
    ".diff": "a whole weight's difference (full training) is no LoRA",
    ".diff_b": "a bias's difference (full training) is no LoRA",
    ".w_norm": "a norm layer's difference is no LoRA",
    ".b_norm": "a norm layer's difference is no LoRA",
    ".on_input": "an (IA)^3 scale is no LoRA",
    ".scalar": "a trained scalar multiplies the update",
    ".a1.weight": "a GLoRA factor: its update depends on the base weight",
    ".a2.weight": "a GLoRA factor: its update depends on the base weight",
    ".b1.weight": "a GLoRA factor: its update depends on the base weight",
    ".b2.weight": "a GLoRA factor: its update depends on the base weight",
    ".lora_B.bias": "a bias inside a LoRA layer is no part of a weight update",
    ".lora_up.bias": "a bias inside a LoRA layer is no part of a weight update",
}


def factor_key(key: str) -> FactorKey | None:
    """Module, side and style of a LoRA factor's name; None where it is no factor's.

    Example:
        >>> factor_key("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight")
        FactorKey(name='lora_te_text_model_encoder_layers_0_mlp_fc1', side='up', style='kohya')
        >>> factor_key("unet.mid.attn1.processor.to_q_lora.down.weight").name
        'unet.mid.attn1.processor.to_q'
    """
    for ending, (side, style) in _ENDINGS.items():
        if key.endswith(ending) and len(key) > len(ending):
            return FactorKey(key.removesuffix(ending), side, style)
    return None


def refusal(key: str) -> str | None:
    """Why an adapter with a tensor of that name is not, or not only, LoRA; None where the name is unknown.

    Example:
        >>> refusal("lora_unet_mid_block_attn.lokr_w1_a")
        'a LoKr factor: its update is a Kronecker product'

    Reference: the state dicts of LyCORIS, sd-scripts and PEFT.
    """
    for start, reason in _REFUSED.items():
        if any(part.startswith(start) for part in key.split(".")):
            return reason
    return next((reason for ending, reason in _REFUSED_ENDINGS.items() if key.endswith(ending)), None)
