"""InsightFace's arcface_torch: IResNet, MobileFaceNet and ViT; Margrave uses the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from margrave.models.contract import State
from margrave.models.importers import iresnet_names, mobilefacenet_names, vit_names
from margrave.models.importers.contract import LAYOUTS, Importer, Names

SOURCE = "deepinsight/insightface arcface_torch/dataset.py: RGB, mean 0.5, std 0.5"


@LAYOUTS.register("insightface_iresnet")
class InsightFaceIResNet(Importer):
    """IResNet; also AdaFace's and CurricularFace's networks if they use Margrave's names."""

    patterns = (r"(net\.)?layer[1-4]\.\d+\.prelu\.weight",)
    source = SOURCE
    shared_with = "MagFace (BGR in [0, 1]), ElasticFace"

    def backbone(self, network: State, names: Names) -> dict[str, Any]:
        return iresnet_names.insightface_specification(network, names)


@LAYOUTS.register("insightface_mobilefacenet")
class InsightFaceMobileFaceNet(Importer):
    """MobileFaceNet."""

    patterns = (r"(net\.)?conv_sep\.layers\.",)
    first_convolution = "layers.0.layers.0.weight"
    source = SOURCE

    def backbone(self, network: State, names: Names) -> dict[str, Any]:
        return mobilefacenet_names.infer_specification(network, names)


@LAYOUTS.register("insightface_vit")
class InsightFaceViT(Importer):
    """Vision transformers."""

    patterns = (r"(net\.)?blocks\.\d+\.attn\.qkv\.", r"(net\.)?feature\.[0-3]\.")
    first_convolution = "patch_embed.proj.weight"
    source = SOURCE

    def backbone(self, network: State, names: Names) -> dict[str, Any]:
        return vit_names.infer_specification(network, names)

    def assumptions(self, backbone: Mapping[str, Any]) -> tuple[str, ...]:
        # The published networks, such as vit_t, are known to have 8.
        if backbone["kind"] == "vit":
            return ("8 attention heads are assumed, because no tensor shape shows their number",)
        return ()
