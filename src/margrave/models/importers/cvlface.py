"""CVLface: AdaFace's networks, trained on RGB."""

from __future__ import annotations

from margrave.models.importers.adaface import AdaFaceIr
from margrave.models.importers.contract import LAYOUTS


@LAYOUTS.register("cvlface_ir")
class CvlFaceIr(AdaFaceIr):
    """Networks with AdaFace's names, prefixed with ``net.``."""

    patterns = (r"net\.body\.\d+\.res_layer\.2\.running_mean",)
    color_order = "rgb"
    source = "mk-minchul/CVLface: RGB, mean 0.5, std 0.5"
    shared_with = "AdaFace (BGR)"
