"""FaceX-Zoo: networks with CurricularFace's tensor names, but trained on BGR."""

from __future__ import annotations

from margrave.models.contract import Checkpoint
from margrave.models.importers.contract import LAYOUTS, Importer
from margrave.models.importers.curricularface import CurricularFaceIr, CurricularFaceMobileFaceNet


class _FaceXZoo(Importer):
    """What FaceX-Zoo's importers share: pixel statistics and the check of the file's origin."""

    color_order = "bgr"
    std = 128 / 255
    source = (
        "JDAI-CV/FaceX-Zoo data_processor/train_dataset.py: cv2.imread, (image - 127.5) * 0.0078125"
    )
    shared_with = ""

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Whether the keys match and the file comes from FaceX-Zoo.

        FaceX-Zoo's files contain a ``batch_id``, or the tensors of both the network and the head,
        with the prefixes ``backbone.`` and ``head.``. CurricularFace's files contain neither.
        """
        roots = {key.removeprefix("module.").partition(".")[0] for key in checkpoint.raw_keys}
        is_facexzoo = "batch_id" in checkpoint.other_keys or {"backbone", "head"} <= roots
        return is_facexzoo and super().matches(checkpoint)


@LAYOUTS.register("facexzoo_ir")
class FaceXZooIr(_FaceXZoo, CurricularFaceIr):
    """FaceX-Zoo's IR networks."""

    patterns = (r"body\.\d+\.res_layer\.4\.running_mean",)


@LAYOUTS.register("facexzoo_mobilefacenet")
class FaceXZooMobileFaceNet(_FaceXZoo, CurricularFaceMobileFaceNet):
    """FaceX-Zoo's MobileFaceNet."""

    patterns = (r"conv_6_sep\.",)
