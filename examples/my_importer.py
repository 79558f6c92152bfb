"""An importer of your own, for checkpoints that name their tensors otherwise.

``margrave import theirs.pth ours.safetensors --layout my_importer:StagesNet``
"""

import re
from typing import Any

from margrave.models.importers import Importer, Names, State
from margrave.models.importers.iresnet_names import insightface_specification

STEM = {"conv1": "stem.conv", "bn1": "stem.norm", "prelu": "stem.act"}


class StagesNet(Importer):
    """An IResNet that counts its stages from 0 and was trained on BGR in [0, 1]."""

    color_order = "bgr"
    mean = 0.0
    std = 1.0
    source = "its data loader: cv2.imread, divided by 255"

    def names(self, network: State) -> dict[str, str]:
        """Their name of each submodule, by ours."""
        theirs = {key.rpartition(".")[0] for key in network if key.startswith("stages.")}
        return STEM | {
            re.sub(r"stages\.(\d)", lambda stage: f"layer{int(stage[1]) + 1}", name): name
            for name in theirs
        }

    def backbone(self, network: State, names: Names) -> dict[str, Any]:
        """The network, its depth and widths read from the shapes."""
        return insightface_specification(network, names)
