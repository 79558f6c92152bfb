"""MobileFaceNet: inverted residuals and a global depthwise convolution (arXiv:1804.07573)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from margrave.backbones.contract import (
    BACKBONES,
    apply_in_weight_precision,
    check_at_least,
    check_images,
    halved_size,
    initialize_fan_out,
)


class Stack(nn.Module):
    """Modules in sequence, with state-dict keys under ``layers`` as in InsightFace's files."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*modules)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)


def linear_block(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Stack:
    """Convolution and batch norm, without activation."""
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False
    )
    return Stack(convolution, nn.BatchNorm2d(out_channels))


def active_block(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Stack:
    """Convolution, batch norm and PReLU."""
    block = linear_block(in_channels, out_channels, kernel, stride, padding, groups)
    block.layers.append(nn.PReLU(out_channels))
    return block


class InvertedBottleneck(Stack):
    """1x1 expansion, 3x3 depthwise convolution and 1x1 projection, with a shortcut at stride 1.

    `inputs`, `outputs` and `hidden` are numbers of channels.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, stride: int) -> None:
        super().__init__(
            active_block(inputs, hidden),
            active_block(hidden, hidden, kernel=3, stride=stride, padding=1, groups=hidden),
            linear_block(hidden, outputs),
        )
        self.has_shortcut = stride == 1

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.layers(inputs)
        return inputs + outputs if self.has_shortcut else outputs


def residual_stage(channels: int, hidden: int, count: int) -> Stack:
    """A sequence of stride-1 inverted bottlenecks."""
    blocks = (InvertedBottleneck(channels, channels, hidden, stride=1) for _ in range(count))
    return Stack(*blocks)


@BACKBONES.register("mobilefacenet")
class MobileFaceNet(nn.Module):
    """A MobileFaceNet of any width and depth, with InsightFace's names in its state dict.

    Args:
        block_counts: number of stride-1 blocks at 1/2, 1/4, 1/8 and 1/16 of the image size. If the
            first number is 1, a single 3x3 convolution in 64 groups replaces the block; with
            ``width_multiplier`` 1, this convolution is depthwise.
        width_multiplier: factor for the 64, 64, 128 and 128 channels of the feature maps at these
            four sizes. It does not change the blocks' 128, 256 and 512 hidden channels.
        embedding_size: D, the number of features, at least 1.
        image_size: height and width in pixels, at least 16.

    Shapes: (B, 3, image_size, image_size) RGB in [-1, 1] -> (B, D) unnormalized features.

    Raises:
        ValueError: a setting is out of range, or the images have the wrong shape.

    >>> import torch
    >>> backbone = MobileFaceNet(width_multiplier=1, image_size=64, embedding_size=32).eval()
    >>> backbone(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 32])
    """

    def __init__(
        self,
        *,
        block_counts: tuple[int, int, int, int] = (1, 4, 6, 2),
        width_multiplier: int = 2,
        embedding_size: int = 512,
        image_size: int = 112,
    ) -> None:
        super().__init__()
        check_at_least(16, image_size=image_size)
        check_at_least(
            1,
            embedding_size=embedding_size,
            width_multiplier=width_multiplier,
            block_counts=block_counts,
        )
        self.image_size = image_size
        self.embedding_size = embedding_size
        narrow, wide = 64 * width_multiplier, 128 * width_multiplier
        # 64 groups at every width, as in InsightFace's files.
        first_stage = (
            active_block(narrow, narrow, kernel=3, padding=1, groups=64)
            if block_counts[0] == 1
            else residual_stage(narrow, 128, block_counts[0])
        )
        self.layers = nn.Sequential(
            active_block(3, narrow, kernel=3, stride=2, padding=1),
            first_stage,
            InvertedBottleneck(narrow, narrow, 128, stride=2),
            residual_stage(narrow, 128, block_counts[1]),
            InvertedBottleneck(narrow, wide, 256, stride=2),
            residual_stage(wide, 256, block_counts[2]),
            InvertedBottleneck(wide, wide, 512, stride=2),
            residual_stage(wide, 256, block_counts[3]),
        )
        # 512 channels at every width and embedding size.
        self.conv_sep = active_block(wide, 512)
        self.features = Stack(
            linear_block(512, 512, kernel=halved_size(image_size, times=4), groups=512),
            nn.Flatten(),
            nn.Linear(512, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size),
        )
        initialize_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.image_size)
        return apply_in_weight_precision(self.conv_sep(self.layers(images)), self.features)


def _register(
    name: str, block_counts: tuple[int, int, int, int], width_multiplier: int
) -> Callable[..., nn.Module]:
    def build(*, embedding_size: int = 512, image_size: int = 112) -> nn.Module:
        return MobileFaceNet(
            block_counts=block_counts,
            width_multiplier=width_multiplier,
            embedding_size=embedding_size,
            image_size=image_size,
        )

    build.__name__ = name
    build.__doc__ = (
        f"MobileFaceNet with {block_counts} blocks and width multiplier {width_multiplier}."
    )
    return BACKBONES.register(name)(build)


mbf = _register("mbf", (1, 4, 6, 2), width_multiplier=2)
mbf_large = _register("mbf_large", (2, 8, 12, 4), width_multiplier=4)
curricular_mbf = _register("curricular_mbf", (1, 4, 6, 2), width_multiplier=1)
