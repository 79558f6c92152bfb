"""Runs ONNX models with onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from margrave.files import first_line
from margrave.models.onnx_network import OnnxNetwork, Port


class OnnxBackbone(OnnxNetwork):
    """A network in an ONNX file, run by onnxruntime on ``cpu`` or ``cuda``.

    See ``OnnxNetwork`` for arguments, attributes and errors. The default device is CUDA if
    the installed onnxruntime supports it.
    """

    runtime = "onnxruntime"
    element_types: ClassVar[Mapping[str, type]] = {
        "tensor(float)": np.float32,
        "tensor(float16)": np.float16,
        "tensor(double)": np.float64,
        "tensor(uint8)": np.uint8,
    }

    def _open(self, threads: int, device: str | None) -> tuple[Sequence[Port], Sequence[Port]]:
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(
                f"{self.path} needs onnxruntime, which is not installed: "
                "pip install 'margrave[onnx]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Log only fatal errors: others become exceptions, and warnings are for the model's author.
        options.log_severity_level = 4
        available = onnxruntime.get_available_providers()
        providers_by_device = {
            "cpu": "CPUExecutionProvider",
            "cuda": "CUDAExecutionProvider",
        }
        kind, _, index = (device or "").partition(":")
        provider_options = None
        if device is None:
            # onnxruntime uses the first provider that works, so CUDA comes first.
            providers = [
                name for name in reversed(providers_by_device.values()) if name in available
            ]
        elif providers_by_device.get(kind) in available and index.isdecimal() == bool(index):
            providers = [providers_by_device[kind]]
            provider_options = [{"device_id": index}] if kind == "cuda" and index else None
        else:
            choices = ", ".join(
                name for name, provider in providers_by_device.items() if provider in available
            )
            raise ValueError(
                f"{self.path} cannot be run on device = {device!r}; choices: {choices}"
            )
        try:
            self._session = onnxruntime.InferenceSession(
                str(self.path), options, providers=providers, provider_options=provider_options
            )
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise ValueError(
                f"{self.path}: damaged or not an ONNX model ({first_line(error)})"
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        return _ports(inputs), _ports(outputs)

    def _compute(self, pixels: np.ndarray) -> np.ndarray:
        try:
            embeddings: Any = self._session.run([self._output], {self._input: pixels})[0]
        except Exception as error:  # onnxruntime's exceptions have no common base class
            raise ValueError(first_line(error)) from error
        return embeddings


def _ports(declared: Sequence[Any]) -> list[Port]:
    return [Port(value.name, list(value.shape), value.type) for value in declared]
