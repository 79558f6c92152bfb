"""Improved residual networks (IResNet), in the variants of InsightFace, AdaFace and CurricularFace.

In all variants, residual branches start with a batch norm and have the stride on their last
convolution, and a linear layer covers the whole last feature map (Deng et al. 2019,
arXiv:1801.07698; squeeze and excitation: Hu et al. 2018, arXiv:1709.01507). The variants differ in
the options of :class:`IResNet`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from margrave.backbones.contract import (
    BACKBONES,
    apply_in_weight_precision,
    check_at_least,
    check_choices,
    check_images,
    check_probability,
    halved_size,
    initialize_fan_out,
)

PerStage = tuple[int, int, int, int]
"""One number for each of the four stages."""
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
"""Setting of `IResNet` -> its allowed values."""


class ChannelGate(nn.Module):
    """Squeeze and excitation: scales each channel by a factor in [0, 1].

    The factors are computed from the means of all channels over the feature map.
    """

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

    The shortcut is the identity if `shortcut` is None. In state dicts, it is named ``downsample``
    as in InsightFace.
    """

    def __init__(self, branch: dict[str, nn.Module], shortcut: nn.Module | None) -> None:
        super().__init__()
        self._branch_names = tuple(branch)
        for name, module in branch.items():
            self.add_module(name, module)
        self.downsample = shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = inputs
        for name in self._branch_names:
            outputs = getattr(self, name)(outputs)
        return outputs + (inputs if self.downsample is None else self.downsample(inputs))


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias; with an odd kernel and stride 1, it keeps the map's size."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def rectifier(channels: int, activation: Activation) -> nn.Module:
    """PReLU, or LeakyReLU of slope 0.25, which is ten times faster to differentiate on CPUs."""
    return nn.PReLU(channels) if activation == "prelu" else nn.LeakyReLU(0.25, inplace=True)


def basic_branch(
    in_channels: int, out_channels: int, stride: int, middle_norm: bool, activation: Activation
) -> dict[str, nn.Module]:
    """The modules of a branch with two 3x3 convolutions; the second has the stride."""
    middle = {"bn2": nn.BatchNorm2d(out_channels)} if middle_norm else {}
    return {
        "bn1": nn.BatchNorm2d(in_channels),
        "conv1": convolution(in_channels, out_channels, 3),
        **middle,
        "prelu": rectifier(out_channels, activation),
        "conv2": convolution(out_channels, out_channels, 3, stride),
        "bn3": nn.BatchNorm2d(out_channels),
    }


def bottleneck_branch(in_channels: int, out_channels: int, stride: int) -> dict[str, nn.Module]:
    """The modules of a branch with 1x1, 3x3 and 1x1 convolutions; the last has the stride.

    The maps between these convolutions have a quarter of the output channels.
    """
    hidden = out_channels // 4
    return {
        "bn1": nn.BatchNorm2d(in_channels),
        "conv1": convolution(in_channels, hidden, 1),
        "bn2": nn.BatchNorm2d(hidden),
        "prelu": nn.PReLU(hidden),
        "conv2": convolution(hidden, hidden, 3),
        "bn3": nn.BatchNorm2d(hidden),
        "prelu2": nn.PReLU(hidden),
        "conv3": convolution(hidden, out_channels, 1, stride),
        "bn4": nn.BatchNorm2d(out_channels),
    }


