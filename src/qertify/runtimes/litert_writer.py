"""Writes small TensorFlow Lite files from numpy arrays, without TensorFlow: probes of the runtime, examples, tests.

Tensors are added one by one and named by their index; operators connect them. Images are (batch, height, width, channels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated
from numpy.typing import ArrayLike

schema: Any = schema_py_generated  # its annotations do not admit the arrays that its code takes

TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int16): schema.TensorType.INT16,
    np.dtype(np.int64): schema.TensorType.INT64,
}
VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4,
    **dict.fromkeys(("DEPTH_TO_SPACE", "HARD_SWISH", "PACK", "RESHAPE", "SHAPE"), 1),
}  # fmt: skip
"""Versions of the operators that read int8, two unless listed."""
NONE, RELU, RELU_N1_TO_1, RELU6 = range(4)
"""Fused activation functions."""
SAME, VALID = range(2)
"""Paddings."""


@dataclass(slots=True)
class Writer:
    """One model under construction; every method that adds a tensor returns its index."""

    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    operators: list[Any] = field(default_factory=list)
    codes: list[Any] = field(default_factory=list)

    def tensor(
        self,
        shape: Sequence[int],
        scale: ArrayLike | None = None,
        zero_point: ArrayLike = 0,
        dtype: Any = np.int8,
        axis: int = 0,
    ) -> int:
        """A tensor computed at run time; ``axis`` is the one that several scales belong to."""
        tensor = schema.TensorT()
        tensor.shape, tensor.type = [int(size) for size in shape], TYPES[np.dtype(dtype)]
        tensor.shapeSignature = None
        tensor.name = f"tensor{len(self.tensors)}"
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, dtype=np.float32))
            parameters = schema.QuantizationParametersT()
            parameters.scale = scales
            parameters.zeroPoint = np.broadcast_to(np.atleast_1d(np.asarray(zero_point, dtype=np.int64)), scales.shape).copy()
            parameters.quantizedDimension = axis
            tensor.quantization = parameters
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, data: ArrayLike, scale: ArrayLike | None = None, zero_point: ArrayLike = 0, axis: int = 0) -> int:
        """A tensor that the file holds, of the array's own type."""
        array = np.ascontiguousarray(data)
        index = self.tensor(array.shape, scale, zero_point, array.dtype, axis)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), dtype=np.uint8)
        self.buffers.append(buffer)
        self.tensors[index].buffer = len(self.buffers) - 1
        return index

    def operator(self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "", **values: Any) -> None:
        """Connect tensors; ``options`` is the schema's name of the options table, ``values`` its fields."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = VERSIONS.get(name, 2)
        self.codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.codes) - 1, list(inputs), list(outputs)
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(schema, f"{options}T")(**values)
        self.operators.append(operator)

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The file."""
        import flatbuffers

        graph = schema.SubGraphT(
            tensors=self.tensors, inputs=list(inputs), outputs=list(outputs), operators=self.operators, name="main"
        )
        model = schema.ModelT(version=3, operatorCodes=self.codes, subgraphs=[graph], buffers=self.buffers, description="")
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def save(self, path: Path, inputs: Sequence[int], outputs: Sequence[int]) -> Path:
        path.write_bytes(self.finish(inputs, outputs))
        return path
