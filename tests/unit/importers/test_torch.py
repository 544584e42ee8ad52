"""What the PyTorch importer refuses, in one clear line; trust, damaged files, operators in place, real inputs."""

from __future__ import annotations

import io
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from qertify.errors import InvalidInputError, ModelFileError, QertifyError, UnsupportedModelError
from qertify.importers.registry import ImportOptions, load_model
from qertify.importers.torch_quantized import import_torch, load_torchscript
from qertify.network.evaluate import evaluate
from qertify.runtimes.base import runtime_of
from qertify.runtimes.torch_arithmetic import Engine
from qertify.runtimes.torch_int8 import running

EXAMPLE = torch.zeros(1, 2, 4, 4)


class Model(nn.Module):
    """Quantize, a convolution, one function, dequantize."""

    def __init__(self, function=torch.relu, bias=0.5, scale=0.1):
        super().__init__()
        self.function = function
        weight = torch.from_numpy(np.random.default_rng(0).integers(-90, 90, (4, 2, 3, 3)).astype(np.int8))
        with running(Engine.FBGEMM):
            self.conv = torch.ao.nn.quantized.Conv2d(2, 4, 3)
            quantized = torch.ops.aten._make_per_tensor_quantized_tensor(weight, 0.02, 3)
            self.conv.set_weight_bias(quantized, torch.full((4,), bias))
        self.conv.scale, self.conv.zero_point = scale, 7

    def forward(self, x):
        return self.function(self.conv(torch.quantize_per_tensor(x, 0.05, 10, torch.quint8))).dequantize()


def refused(model, match, kind=UnsupportedModelError, example=EXAMPLE, engine="fbgemm"):
    with pytest.raises(kind, match=match) as caught:
        import_torch(model.eval(), example, engine)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.ts.pt"
    with running(Engine.FBGEMM):
        torch.jit.save(torch.jit.script(torch.fx.symbolic_trace(Model().eval())), path)
    return path


def test_agrees_with_the_module():
    model = Model().eval()
    network = import_torch(model, EXAMPLE)
    x = np.random.default_rng(0).normal(size=(50, 2, 4, 4)) * 5
    replay = runtime_of(network).replay(model, x)
    assert replay.agrees.all()
    assert len(np.unique(replay.outputs)) > 20
    assert network.metadata["output"] == "dequantized"


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda q: torch.softmax(q.dequantize(), 1).dequantize(), r"aten::softmax.*over all outputs"),
        (lambda q: torch.ops.quantized.add_scalar(q, 0.5), r"quantized::add_scalar.*no exact integer form"),
        (lambda q: torch.ops.quantized.add(q, q.transpose(2, 3), 0.2, 1), r"quantized::add.*laid out differently"),
        (lambda q: torch.cumsum(q.dequantize().flatten(1), 1), r"aten::cumsum.*no exact integer form"),
        (lambda q: torch.ops.quantized.add(q, q[:, :1], 0.2, 1), r"expand its operands first"),
        (lambda q: nn.functional.avg_pool2d(q, 2, padding=1, count_include_pad=False), r"avg_pool2d.padding.*fewer elements"),
        (lambda q: nn.functional.adaptive_avg_pool2d(nn.functional.pad_like(q), 2), "can be neither traced"),
        (lambda q: q.permute(1, 0, 2, 3), r"no batch axis"),
        (lambda q: torch.cat([q, q], 0), r"aten::cat.*batch axis"),
        (lambda q: nn.functional.dropout(q, 0.5, True), "dropout"),
        (lambda q: torch.quantize_per_tensor(q.dequantize(), 0.1, 3, torch.qint8), r"must be quint8"),
    ],
)
def test_refuses(function, match):
    refused(Model(function), match)


def test_names_node_operator_and_attribute():
    error = refused(Model(lambda q: nn.functional.avg_pool2d(q, 2, padding=1, count_include_pad=False)), "avg_pool2d")
    assert error.op == "aten::avg_pool2d"
    assert error.attribute == "padding"
    assert error.node


def test_refuses_branches_on_values():
    class Branching(Model):
        def forward(self, x):
            q = self.conv(torch.quantize_per_tensor(x, 0.05, 10, torch.quint8))
            if bool((q.dequantize().sum() > 0).item()):
                q = torch.relu(q)
            return q.dequantize()

    refused(Branching(), "no exact integer form|can be neither traced")


