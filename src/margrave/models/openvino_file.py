"""Runs ONNX models with OpenVINO, the fastest runtime on CPUs (180 MB when installed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import numpy as np

from margrave.models.onnx_network import OnnxNetwork, Port


class OpenVinoBackbone(OnnxNetwork):
    """A network in an ONNX file, run by OpenVINO in float32, on the CPU by default.

    See ``OnnxNetwork`` for arguments, attributes and errors. Devices are ``cpu`` and any other that
    OpenVINO has a driver for on this machine, such as ``gpu`` for Intel GPUs.
    """

    runtime = "openvino"
    element_types: ClassVar[Mapping[str, type]] = {
        "f32": np.float32,
        "f16": np.float16,
        "f64": np.float64,
        "u8": np.uint8,
    }

    def _open(self, threads: int, device: str | None) -> tuple[Sequence[Port], Sequence[Port]]:
        try:
            core = _core()
        except ImportError as error:
            raise ValueError(
                f"{self.path} needs openvino, which is not installed: "
                "pip install 'margrave[openvino]'"
            ) from error
        name = (device or "cpu").upper()
        if name not in core.available_devices:
            choices = ", ".join(available.lower() for available in core.available_devices)
            raise ValueError(
                f"{self.path} cannot be run on device = {device!r}; choices: {choices}"
            )
        # By default, OpenVINO would compute in bfloat16 on CPUs that support it.
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if name == "CPU":
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(str(self.path))
            # Read the shapes first, because compiling may change them.
            ports = _ports(model.inputs), _ports(model.outputs)
            self._request = core.compile_model(model, name, options).create_infer_request()
        except RuntimeError as error:
            raise ValueError(
                f"{self.path}: damaged or not an ONNX model ({_reason(error)})"
            ) from error
        return ports

    def _compute(self, pixels: np.ndarray) -> np.ndarray:
        try:
            self._request.infer({self._input: pixels}, share_inputs=True)
            # A copy, because the next call overwrites this memory.
            return np.array(self._request.get_tensor(self._output).data)
        except RuntimeError as error:
            raise ValueError(_reason(error)) from error


@cache
def _core() -> Any:
    """The process's only ``openvino.Core``, which is never closed.

    On CPUs with AMX, each Core gives its thread a stack for signal handlers. If two Cores are
    closed in the order in which they were opened, that stack is freed while it is still in use, and
    the next signal that Python handles, such as Ctrl-C, crashes the process.
    """
    import openvino

    return openvino.Core()


def _ports(declared: Sequence[Any]) -> list[Port]:
    """Convert inputs or outputs; a shape is empty if its number of dimensions is dynamic."""
    return [
        Port(
            value.get_any_name(),
            [
                length.get_length() if length.is_static else str(length)
                for length in (value.partial_shape if value.partial_shape.rank.is_static else ())
            ],
            value.get_element_type().to_string(),
        )
        for value in declared
    ]


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's message; the lines above only locate it in OpenVINO's source."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
