"""AdaFace: IR and IR-SE networks, trained on BGR images."""

from __future__ import annotations

from typing import Any

from margrave.models.contract import State
from margrave.models.importers import iresnet_names
from margrave.models.importers.contract import LAYOUTS, Importer, Names


@LAYOUTS.register("adaface_ir")
class AdaFaceIr(Importer):
    """Networks with AdaFace's tensor names; CVLface adds the prefix ``net.`` to them."""

    # Module 2 of a residual branch: a batch norm in AdaFace, PReLU in CurricularFace.
    patterns = (r"body\.\d+\.res_layer\.2\.running_mean",)
    color_order = "bgr"
    source = "mk-minchul/AdaFace README.md: BGR, mean 0.5, std 0.5"
    shared_with = "CVLface (RGB)"

    def names(self, network: State) -> dict[str, str]:
        return iresnet_names.adaface_names(network)

    def backbone(self, network: State, names: Names) -> dict[str, Any]:
        return iresnet_names.adaface_specification(network, names)
