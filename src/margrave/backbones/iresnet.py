"""Improved residual networks (IResNet), in the variants of InsightFace, AdaFace and CurricularFace.

All have a pre-activation residual branch with the stride on its last convolution, and a linear
layer over the whole last feature map (Deng et al. 2019, arXiv:1801.07698; squeeze and excitation:
Hu et al. 2018, arXiv:1709.01507). They differ in the options of :class:`IResNet`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from margrave.backbones.contract import (
    BACKBONES,
    check_at_least,
    check_choices,
    check_images,
    check_probability,
    halved_size,
    in_weight_precision,
    initialize_fan_out,
)

PerStage = tuple[int, int, int, int]
FeatureAffine = Literal["none", "shift", "full"]
Activation = Literal["prelu", "leaky_relu"]
Block = Literal["basic", "bottleneck"]
Shortcut = Literal["projection", "subsample"]
Initialization = Literal["normal", "fan_out"]
CHOICES = {
    "stem_stride": Literal[1, 2],
    "block": Block,
    "activation": Activation,
    "shortcut": Shortcut,
    "feature_affine": FeatureAffine,
    "initialization": Initialization,
}


class ChannelGate(nn.Module):
    """Squeeze and excitation: scales each channel by a gate computed from all channel means."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.reduce = nn.Conv2d(channels, hidden, kernel_size=1, bias=False)
        self.expand = nn.Conv2d(hidden, channels, kernel_size=1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        mean = inputs.mean(dim=(2, 3), keepdim=True)
        return inputs * self.expand(self.reduce(mean).relu()).sigmoid()


class ResidualBlock(nn.Module):
    """shortcut(x) + branch(x); the branch applies its modules in order.

    The shortcut is the identity if it is None; its key is ``downsample``, as in InsightFace.
    """

    def __init__(self, branch: dict[str, nn.Module], shortcut: nn.Module | None) -> None:
        super().__init__()
        self._branch = tuple(branch)
        for name, module in branch.items():
            self.add_module(name, module)
        self.downsample = shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = inputs
        for name in self._branch:
            outputs = getattr(self, name)(outputs)
        return outputs + (inputs if self.downsample is None else self.downsample(inputs))


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def rectifier(channels: int, activation: Activation) -> nn.Module:
    """PReLU, or LeakyReLU with slope 0.25, whose gradient is ten times faster on CPUs."""
    return nn.PReLU(channels) if activation == "prelu" else nn.LeakyReLU(0.25, inplace=True)


def basic_branch(
    inputs: int, outputs: int, stride: int, middle_norm: bool, activation: Activation
) -> dict[str, nn.Module]:
    """A branch of two 3x3 convolutions."""
    middle = {"bn2": nn.BatchNorm2d(outputs)} if middle_norm else {}
    return {
        "bn1": nn.BatchNorm2d(inputs),
        "conv1": convolution(inputs, outputs, 3),
        **middle,
        "prelu": rectifier(outputs, activation),
        "conv2": convolution(outputs, outputs, 3, stride),
        "bn3": nn.BatchNorm2d(outputs),
    }


def bottleneck_branch(inputs: int, outputs: int, stride: int) -> dict[str, nn.Module]:
    """A branch of 1x1, 3x3 and 1x1 convolutions with a quarter of the channels in the middle."""
    hidden = outputs // 4
    return {
        "bn1": nn.BatchNorm2d(inputs),
        "conv1": convolution(inputs, hidden, 1),
        "bn2": nn.BatchNorm2d(hidden),
        "prelu": nn.PReLU(hidden),
        "conv2": convolution(hidden, hidden, 3),
        "bn3": nn.BatchNorm2d(hidden),
        "prelu2": nn.PReLU(hidden),
        "conv3": convolution(hidden, outputs, 1, stride),
        "bn4": nn.BatchNorm2d(outputs),
    }


@BACKBONES.register("iresnet")
class IResNet(nn.Module):
    """An improved residual network of any depth and width, with InsightFace's key names.

    Four stages, each of which halves the resolution, then batch norm, dropout, a linear layer over
    the whole feature map, and batch norm of the features.

    Args:
        block_counts: number of blocks in each stage.
        channels: number of channels of each stage; a multiple of 4 for bottleneck blocks.
        stem_channels: channels of the first convolution; by default those of the first stage.
        stem_stride: 1, or 2 to halve the resolution, which is four times as fast.
        block: ``basic`` or ``bottleneck``.
        activation: ``prelu``, or ``leaky_relu``, which is faster on CPUs (basic blocks only).
        middle_norm: put a batch norm between the first convolution and the PReLU of each basic
            block (CurricularFace does not).
        channel_gates: use squeeze and excitation ("SE") at the end of each branch.
        shortcut: ``projection`` puts a 1x1 convolution and a batch norm on the shortcut of every
            block with stride 2 (InsightFace); ``subsample`` takes every second pixel instead if the
            number of channels stays the same (AdaFace, CurricularFace).
        feature_affine: parameters of the last batch norm: ``none`` (AdaFace, CurricularFace),
            ``shift`` (InsightFace), or ``full`` (face.evoLVe).
        initialization: ``normal`` draws convolutions from N(0, 0.1²) (InsightFace), ``fan_out``
            from He's distribution (AdaFace, CurricularFace).
        dropout: dropout probability before the linear layer, in [0, 1).
        embedding_size: D, the number of features, at least 1.
        image_size: height and width in pixels, at least 16.

    Shapes: (B, 3, image_size, image_size) RGB in [-1, 1] -> (B, D) unnormalized features.

    Raises:
        ValueError: a setting is out of range, or the images have the wrong shape.

    >>> backbone = IResNet(
    ...     block_counts=(1, 1, 1, 1), channels=(8, 8, 16, 16), image_size=64, embedding_size=32
    ... ).eval()
    >>> backbone(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        *,
        block_counts: PerStage = (3, 4, 14, 3),
        channels: PerStage = (64, 128, 256, 512),
        stem_channels: int | None = None,
        stem_stride: Literal[1, 2] = 1,
        block: Block = "basic",
        activation: Activation = "prelu",
        middle_norm: bool = True,
        channel_gates: bool = False,
        shortcut: Shortcut = "projection",
        feature_affine: FeatureAffine = "shift",
        initialization: Initialization = "normal",
        dropout: float = 0.0,
        embedding_size: int = 512,
        image_size: int = 112,
    ) -> None:
        super().__init__()
        stem_channels = channels[0] if stem_channels is None else stem_channels
        check_at_least(16, image_size=image_size)
        check_at_least(1, embedding_size=embedding_size, stem_channels=stem_channels)
        check_at_least(1, block_counts=block_counts, channels=channels)
        check_probability(dropout=dropout)
        check_choices(
            CHOICES,
            stem_stride=stem_stride,
            block=block,
            activation=activation,
            shortcut=shortcut,
            feature_affine=feature_affine,
            initialization=initialization,
        )
        if block == "bottleneck" and any(width % 4 for width in channels):
            raise ValueError(f"channels = {channels} must be multiples of 4 for bottleneck blocks")
        if block == "bottleneck" and not middle_norm:
            raise ValueError("middle_norm = False requires basic blocks")
        if block == "bottleneck" and activation != "prelu":
            raise ValueError(f"activation = {activation!r} requires basic blocks")
        self.image_size = image_size
        self.embedding_size = embedding_size
        self._options = (block, middle_norm, channel_gates, shortcut)
        self._activation: Activation = activation

        self.conv1 = convolution(3, stem_channels, 3, stem_stride)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.prelu = rectifier(stem_channels, activation)
        widths = (stem_channels, *channels)
        self.layer1 = self._stage(widths[0], widths[1], block_counts[0])
        self.layer2 = self._stage(widths[1], widths[2], block_counts[1])
        self.layer3 = self._stage(widths[2], widths[3], block_counts[2])
        self.layer4 = self._stage(widths[3], widths[4], block_counts[3])
        self.bn2 = nn.BatchNorm2d(channels[-1])
        self.dropout = nn.Dropout(dropout)
        side = halved_size(image_size, times=5 if stem_stride == 2 else 4)
        self.fc = nn.Linear(channels[-1] * side**2, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size, affine=feature_affine != "none")
        if feature_affine == "shift":
            # A trainable scale would distort the feature norm, which some margins use.
            self.features.weight.requires_grad_(False)
        self._initialize(initialization)

    def _stage(self, inputs: int, outputs: int, count: int) -> nn.Sequential:
        blocks = [self._block(inputs, outputs, stride=2)]
        blocks += [self._block(outputs, outputs, stride=1) for _ in range(count - 1)]
        return nn.Sequential(*blocks)

    def _block(self, inputs: int, outputs: int, stride: int) -> ResidualBlock:
        kind, middle_norm, channel_gates, shortcut = self._options
        if kind == "bottleneck":
            branch = bottleneck_branch(inputs, outputs, stride)
        else:
            branch = basic_branch(inputs, outputs, stride, middle_norm, self._activation)
        if channel_gates:
            branch["gate"] = ChannelGate(outputs)
        downsample: nn.Module | None = None
        if inputs != outputs or (stride != 1 and shortcut == "projection"):
            downsample = nn.Sequential(
                convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        elif stride != 1:
            downsample = nn.MaxPool2d(kernel_size=1, stride=stride)
        return ResidualBlock(branch, downsample)

    def _initialize(self, initialization: str) -> None:
        if initialization == "fan_out":
            initialize_fan_out(self)
            return
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.1)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.image_size)
        maps = self.prelu(self.bn1(self.conv1(images)))
        maps = self.layer4(self.layer3(self.layer2(self.layer1(maps))))
        flat = torch.flatten(self.dropout(self.bn2(maps)), 1)
        return in_weight_precision(flat, self.fc, self.features)


def _register(
    name: str,
    *,
    block_counts: PerStage,
    channels: PerStage = (64, 128, 256, 512),
    block: Block = "basic",
    middle_norm: bool = True,
    channel_gates: bool = False,
    shortcut: Literal["projection", "subsample"] = "subsample",
    initialization: Literal["normal", "fan_out"] = "fan_out",
    default_affine: FeatureAffine = "none",
    default_dropout: float = 0.4,
) -> Callable[..., nn.Module]:
    def build(
        *,
        feature_affine: FeatureAffine = default_affine,
        dropout: float = default_dropout,
        embedding_size: int = 512,
        image_size: int = 112,
    ) -> nn.Module:
        return IResNet(
            block_counts=block_counts,
            channels=channels,
            stem_channels=64,
            block=block,
            middle_norm=middle_norm,
            channel_gates=channel_gates,
            shortcut=shortcut,
            feature_affine=feature_affine,
            initialization=initialization,
            dropout=dropout,
            embedding_size=embedding_size,
            image_size=image_size,
        )

    build.__name__ = name
    build.__doc__ = f"{name}: {block} blocks {block_counts} of {channels} channels."
    return BACKBONES.register(name)(build)


BLOCK_COUNTS: dict[int, PerStage] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
BOTTLENECK_COUNTS: dict[int, PerStage] = {152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
BOTTLENECK_CHANNELS = (256, 512, 1024, 2048)

for _depth in (18, 34, 50, 100, 200):
    _register(
        f"iresnet{_depth}",
        block_counts=BLOCK_COUNTS[_depth],
        shortcut="projection",
        initialization="normal",
        default_affine="shift",
        default_dropout=0.0,
    )

# The papers call the network with 100 layers IR-101.
for _gates, _prefix in ((False, "ir"), (True, "ir_se")):
    for _depth, _layers in ((18, 18), (34, 34), (50, 50), (101, 100)):
        _register(f"{_prefix}_{_depth}", block_counts=BLOCK_COUNTS[_layers], channel_gates=_gates)
    for _depth, _counts in BOTTLENECK_COUNTS.items():
        _register(
            f"{_prefix}_{_depth}",
            block_counts=_counts,
            channels=BOTTLENECK_CHANNELS,
            block="bottleneck",
            channel_gates=_gates,
        )
    for _depth, _layers in ((50, 50), (101, 100), (152, 152)):
        _register(
            f"curricular_{_prefix}_{_depth}",
            block_counts=BLOCK_COUNTS[_layers],
            middle_norm=False,
            channel_gates=_gates,
        )
