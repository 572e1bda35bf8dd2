"""TensorGuide as methods of Hugging Face PEFT: importing this registers them.

Then ``get_peft_model(model, TensorGuideConfig(...))``, ``PeftModel.from_pretrained`` and all else that PEFT's
users know work as for its own methods.
"""

from tntune.peft.auto_ranks import AutoRanksCallback
from tntune.peft.callback import TensorGuideCallback
from tntune.peft.config import SharedTensorGuideConfig, TensorGuideConfig
from tntune.peft.layer import TensorGuideLayer
from tntune.peft.linear import Linear
from tntune.peft.model import SharedTensorGuideModel, TensorGuideModel
from tntune.peft.registration import TensorGuidePeftType, register

__all__ = [
    "AutoRanksCallback",
    "Linear",
    "SharedTensorGuideConfig",
    "SharedTensorGuideModel",
    "TensorGuideCallback",
    "TensorGuideConfig",
    "TensorGuideLayer",
    "TensorGuideModel",
    "TensorGuidePeftType",
    "register",
]

register(TensorGuidePeftType.TENSORGUIDE, TensorGuideConfig, TensorGuideModel)
register(TensorGuidePeftType.TENSORGUIDE_SHARED, SharedTensorGuideConfig, SharedTensorGuideModel)
