"""The classifier of diagrams: a ResNet18 of one channel whose 512 -> 2 head is what methods adapt."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ResNetConfig, ResNetModel

from tntune.errors import SpecError
from tntune.experiments.pretrained import fit, quiet_random
from tntune.experiments.quantum_dots.noise import Noise
from tntune.experiments.quantum_dots.sample import diagrams

__all__ = ["CONV1", "FEATURES", "DotClassifier", "calibrate", "features", "pretrained_state", "resnet18"]

FEATURES = 512

CONV1 = "backbone.embedder.embedder.convolution"
"""Path of the first convolution, 64 x 1 x 7 x 7: the 3,136 parameters that published counts include."""


class DotClassifier(nn.Module):
    """Diagrams (n, 1, h, w), or their features (n, 512), to logits (n, 2); all parameters start frozen.

    Attributes:
        backbone: A ResNet18, or the identity where features are given.
        classifier: The head.
        norm: ``"published"``: in training BatchNorm uses each batch's statistics and its running ones keep
            moving, though its affine is frozen. ``"frozen"``: it stays in eval mode.

    Raises:
        SpecError: Where the norm is another.

    Example:
        >>> model = DotClassifier(nn.Identity(), norm="frozen")
        >>> model(torch.ones(3, 512)).shape
        torch.Size([3, 2])
    """

    def __init__(self, backbone: nn.Module, *, norm: str = "published") -> None:
        super().__init__()
        if norm not in ("published", "frozen"):
            raise SpecError(f"norm is 'published' or 'frozen', not {norm!r}")
        self.backbone, self.norm = backbone, norm
        with quiet_random():
            self.classifier = nn.Linear(FEATURES, 2)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (n, 2)."""
        found = self.backbone(x)
        pooled = found if isinstance(found, Tensor) else found.pooler_output.flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits

    def train(self, mode: bool = True) -> "DotClassifier":
        """As any module's; a frozen norm stays in eval mode."""
        super().train(mode)
        if self.norm == "frozen":
            for module in self.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def resnet18(generator: torch.Generator) -> ResNetModel:
    """A ResNet18 of one input channel with fresh weights: He-normal convolutions, BatchNorm at 1 and 0.

    11,170,240 parameters, the shapes of torchvision's ``resnet18`` with a 64 x 1 x 7 x 7 stem and no head.

    Example:
        >>> sum(p.numel() for p in resnet18(torch.Generator().manual_seed(0)).parameters())
        11170240

    Reference: He et al. (2016), Table 1; He et al. (2015), eq. 14, for the init.
    """
    config = ResNetConfig(
        num_channels=1,
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
    )
    with quiet_random():
        model = ResNetModel(config)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            spread = math.sqrt(2 / (module.out_channels * module.weight[0, 0].numel()))
            nn.init.normal_(module.weight, std=spread, generator=generator)
    return model


@torch.no_grad()
def calibrate(backbone: nn.Module, images: Tensor) -> None:
    """Set the running statistics of every BatchNorm to the mean over batches of these images.

    Random weights with statistics of 0 and 1 make features that grow with depth; a norm that is frozen
    needs the data's own.

    Example:
        >>> backbone = resnet18(torch.Generator().manual_seed(0))
        >>> calibrate(backbone, diagrams(8, Noise(), seed=0)[0])
        >>> norm = backbone.embedder.embedder.normalization
        >>> bool((norm.running_var != 1).all()), norm.momentum, norm.training
        (True, 0.1, True)
    """
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    training = backbone.training
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    backbone.train()
    for batch in torch.split(images, 128):
        backbone(batch)
    backbone.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def features(backbone: nn.Module, images: Tensor) -> Tensor:
    """Pooled features (n, 512) in eval mode: what the head reads where nothing below it moves.

    Example:
        >>> features(resnet18(torch.Generator().manual_seed(0)), torch.zeros(3, 1, 50, 50)).shape
        torch.Size([3, 512])
    """
    training = backbone.training
    backbone.eval()
    rows = [backbone(batch).pooler_output.flatten(1) for batch in torch.split(images, 128)]
    backbone.train(training)
    return torch.cat(rows)


def pretrained_state(*, seed: int, count: int, steps: int) -> dict[str, Tensor]:
    """The state of a ResNet18 that learned to tell noise-free diagrams apart, its head left out.

    Args:
        seed: Of weights, diagrams and batches.
        count: Diagrams to learn from; their devices are no task's, as their seed is not.
        steps: Batches of 16.

    Example:
        >>> state = pretrained_state(seed=0, count=2, steps=2)
        >>> resnet18(torch.Generator()).load_state_dict(state)
        <All keys matched successfully>
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = diagrams(count, Noise(), seed=~seed)
    model = DotClassifier(resnet18(generator)).requires_grad_(True)
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    rows = (torch.randint(count, (16,), generator=generator) for _ in range(steps))
    fit(model, (cross_entropy(model(images[k]), labels[k]) for k in rows), steps=steps, rate=1e-3)
    return model.backbone.state_dict()