def test_follows_branches_on_shapes():
    class Branching(Model):
        def forward(self, x):
            q = self.conv(torch.quantize_per_tensor(x, 0.05, 10, torch.quint8))
            if q.size(1) == 4:
                q = torch.relu(q)
            return q.dequantize()

    model = Branching().eval()
    network = import_torch(model, EXAMPLE)
    assert runtime_of(network).replay(model, np.ones((3, 2, 4, 4))).agrees.all()
    assert evaluate(network, np.random.default_rng(0).integers(0, 256, (50, 2, 4, 4))).min() == 7


def test_operator_in_place_on_shared_memory():
    def function(q):
        view = q.transpose(2, 3)
        torch.relu_(q)
        return torch.ops.quantized.add(view.contiguous(), q, 0.2, 3)

    refused(Model(function), "changed through another tensor")


@pytest.mark.parametrize(
    ("model", "match", "kind"),
    [
        (Model(bias=1e9), "bias.*32 bits", UnsupportedModelError),
        (Model(bias=float("nan")), "bias.*32 bits", UnsupportedModelError),
        (Model(scale=1e-39), "normal numbers", UnsupportedModelError),
        (nn.Linear(3, 2), "no exact integer form", UnsupportedModelError),
        (nn.Identity(), "no quantizer was met", UnsupportedModelError),
    ],
)
def test_refuses_models(model, match, kind):
    refused(model, match, kind)


def test_refuses_other_arguments():
    refused(Model(), "unknown quantized engine", InvalidInputError, engine="cudnn")
    refused(Model(), "float32", InvalidInputError, example=torch.zeros(1, 2, 4, 4, dtype=torch.int64))
    refused(Model(), "torch refuses it", example=torch.zeros(1, 3, 4, 4))
    with pytest.raises(InvalidInputError, match="eval"):
        import_torch(Model().train(), EXAMPLE)


def test_two_input_quantizers():
    class Twice(nn.Module):
        def forward(self, x):
            a, b = (torch.quantize_per_tensor(x, scale, 0, torch.quint8) for scale in (0.1, 0.2))
            return torch.ops.quantized.add(a, b, 0.3, 0)

    refused(Twice(), "quantized in several ways")


def test_module_and_engine_stay_as_they_are():
    model, before = Model().eval(), torch.backends.quantized.engine
    import_torch(model, EXAMPLE, "qnnpack")
    assert torch.backends.quantized.engine == before
    with running(Engine.FBGEMM):
        assert torch.equal(model(EXAMPLE), Model().eval()(EXAMPLE))


def test_a_hook_is_noticed():
    model = Model().eval()
    model.register_forward_hook(lambda module, arguments, output: output + 1)
    refused(model, "hooks")


# Files.


def test_needs_trust_and_shape(saved):
    with pytest.raises(InvalidInputError, match="is a program; give --trust-code"):
        load_model(saved)
    with pytest.raises(InvalidInputError, match="is a program"):
        load_model(saved, ImportOptions(input_shape=(1, 2, 4, 4), trust_code=False))
    with pytest.raises(InvalidInputError, match="--input-shape"):
        load_model(saved, ImportOptions(trust_code=True))
    for shape in ((2, 2, 4, 4), (1,), (1, 0, 4), (1, 1 << 20, 1 << 20)):
        with pytest.raises(InvalidInputError, match="batch axis of one"):
            load_torchscript(saved, shape, trust_code=True)
    with pytest.raises(InvalidInputError, match="not on 'onnxruntime'"):
        load_torchscript(saved, (1, 2, 4, 4), trust_code=True, runtime="onnxruntime")
    network = load_model(saved, ImportOptions(input_shape=(1, 2, 4, 4), trust_code=True))
    assert network.runtime_profile == "torch-fbgemm"
    assert runtime_of(network).replay(saved, np.ones((2, 2, 4, 4))).agrees.all()


def test_nothing_of_an_untrusted_file_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "model.ts.pt").write_bytes(b"anything")
    with pytest.raises(InvalidInputError, match="is a program"):
        load_model(tmp_path / "model.ts.pt", ImportOptions(input_shape=(1, 2, 4, 4)))


