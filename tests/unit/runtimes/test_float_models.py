"""Float files on their runtimes: one input at a time, exactly the given numbers, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qertify.errors import InvalidInputError, ModelFileError
from qertify.runtimes.float_models import replay_float
from tests.files import write_h5

LAYERS = [([[1.0, -1.0], [0.5, 0.25]], [0.0, 1.0]), ([[2.0], [1.0]], [-1.0])]


def test_keras(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "m.h5", LAYERS)
    _, outputs = replay_float(path, [[1.0, 2.0], [0.0, -8.0]])
    assert outputs.dtype == np.float32
    assert outputs.tolist() == [[2 * 2.0 + 0.5 - 1], [-1.0]]


def test_onnx_batches_of_one(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from tests.conformance.onnx_models import FloatNetwork, run, save

    net = FloatNetwork(0, [2, 5, 5])
    path = save(net.model(net.convolution("x", 3, 2, 3)), tmp_path / "m.onnx")
    inputs = np.random.default_rng(0).standard_normal((3, 2, 5, 5)).astype(np.float32)
    name, outputs = replay_float(path, inputs)
    assert name.startswith("onnxruntime ")
    assert np.array_equal(outputs, np.concatenate([run(path, x[None]) for x in inputs]))
    with pytest.raises(ModelFileError, match="fails on it"):
        replay_float(path, np.zeros((1, 3, 5, 5)))


@pytest.mark.parametrize("bad", [[[0.1, 0.0]], [[np.nan, 0.0]], [[1e300, 0.0]], [["a", "b"]], [1.0, 2.0], [[2**24 + 1, 0]]])
def test_inputs_that_no_float32_runtime_can_be_given(tmp_path: Path, bad: list) -> None:
    with pytest.raises(InvalidInputError):
        replay_float(write_h5(tmp_path / "m.h5", LAYERS), bad)


def test_files_that_do_not_run(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        replay_float(tmp_path / "m.h5", [[0.0, 0.0]])
    with pytest.raises(ModelFileError, match="unknown float model format"):
        replay_float(tmp_path / "m.tflite", [[0.0, 0.0]])
    with pytest.raises(ModelFileError, match="fails on it"):
        replay_float(write_h5(tmp_path / "m.h5", LAYERS), [[0.0, 0.0, 0.0]])
