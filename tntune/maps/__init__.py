"""Maps: pure functions from trainable factors to the two matrices of an adapter."""

from tntune.maps.activation import ACTIVATIONS, Activation, activation
from tntune.maps.advice import Advice, advice
from tntune.maps.base import Factors, WeightMap
from tntune.maps.build import build_map
from tntune.maps.codec import MAPS, decode_map, encode
from tntune.maps.group import Group
from tntune.maps.latent import LATENT_ALGORITHM, Latent, gaussian_latent
from tntune.maps.latent_train import LatentTrain
from tntune.maps.layout import Concat, Geometry, Joined, Layout
from tntune.maps.lora import LoRA
from tntune.maps.member import Member
from tntune.maps.site import GENERATOR_KEY, Site
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

__all__ = [
    "ACTIVATIONS",
    "GENERATOR_KEY",
    "LATENT_ALGORITHM",
    "MAPS",
    "Activation",
    "Advice",
    "Concat",
    "Factors",
    "Geometry",
    "Group",
    "Joined",
    "Latent",
    "LatentTrain",
    "Layout",
    "LoRA",
    "Member",
    "Site",
    "TTLoRA",
    "TensorGuide",
    "WeightMap",
    "activation",
    "advice",
    "build_map",
    "decode_map",
    "encode",
    "gaussian_latent",
]
