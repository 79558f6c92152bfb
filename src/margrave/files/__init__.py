"""Read untrusted files without executing code and in bounded memory and time."""

from margrave.files.atomic import atomic_write
from margrave.files.budget import Budget
from margrave.files.file_kind import FileKind, file_kind, is_onnx, is_safetensors
from margrave.files.inert_pickle import PickledObject, describe_value, read_inert
from margrave.files.json_text import read_json
from margrave.files.messages import first_line, first_sentence, listed
from margrave.files.onnx_weights import external_weights, onnx_metadata, onnx_tensors
from margrave.files.regular import open_regular, read_bytes
from margrave.files.rows import read_rows
from margrave.files.torch_archive import check_torch_file
from margrave.files.yaml_text import read_yaml

__all__ = [
    "Budget",
    "FileKind",
    "PickledObject",
    "atomic_write",
    "check_torch_file",
    "describe_value",
    "external_weights",
    "file_kind",
    "first_line",
    "first_sentence",
    "is_onnx",
    "is_safetensors",
    "listed",
    "onnx_metadata",
    "onnx_tensors",
    "open_regular",
    "read_bytes",
    "read_inert",
    "read_json",
    "read_rows",
    "read_yaml",
]
