"""Trained models in use: photos aligned, images embedded, embeddings judged."""

from margrave.inference.aligned_photos import AlignedPhoto, AlignmentSettings, align_photos
from margrave.inference.embedder import Embedder, load_embedder
from margrave.inference.feature_store import (
    ChosenRows,
    FeatureStore,
    FusedRows,
    embed_to_store,
)
from margrave.inference.file_keeper import FileKeeper, state_of_rank
from margrave.inference.landmarked_images import open_landmarked
from margrave.inference.onnx_model import OnnxBackbone, import_onnx
from margrave.inference.operating_points import (
    Decision,
    check_made_by,
    choose_operating_points,
    decide,
    operating_point,
    save_operating_points,
)
from margrave.inference.pair_protocols import (
    GroupsResult,
    judge_difference,
    judge_groups,
    judge_pairs,
    judge_youtube,
)
from margrave.inference.search_protocols import (
    judge_all_to_all,
    judge_identification,
    judge_megaface,
)
from margrave.inference.template_protocols import TemplatesResult, judge_ijb, judge_templates
from margrave.inference.verification import Verification, embed_pairs, verify

__all__ = [
    "AlignedPhoto",
    "AlignmentSettings",
    "ChosenRows",
    "Decision",
    "Embedder",
    "FeatureStore",
    "FileKeeper",
    "FusedRows",
    "GroupsResult",
    "OnnxBackbone",
    "TemplatesResult",
    "Verification",
    "align_photos",
    "check_made_by",
    "choose_operating_points",
    "decide",
    "embed_pairs",
    "embed_to_store",
    "import_onnx",
    "judge_all_to_all",
    "judge_difference",
    "judge_groups",
    "judge_identification",
    "judge_ijb",
    "judge_megaface",
    "judge_pairs",
    "judge_templates",
    "judge_youtube",
    "load_embedder",
    "open_landmarked",
    "operating_point",
    "save_operating_points",
    "state_of_rank",
    "verify",
]
