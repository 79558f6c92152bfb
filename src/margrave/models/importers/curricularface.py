"""CurricularFace and face.evoLVe: IR, IR-SE and MobileFaceNet."""

from __future__ import annotations

from typing import Any

from margrave.models.contract import State
from margrave.models.importers import iresnet_names, mobilefacenet_names
from margrave.models.importers.contract import LAYOUTS, Importer, Names

SOURCE = "HuangYG123/CurricularFace: images read by PIL, mean 0.5, std 0.5"
SHARED_WITH = "face.evoLVe (RGB), FaceX-Zoo (BGR)"


@LAYOUTS.register("curricularface_ir")
class CurricularFaceIr(Importer):
    """IR and IR-SE networks without a batch norm between a block's convolutions."""

    # Module 4 of a block is its last batch norm here, but a convolution in AdaFace.
    patterns = (r"(net\.)?body\.\d+\.res_layer\.4\.running_mean",)
    source = SOURCE
    shared_with = SHARED_WITH

    def names(self, network: State) -> dict[str, str]:
        return iresnet_names.curricularface_names(network)

    def backbone(self, network: State, names: Names) -> dict[str, Any]:
        return iresnet_names.curricularface_specification(network, names)


@LAYOUTS.register("curricularface_mobilefacenet")
class CurricularFaceMobileFaceNet(Importer):
    """MobileFaceNet under the names of TreB1eN's InsightFace_Pytorch."""

    patterns = (r"(net\.)?conv_6_sep\.",)
    first_convolution = "layers.0.layers.0.weight"
    source = SOURCE
    shared_with = SHARED_WITH

    def names(self, network: State) -> dict[str, str]:
        return mobilefacenet_names.curricularface_names(network)

    def backbone(self, network: State, names: Names) -> dict[str, Any]:
        return mobilefacenet_names.infer_specification(network, names)
