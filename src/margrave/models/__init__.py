"""Model files: Margrave's format, other projects' checkpoints, ONNX. No code in them is run."""

from margrave.models.contract import Checkpoint, Imported
from margrave.models.digest import weights_digest
from margrave.models.dlib_file import DlibBackbone
from margrave.models.head_weights import head_weight, merge_head_shards
from margrave.models.importing import ImportOptions, card_for, network_for
from margrave.models.model_file import (
    CARD_KEY,
    ModelCard,
    load_model,
    read_card,
    save_model,
)
from margrave.models.onnx_card import RUNTIMES, import_onnx
from margrave.models.onnx_file import OnnxBackbone
from margrave.models.onnx_network import OnnxNetwork
from margrave.models.opening import Model, model_path, open_model, save_card
from margrave.models.openvino_file import OpenVinoBackbone
from margrave.models.operating_points import Calibration, OperatingPoint, ScoreReference
from margrave.models.reading import read_checkpoint
from margrave.models.strict import load_strictly

__all__ = [
    "CARD_KEY",
    "RUNTIMES",
    "Calibration",
    "Checkpoint",
    "DlibBackbone",
    "ImportOptions",
    "Imported",
    "Model",
    "ModelCard",
    "OnnxBackbone",
    "OnnxNetwork",
    "OpenVinoBackbone",
    "OperatingPoint",
    "ScoreReference",
    "card_for",
    "head_weight",
    "import_onnx",
    "load_model",
    "load_strictly",
    "merge_head_shards",
    "model_path",
    "network_for",
    "open_model",
    "read_card",
    "read_checkpoint",
    "save_card",
    "save_model",
    "weights_digest",
]
