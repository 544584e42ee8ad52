"""What exporters compute from shapes (the size of a batch, a target shape, paddings): folded into constants."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from qertify.errors import ModelFileError
from qertify.importers.moving import Codes
from qertify.importers.onnx_context import Context, attribute
from qertify.importers.onnx_file import Constant, GraphNode

FOLDED = (
    "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Gather", "Identity", "Mul", "Reshape", "Slice", "Squeeze", "Sub",
    "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that exporters put between shapes and what reads them."""
ELEMENT_LIMIT = 64
"""Most elements of the constants that such an operator reads, and of one that it makes out of nothing."""


def fold(context: Context, node: GraphNode) -> bool:
    """Whether the node is one on shapes; its result then is a constant.

    Raises:
        ModelFileError: its operands do not fit together.
    """
    constants = context.graph.constants
    if not node.inputs or not node.outputs or not node.outputs[0]:
        return False
    if node.op == "Shape" and node.inputs[0] in context.values:
        value = context.value(node, 0)
        full = (1, *(value.shape if isinstance(value, Codes) else value.codes.shape))
        ends = attribute(node, "start", 0), attribute(node, "end", len(full))
        constants[node.outputs[0]] = np.array(full[slice(*ends)], dtype=np.int64)
        return True
    operands = {name: constants[name] for name in node.inputs if name in constants}
    if node.op not in FOLDED or not operands or not all(name in operands for name in filter(None, node.inputs)):
        return False
    if sum(operand.size for operand in operands.values()) > ELEMENT_LIMIT:
        return False
    if any(operand.dtype.kind not in "ib" for operand in operands.values()):
        return False
    if node.op == "ConstantOfShape" and prod(operands[node.inputs[0]].reshape(-1).tolist()) > ELEMENT_LIMIT:
        return False
    constants[node.outputs[0]] = _computed(node, operands, context.graph.opset)
    return True


def _computed(node: GraphNode, operands: dict[str, Constant], opset: int) -> Constant:
    """By the standard's own definition."""
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    attributes: dict[str, Any] = {
        name: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in node.attributes.items()
    }
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in operands.items()
    ]
    output = helper.make_value_info(node.outputs[0], helper.make_tensor_type_proto(0, None))
    try:
        proto = helper.make_node(node.op, node.inputs, node.outputs[:1], **attributes)
        graph = helper.make_graph([proto], "fold", inputs, [output])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        found: list[Any] = list(ReferenceEvaluator(model).run(None, operands))
        return np.asarray(found[0])
    except Exception as error:  # its exceptions share no base class
        reason = " ".join(str(error).split())[:150]
        raise ModelFileError(f"node '{node.name}' ({node.op}): can't be computed ({reason})") from error
