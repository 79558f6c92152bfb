"""InsightFace's variant of the vision transformer: 9-pixel patches, no class token, ReLU6."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from margrave.backbones.contract import (
    BACKBONES,
    apply_in_weight_precision,
    check_at_least,
    check_images,
    check_probability,
)


class PatchEmbedding(nn.Module):
    """Projects each square patch of an image to a token; ignores incomplete patches at the edge."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over (B, tokens, width), without bias in the QKV projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with ReLU6 between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(functional.relu6(self.fc1(tokens)))


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP branches; drop path randomly skips them per sample in training."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._apply_drop_path(self.attn(self.norm1(tokens)))
        return tokens + self._apply_drop_path(self.mlp(self.norm2(tokens)))

    def _apply_drop_path(self, outputs: Tensor) -> Tensor:
        """Zero a branch's outputs for random samples; scale up the others to keep the mean."""
        if not self.training or self.drop_path == 0:
            return outputs
        keep_probability = 1 - self.drop_path
        return (
            outputs
            * outputs.new_empty(len(outputs), 1, 1).bernoulli_(keep_probability)
            / keep_probability
        )


@BACKBONES.register("vit")
class VisionTransformer(nn.Module):
    """A vision transformer whose features are a linear function of all tokens, concatenated.

    Its state dict has the same keys as InsightFace's.

    Args:
        width: channels per token, a multiple of ``attention_heads``.
        depth: number of transformer blocks.
        attention_heads: number of attention heads.
        patch_size: side of a patch in pixels; if ``image_size`` is not a multiple of it, the
            remaining pixels at the right and bottom edges are ignored.
        mlp_ratio: hidden width of a block's MLP divided by ``width``.
        masked_share: fraction in [0, 1) of the tokens that skip the blocks in training, chosen at
            random. A learned token replaces each of them after the blocks.
        drop_path: probability in [0, 1) of dropping a branch of the last block in training. The
            probability increases linearly over the blocks, from 0 in the first.
        gradient_checkpointing: recompute each block in the backward pass to save memory.
        embedding_size: D, the number of features, at least 1.
        image_size: height and width in pixels, at least ``patch_size``.

    Shapes: (B, 3, image_size, image_size) RGB in [-1, 1] -> (B, D) unnormalized features.

    Raises:
        ValueError: a setting is out of range, or the images have the wrong shape.

    >>> backbone = VisionTransformer(width=32, depth=2, image_size=36, embedding_size=16).eval()
    >>> backbone(torch.zeros(2, 3, 36, 36)).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        *,
        width: int = 512,
        depth: int = 12,
        attention_heads: int = 8,
        patch_size: int = 9,
        mlp_ratio: float = 4.0,
        masked_share: float = 0.1,
        drop_path: float = 0.1,
        gradient_checkpointing: bool = False,
        embedding_size: int = 512,
        image_size: int = 112,
    ) -> None:
        super().__init__()
        check_at_least(
            1,
            width=width,
            depth=depth,
            attention_heads=attention_heads,
            patch_size=patch_size,
            embedding_size=embedding_size,
        )
        check_at_least(patch_size, image_size=image_size)
        check_probability(masked_share=masked_share, drop_path=drop_path)
        if width % attention_heads:
            raise ValueError(
                f"width = {width} must be a multiple of attention_heads = {attention_heads}"
            )
        if mlp_ratio * width < 1:
            raise ValueError(f"mlp_ratio = {mlp_ratio} gives no hidden units for width = {width}")
        self.image_size = image_size
        self.embedding_size = embedding_size
        self.masked_share = masked_share
        self.gradient_checkpointing = gradient_checkpointing
        num_tokens = (image_size // patch_size) ** 2
        self.patch_embed = PatchEmbedding(patch_size, width)
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, width))
        # An unused mask token is frozen, because DDP would otherwise wait for its gradient.
        self.mask_token = nn.Parameter(torch.empty(1, 1, width), requires_grad=masked_share > 0)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                width, attention_heads, mlp_ratio, drop_path * index / max(depth - 1, 1)
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(num_tokens * width, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        self._initialize()

    def _initialize(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, self.image_size)
        tokens = self.patch_embed(images) + self.pos_embed
        if self.training and self.masked_share > 0:
            tokens = self._encode_masked(tokens)
        else:
            tokens = self._encode(tokens)
        return apply_in_weight_precision(tokens.flatten(1), self.feature)

    def _encode(self, tokens: Tensor) -> Tensor:
        """Apply the transformer blocks and the last layer norm to (B, tokens, width)."""
        for block in self.blocks:
            if self.gradient_checkpointing and self.training:
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        return self.norm(tokens)

    def _encode_masked(self, tokens: Tensor) -> Tensor:
        """Encode a random subset of each sample's tokens; the mask token replaces the others."""
        batch, num_tokens, width = tokens.shape
        kept_count = max(1, int(num_tokens * (1 - self.masked_share)))
        shuffled = torch.rand(batch, num_tokens, device=tokens.device).argsort(dim=1)
        kept_indices = shuffled[:, :kept_count, None].expand(-1, -1, width)
        encoded = self._encode(tokens.gather(1, kept_indices))
        all_tokens = self.mask_token.to(encoded.dtype).expand(batch, num_tokens, width)
        return all_tokens.scatter(1, kept_indices, encoded)


def _register(name: str, width: int, depth: int) -> Callable[..., nn.Module]:
    def build(
        *,
        masked_share: float = 0.1,
        drop_path: float = 0.1,
        gradient_checkpointing: bool = False,
        embedding_size: int = 512,
        image_size: int = 112,
    ) -> nn.Module:
        return VisionTransformer(
            width=width,
            depth=depth,
            masked_share=masked_share,
            drop_path=drop_path,
            gradient_checkpointing=gradient_checkpointing,
            embedding_size=embedding_size,
            image_size=image_size,
        )

    build.__name__ = name
    build.__doc__ = (
        f"Vision transformer of {depth} blocks and width {width} (InsightFace's {name})."
    )
    return BACKBONES.register(name)(build)


vit_t = _register("vit_t", width=256, depth=12)
vit_s = _register("vit_s", width=512, depth=12)
vit_b = _register("vit_b", width=512, depth=24)
vit_l = _register("vit_l", width=768, depth=24)