def test_damaged_and_other_files(saved, tmp_path):
    content = saved.read_bytes()
    pickled = io.BytesIO()
    torch.save({"weight": torch.zeros(3)}, pickled)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "hello")
    files = [b"", b"\x80", content[: len(content) // 2], content[:-30], content[100:], pickled.getvalue(), archive.getvalue()]
    for position, data in enumerate(files):
        path = tmp_path / f"{position}.ts.pt"
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match="not a TorchScript file") as caught:
            load_torchscript(path, (1, 2, 4, 4), trust_code=True)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelFileError, match="can't be read"):
        load_torchscript(tmp_path, (1, 2, 4, 4), trust_code=True)


def test_mutated_files_never_end_in_a_traceback(saved, tmp_path):
    random, content = np.random.default_rng(0), saved.read_bytes()
    refusals = []
    for position in range(300):
        data = bytearray(content)
        for at in random.integers(0, len(data), 1 + position % 3):
            data[at] = random.integers(0, 256)
        path = tmp_path / "mutated.ts.pt"
        path.write_bytes(data)
        try:
            load_torchscript(path, (1, 2, 4, 4), trust_code=True)
        except QertifyError as error:
            refusals.append(str(error))
    assert refusals
    assert not any("\n" in line for line in refusals)


def test_only_the_imported_file_is_executed(saved, tmp_path):
    network = load_torchscript(saved, (1, 2, 4, 4), trust_code=True)
    other = tmp_path / "other.ts.pt"
    other.write_bytes(saved.read_bytes() + b" ")
    with pytest.raises(ModelFileError, match="not executed"):
        runtime_of(network).replay(other, np.zeros((1, 2, 4, 4)))


# Real inputs.


def test_regions_of_real_inputs_are_mapped_exactly():
    runtime = runtime_of(import_torch(Model().eval(), EXAMPLE))
    random = np.random.default_rng(1)
    low = random.normal(size=(2, 4, 4)) * 2
    high = low + random.uniform(0, 1, size=low.shape)
    box = runtime.integer_image(low, high)
    inside = (low + (high - low) * random.uniform(size=(2000, 2, 4, 4))).astype(np.float32)
    inside = np.clip(inside, *(np.float64(v) for v in (low, high))).astype(np.float32)
    codes = runtime.quantize_input(inside)
    legal = np.all((inside.astype(np.float64) >= low) & (inside.astype(np.float64) <= high), axis=(1, 2, 3))
    assert legal.sum() > 100
    assert box.contains(codes[legal]).all()
    for corner in (box.low, box.high):
        real = runtime.real_input(corner, low, high)
        assert np.all((real >= low) & (real <= high))
        assert np.array_equal(runtime.quantize_input(real[None])[0], corner)


def test_every_level_of_a_region_has_an_input():
    runtime = runtime_of(import_torch(Model().eval(), EXAMPLE))
    low, high = np.full((2, 4, 4), Fraction(-1, 3), dtype=object), np.full((2, 4, 4), Fraction(7, 9), dtype=object)
    box = runtime.integer_image(low, high)
    for code in range(int(box.low.max()), int(box.high.min()) + 1):
        wanted = np.full((2, 4, 4), code)
        assert np.array_equal(runtime.quantize_input(runtime.real_input(wanted, low, high)[None])[0], wanted)


def test_refuses_inputs():
    runtime = runtime_of(import_torch(Model().eval(), EXAMPLE))
    for bad in (np.zeros((1, 2, 4)), np.full((1, 2, 4, 4), np.nan), np.full((1, 2, 4, 4), 1e300), np.full((1, 2, 4, 4), "x")):
        with pytest.raises(InvalidInputError):
            runtime.quantize_input(bad)
    with pytest.raises(InvalidInputError, match="region is empty"):
        runtime.integer_image(1.0, 0.5)
    with pytest.raises(InvalidInputError, match="finite"):
        runtime.integer_image(np.nan, 1.0)
    with pytest.raises(InvalidInputError, match="no input in the region"):
        runtime.real_input(np.full((2, 4, 4), 200), 0.0, 0.1)
