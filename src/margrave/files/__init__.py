"""Whatever touches bytes of others: nothing is believed, executed or allocated unchecked."""

from margrave.files.atomic import atomic_write
from margrave.files.budget import Budget
from margrave.files.file_kind import FileKind, file_kind, is_onnx, is_safetensors
from margrave.files.inert_pickle import Record, read_inert, shown
from margrave.files.json_text import read_json
from margrave.files.onnx_weights import external_weights, onnx_tensors
from margrave.files.ordinary import ordinary, read_bytes
from margrave.files.rows import read_rows
from margrave.files.torch_pickle import check_old_torch_file, check_torch_pickle
from margrave.files.yaml_text import read_yaml

__all__ = [
    "Budget",
    "FileKind",
    "Record",
    "atomic_write",
    "check_old_torch_file",
    "check_torch_pickle",
    "external_weights",
    "file_kind",
    "is_onnx",
    "is_safetensors",
    "onnx_tensors",
    "ordinary",
    "read_bytes",
    "read_inert",
    "read_json",
    "read_rows",
    "read_yaml",
    "shown",
]
