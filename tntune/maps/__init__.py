"""Maps: pure functions from trainable factors to the two matrices of an adapter."""

from tntune.maps.activation import ACTIVATIONS, Activation, activation
from tntune.maps.advice import Advice, advice
from tntune.maps.base import Factors, WeightMap
from tntune.maps.budget import isoparameter_ranks, isorank_ranks, nearest_rank
from tntune.maps.build import LAYER_METHODS, build_map
from tntune.maps.build_joint import build_joint
from tntune.maps.codec import MAPS, decode_map, encode
from tntune.maps.delta import DeltaMap
from tntune.maps.delta_train import DeltaTrain
from tntune.maps.fact import FacT
from tntune.maps.fit_groups import FittedGroup, fit_groups
from tntune.maps.gated import Gated
from tntune.maps.grid import Grid, grids
from tntune.maps.group import Group
from tntune.maps.joint import JointMap
from tntune.maps.latent import LATENT_ALGORITHM, Latent, gaussian_latent
from tntune.maps.latent_train import LatentTrain
from tntune.maps.layout import Concat, Geometry, Joined, Layout
from tntune.maps.lora import LoRA
from tntune.maps.loretta import LoRETTA
from tntune.maps.lorta import LoRTA
from tntune.maps.lotr import LoTR
from tntune.maps.member import Member
from tntune.maps.metatt import MetaTT
from tntune.maps.network import Network, Node
from tntune.maps.norm_bounded import NormBounded
from tntune.maps.recipe import JOINT_METHODS, METHODS, Recipe
from tntune.maps.single import single_site
from tntune.maps.site import GENERATOR_KEY, Site
from tntune.maps.stack import Stack
from tntune.maps.streams import Streams
from tntune.maps.tenslora import CONSTRUCTIONS, TensLoRA, construction_modes
from tntune.maps.tensorguide import TensorGuide
from tntune.maps.tt_lora import TTLoRA

__all__ = [
    "ACTIVATIONS",
    "CONSTRUCTIONS",
    "GENERATOR_KEY",
    "JOINT_METHODS",
    "LATENT_ALGORITHM",
    "LAYER_METHODS",
    "MAPS",
    "METHODS",
    "Activation",
    "Advice",
    "Concat",
    "DeltaMap",
    "DeltaTrain",
    "FacT",
    "Factors",
    "FittedGroup",
    "Gated",
    "Geometry",
    "Grid",
    "Group",
    "Joined",
    "JointMap",
    "Latent",
    "LatentTrain",
    "Layout",
    "LoRA",
    "LoRETTA",
    "LoRTA",
    "LoTR",
    "Member",
    "MetaTT",
    "Network",
    "Node",
    "NormBounded",
    "Recipe",
    "Site",
    "Stack",
    "Streams",
    "TTLoRA",
    "TensLoRA",
    "TensorGuide",
    "WeightMap",
    "activation",
    "advice",
    "build_joint",
    "build_map",
    "construction_modes",
    "decode_map",
    "encode",
    "fit_groups",
    "gaussian_latent",
    "grids",
    "isoparameter_ranks",
    "isorank_ranks",
    "nearest_rank",
    "single_site",
]
