"""MagFace: InsightFace's IResNet with a key prefix, trained on BGR pixels in [0, 1]."""

from __future__ import annotations

import re

from torch import Tensor

from margrave.models.contract import Checkpoint
from margrave.models.importers.contract import LAYOUTS
from margrave.models.importers.insightface import InsightFaceIResNet

# The prefix of the network's tensors; the head's weight has no prefix. The lookahead distinguishes
# the prefix from the network's last batch norm, which is called `features` too.
NETWORK_PREFIX = re.compile(
    r"features\.(?:module\.)?(?=(?:conv1|layer\d|bn\d|prelu|fc|features)\.)"
)


@LAYOUTS.register("magface_iresnet")
class MagFaceIResNet(InsightFaceIResNet):
    """IResNet; the head is in the same state dict."""

    patterns = (r"features\.(module\.)?layer[1-4]\.\d+\.prelu\.weight",)
    color_order = "bgr"
    mean = 0.0
    std = 1.0
    source = "IrvingMeng/MagFace inference/gen_feat.py: cv2.imread, ToTensor, mean 0, std 1"
    shared_with = ""

    def split(self, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Split a checkpoint: the network has MagFace's prefix; all other tensors are the head.

        The keys of the head's tensors get the prefix ``head.``.
        """
        bare = {key: NETWORK_PREFIX.sub("", key, count=1) for key in checkpoint}
        # No key has the prefix, which is possible only if the user chose this layout.
        if all(key == name for key, name in bare.items()):
            return super().split(checkpoint)
        network = {bare[key]: checkpoint[key] for key in checkpoint if bare[key] != key}
        head = {f"head.{key}": checkpoint[key] for key in checkpoint if bare[key] == key}
        return network, head
