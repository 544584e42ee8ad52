"""ONNX's own reference implementation: a QDQ file as the standard defines it, each operator by itself, in float between."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.errors import ModelFileError

OPSET = 21
"""Older models are converted to this operator set: the reference implementation does not know all older operators."""


def version() -> str:
    """Version of the installed onnx."""
    import onnx

    return str(onnx.__version__)


def run(path: str | os.PathLike[str], inputs: NDArray[Any], name: str) -> NDArray[Any]:
    """What the reference implementation computes, row by row, (batch, outputs).

    Args:
        name: of the input that the model must have.

    Raises:
        ModelFileError: another input, or the reference implementation refuses the file.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator
    from onnx.version_converter import convert_version

    try:
        model = onnx.load(os.fspath(path))
        if any(entry.domain in ("", "ai.onnx") and entry.version < OPSET for entry in model.opset_import):
            model = convert_version(model, OPSET)
        evaluator = ReferenceEvaluator(model)
        if list(evaluator.input_names) != [name]:
            raise ModelFileError(f"{path}: its input is not '{name}'")
        results: list[Any] = [list(evaluator.run(None, {name: row[None]})) for row in inputs]
        rows = [np.asarray(result[0]).reshape(-1) for result in results]
    except ModelFileError:
        raise
    except Exception as error:  # its exceptions share no base class
        raise ModelFileError(f"{path}: onnx.reference fails on it: {' '.join(str(error).split())[:300]}") from error
    return np.stack(rows)
