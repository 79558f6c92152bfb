"""What holds for every backbone, and the settings that some have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from margrave.backbones import BACKBONES, create
from margrave.backbones.iresnet import IResNet

SMALL = (
    {"kind": "iresnet", "block_counts": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    {
        "kind": "iresnet",
        "block_counts": [1, 2, 1, 1],
        "channels": [8, 16, 16, 32],
        "stem_channels": 4,
        "stem_stride": 2,
        "block": "bottleneck",
        "channel_gates": True,
        "shortcut": "subsample",
        "feature_affine": "full",
        "initialization": "fan_out",
        "dropout": 0.1,
    },
    {"kind": "mobilefacenet", "width_multiplier": 1, "block_counts": [2, 1, 1, 1]},
    {"kind": "vit", "width": 16, "depth": 2, "attention_heads": 2},
)
SMALL_KINDS = ("iresnet", "iresnet-gated-bottleneck", "mobilefacenet", "vit")


# The deepest take a second each to build; the golden tests and their shallower kin stand for them.
@pytest.mark.parametrize(
    "kind", [kind for kind in BACKBONES if not kind.endswith(("101", "152", "100", "200"))]
)
def test_kinds_map_images_to_features(kind):
    with torch.device("meta"):
        backbone = create({"kind": kind, "embedding_size": 128, "image_size": 64}).eval()
        features = backbone(torch.zeros(3, 3, 64, 64))
    assert features.shape == (3, 128)
    assert (backbone.embedding_size, backbone.image_size) == (128, 64)


@pytest.mark.parametrize("spec", SMALL, ids=SMALL_KINDS)
@pytest.mark.parametrize("image_size", (64, 112, 100))
def test_every_weight_learns_at_any_image_size(spec, image_size):
    torch.manual_seed(0)
    backbone = create({**spec, "embedding_size": 12, "image_size": image_size})
    images = torch.rand(4, 3, image_size, image_size) * 2 - 1
    features = backbone(images)
    (features * torch.randn(4, 12)).sum().backward()
    assert features.shape == (4, 12)
    for name, weight in backbone.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None and weight.grad.isfinite().all(), name


@pytest.mark.parametrize("spec", SMALL, ids=SMALL_KINDS)
def test_images_and_settings_are_left_alone(spec):
    settings = {**spec, "embedding_size": 8, "image_size": 64}
    before = dict(settings)
    images = torch.rand(2, 3, 64, 64)
    kept = images.clone()
    create(settings).train()(images)
    assert settings == before
    assert torch.equal(images, kept)


@pytest.mark.parametrize("spec", SMALL, ids=SMALL_KINDS)
def test_autocast_keeps_the_features_in_full_precision(spec):
    torch.manual_seed(0)
    backbone = create({**spec, "embedding_size": 8, "image_size": 64}).eval()
    images = torch.rand(2, 3, 64, 64)
    exact = backbone(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = backbone.to(memory_format=torch.channels_last)(images)
    assert mixed.dtype == torch.float32
    assert (mixed - exact).norm() <= 0.05 * exact.norm()
    assert backbone.to(torch.bfloat16)(images.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("spec", SMALL, ids=SMALL_KINDS)
@pytest.mark.parametrize("shape", ((3, 64, 64), (2, 1, 64, 64), (2, 3, 112, 112), (2, 3, 64, 60)))
def test_wrong_images_are_refused(spec, shape):
    backbone = create({**spec, "image_size": 64})
    with pytest.raises(ValueError, match=r"images have shape .* needs \(B, 3, 64, 64\)"):
        backbone(torch.zeros(shape))


def test_bytes_are_refused():
    backbone = create({**SMALL[0], "image_size": 64})
    with pytest.raises(ValueError, match="uint8; convert the pixels"):
        backbone(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("spec", "message"),
    (
        ({"kind": "iresnet51"}, "unknown backbone 'iresnet51'; did you mean"),
        ({"kind": "ir_50", "droput": 0.1}, "did you mean 'dropout'"),
        ({"kind": "ir_50", "dropout": 1.0}, r"dropout = 1.0 must be in \[0, 1\)"),
        ({"kind": "ir_50", "embedding_size": 0}, "embedding_size = 0"),
        ({"kind": "ir_50", "image_size": 15}, "image_size = 15 must be at least 16"),
        ({"kind": "iresnet", "block_counts": [1, 1, 1]}, "block_counts"),
        (
            {"kind": "iresnet", "block_counts": [1, 0, 1, 1]},
            r"block_counts = \(1, 0, 1, 1\) must be at least 1",
        ),
        ({"kind": "iresnet", "channels": [6, 8, 8, 8], "block": "bottleneck"}, "multiples of 4"),
        ({"kind": "iresnet", "block": "bottleneck", "middle_norm": False}, "middle_norm"),
        (
            {"kind": "iresnet", "block": "bottleneck", "activation": "leaky_relu"},
            "activation = 'leaky_relu' requires basic blocks",
        ),
        ({"kind": "iresnet", "stem_stride": 3}, "stem_stride"),
        ({"kind": "mbf", "image_size": 8}, "image_size = 8"),
        ({"kind": "mobilefacenet", "width_multiplier": 0}, "width_multiplier = 0"),
        ({"kind": "vit", "width": 100}, "width = 100 must be a multiple of attention_heads = 8"),
        ({"kind": "vit", "image_size": 8}, "image_size = 8 must be at least 9"),
        ({"kind": "vit", "mlp_ratio": 0.0}, "mlp_ratio = 0.0"),
        ({"kind": "vit_t", "drop_path": -0.1}, "drop_path = -0.1"),
        ({"kind": "vit_t", "masked_share": 1.0}, "masked_share = 1.0"),
        ({"kind": "pathlib:PurePosixPath"}, "is not a torch.nn.Module class"),
    ),
)
def test_settings_that_do_not_fit_are_refused(spec, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        create(spec)


def test_anybodys_module_is_a_backbone():
    assert isinstance(create({"kind": "torch.nn:Identity"}), nn.Identity)


@pytest.mark.parametrize(
    ("affine", "trainable"), (("none", []), ("shift", ["bias"]), ("full", ["weight", "bias"]))
)
def test_what_the_last_norm_learns(affine, trainable):
    backbone = create({**SMALL[0], "feature_affine": affine})
    weights = backbone.features.named_parameters()
    assert [name for name, weight in weights if weight.requires_grad] == trainable


def test_subsampling_takes_every_second_pixel():
    backbone = create({**SMALL[0], "shortcut": "subsample"})
    maps = torch.randn(1, 8, 7, 7)
    assert torch.equal(backbone.layer1[0].downsample(maps), maps[:, :, ::2, ::2])


def test_leaky_relu_replaces_every_prelu():
    backbone = create({**SMALL[0], "activation": "leaky_relu"})
    assert not any(isinstance(module, nn.PReLU) for module in backbone.modules())


def test_the_laws_of_initialisation():
    torch.manual_seed(0)
    spec = {"kind": "iresnet", "block_counts": [1, 1, 1, 1], "image_size": 16}
    normal = create({**spec, "initialization": "normal"}).layer4[0].conv2.weight
    fan_out = create({**spec, "initialization": "fan_out"}).layer4[0].conv2.weight
    assert normal.std().item() == pytest.approx(0.1, rel=0.01)
    assert fan_out.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)


def vit(**settings) -> nn.Module:
    torch.manual_seed(3)
    spec = {"kind": "vit", "width": 16, "depth": 3, "attention_heads": 2, "embedding_size": 8}
    return create({**spec, "image_size": 64, **settings})


def test_gradient_checkpointing_changes_no_gradient():
    images = torch.rand(4, 3, 64, 64)
    gradients = []
    for gradient_checkpointing in (False, True):
        backbone = vit(gradient_checkpointing=gradient_checkpointing, drop_path=0.5)
        torch.manual_seed(7)
        backbone(images).square().mean().backward()
        gradients.append([weight.grad for weight in backbone.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_masked_tokens_become_the_mask_token():
    backbone = vit(masked_share=0.5, drop_path=0.0)
    tokens = torch.randn(2, 49, 16)
    encoded = backbone._encode_masked(tokens)
    is_mask = (encoded == backbone.mask_token).all(dim=2)
    assert is_mask.sum(dim=1).tolist() == [25, 25]


def test_randomness_is_for_training_only():
    images = torch.rand(2, 3, 64, 64)
    backbone = vit(masked_share=0.5, drop_path=0.5)
    assert not torch.equal(backbone(images), backbone(images))
    backbone.eval()
    assert torch.equal(backbone(images), backbone(images))


def test_dropped_branches_keep_their_expectation():
    torch.manual_seed(0)
    block = vit(drop_path=0.25).blocks[-1]
    kept = block._apply_drop_path(torch.ones(4000, 1, 1))
    assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert kept.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "setting",
    [
        {"stem_stride": 3},
        {"block": "bottlneck"},
        {"activation": "relu"},
        {"shortcut": "proj"},
        {"feature_affine": "shfit"},
        {"initialization": "normall"},
        {"block_counts": [1, 1, 1, 0]},
    ],
    ids=str,
)
def test_settings_of_a_direct_call_are_checked(setting: dict) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=name):
        IResNet(**{"block_counts": (1, 1, 1, 1), "channels": (4, 4, 4, 4), **setting})