@BACKBONES.register("iresnet")
class IResNet(nn.Module):
    """An improved residual network of any depth and width.

    Its state dict has InsightFace's names.

    After the first convolution, each of four stages halves the resolution. Batch norm, dropout, a
    linear layer over the whole feature map, and batch norm of the features follow.

    Args:
        block_counts: number of blocks in each stage.
        channels: number of channels of each stage; a multiple of 4 for bottleneck blocks.
        stem_channels: number of channels of the first convolution; None uses that of the first
            stage.
        stem_stride: stride of the first convolution: 1, or 2 to halve the resolution everywhere,
            which is about four times as fast.
        block: ``basic`` or ``bottleneck``.
        activation: ``prelu``, or ``leaky_relu``, which is faster on CPUs (basic blocks only).
        middle_norm: in each basic block, put a batch norm between its first convolution and its
            activation; False for CurricularFace.
        channel_gates: put squeeze and excitation ("SE") at the end of each branch.
        shortcut: the shortcut of the first block of each stage, which has stride 2. ``projection``
            is a 1x1 convolution and a batch norm (InsightFace). ``subsample`` takes every second
            pixel if the block keeps the number of channels, and projects otherwise (AdaFace,
            CurricularFace).
        feature_affine: trained parameters of the last batch norm: ``none`` (AdaFace,
            CurricularFace), ``shift`` (InsightFace), or ``full`` (scale and shift; face.evoLVe).
        initialization: ``normal`` draws the convolutions' weights from N(0, 0.1²) (InsightFace),
            ``fan_out`` draws them and the linear layer's from He's distribution (AdaFace,
            CurricularFace).
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
        self._block_options = (block, middle_norm, channel_gates, shortcut)
        self._activation: Activation = activation

        self.conv1 = convolution(3, stem_channels, 3, stem_stride)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        self.prelu = rectifier(stem_channels, activation)
        widths = (stem_channels, *channels)
        self.layer1 = self._build_stage(widths[0], widths[1], block_counts[0])
        self.layer2 = self._build_stage(widths[1], widths[2], block_counts[1])
        self.layer3 = self._build_stage(widths[2], widths[3], block_counts[2])
        self.layer4 = self._build_stage(widths[3], widths[4], block_counts[3])
        self.bn2 = nn.BatchNorm2d(channels[-1])
        self.dropout = nn.Dropout(dropout)
        side = halved_size(image_size, times=5 if stem_stride == 2 else 4)
        self.fc = nn.Linear(channels[-1] * side**2, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size, affine=feature_affine != "none")
        if feature_affine == "shift":
            # A trainable scale would distort the feature norm, which some margins use.
            self.features.weight.requires_grad_(False)
        self._initialize(initialization)

    def _build_stage(self, in_channels: int, out_channels: int, block_count: int) -> nn.Sequential:
        blocks = [self._build_block(in_channels, out_channels, stride=2)]
        blocks += [
            self._build_block(out_channels, out_channels, stride=1) for _ in range(block_count - 1)
        ]
        return nn.Sequential(*blocks)

    def _build_block(self, in_channels: int, out_channels: int, stride: int) -> ResidualBlock:
        block, middle_norm, channel_gates, shortcut = self._block_options
        if block == "bottleneck":
            branch = bottleneck_branch(in_channels, out_channels, stride)
        else:
            branch = basic_branch(in_channels, out_channels, stride, middle_norm, self._activation)
        if channel_gates:
            branch["gate"] = ChannelGate(out_channels)
        downsample: nn.Module | None = None
        if in_channels != out_channels or (stride != 1 and shortcut == "projection"):
            downsample = nn.Sequential(
                convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
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
        return apply_in_weight_precision(flat, self.fc, self.features)


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
    build.__doc__ = f"{name}: stages of {block_counts} {block} blocks with {channels} channels."
    return BACKBONES.register(name)(build)


BLOCK_COUNTS: dict[int, PerStage] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}
"""Depth of the network -> number of blocks in each stage; IR-101 has depth 100."""
BOTTLENECK_COUNTS: dict[int, PerStage] = {152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
"""The same for the variants with bottleneck blocks."""
BOTTLENECK_CHANNELS = (256, 512, 1024, 2048)
"""Number of output channels of each stage with bottleneck blocks."""

for _depth in (18, 34, 50, 100, 200):
    _register(
        f"iresnet{_depth}",
        block_counts=BLOCK_COUNTS[_depth],
        shortcut="projection",
        initialization="normal",
        default_affine="shift",
        default_dropout=0.0,
    )

# The depth in a name can differ from that in BLOCK_COUNTS: IR-101 of AdaFace and CurricularFace
# has depth 100.
for _gates, _prefix in ((False, "ir"), (True, "ir_se")):
    for _named_depth, _depth in ((18, 18), (34, 34), (50, 50), (101, 100)):
        _register(
            f"{_prefix}_{_named_depth}", block_counts=BLOCK_COUNTS[_depth], channel_gates=_gates
        )
    for _named_depth, _counts in BOTTLENECK_COUNTS.items():
        _register(
            f"{_prefix}_{_named_depth}",
            block_counts=_counts,
            channels=BOTTLENECK_CHANNELS,
            block="bottleneck",
            channel_gates=_gates,
        )
    for _named_depth, _depth in ((50, 50), (101, 100), (152, 152)):
        _register(
            f"curricular_{_prefix}_{_named_depth}",
            block_counts=BLOCK_COUNTS[_depth],
            middle_norm=False,
            channel_gates=_gates,
        )
