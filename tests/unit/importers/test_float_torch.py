"""Float torch modules and torch.export files against torch itself, within the proved rounding error; and what is refused."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from qertify.errors import InvalidInputError, ModelFileError, QertifyError, UnsupportedModelError
from qertify.importers.float_torch import import_torch_float
from qertify.importers.registry import load_float_model
from qertify.network.real import RealNetwork
from qertify.network.real_error import float32_error
from qertify.network.real_evaluate import evaluate_exactly
from qertify.runtimes.float_models import replay_float
from tests.unit.importers.test_onnx_bad_files import mutations


class Forward(nn.Module):
    """A module that is one function of its input, and perhaps of some parameters."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)
        self.table = nn.Parameter(torch.randn(4, 1, 1))
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3)
        self.last = nn.Linear(54, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x - 0.1307) / 0.3081
        x = functional.relu(self.norm(self.first(x)), inplace=True)
        x = functional.relu6(x + self.second(x))
        x = functional.max_pool2d(functional.pad(x, (1, 1, 1, 1)), 2)
        x = functional.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        x = torch.cat([x[:, :3], 2.0 * x[:, 3:]], 1)
        return self.last(x.permute(0, 2, 3, 1).reshape(x.size(0), -1).clamp(-0.5, 3))


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.7)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.05)
    return module.eval()


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3, bias=False)), (7,)),
    "linear_rows": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Flatten()), (2, 3)),
    "inplace": (lambda: nn.Sequential(nn.Linear(7, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), (7,)),
    "clips": (lambda: nn.Sequential(nn.Linear(7, 5), nn.Hardtanh(), nn.ReLU6(), nn.Hardtanh(-0.1, 0.4)), (7,)),
    "leaky": (lambda: nn.Sequential(nn.LeakyReLU(0.2), nn.PReLU()), (7,)),
    "prelu_channels": (lambda: nn.PReLU(4), (4, 2, 3)),
    "batch_norm_1d": (lambda: nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.ReLU()), (7,)),
    "batch_norm_plain": (lambda: nn.BatchNorm2d(4, affine=False), (4, 2, 3)),
    "convolutions": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 4, (1, 2), groups=4)), (2, 6, 7)),
    "signal": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, dilation=2), nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(1)), (3, 9)),
    "pools": (lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 1, 1), nn.AdaptiveAvgPool2d(2)), (2, 6, 6)),
    "global": (lambda: nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()), (3, 4, 5)),
    "mean": (lambda: Forward(lambda m, x: x.mean((2, 3)) - x.mean(dim=[-1, -2], keepdim=True).flatten(1)[:, :1]), (3, 4, 5)),
    "residual": (Residual, (1, 9, 9)),
    "constants": (lambda: Forward(lambda m, x: (1.5 - x) * m.table / 3 + m.table - 0.1 * x), (4, 2, 3)),
    "moves": (lambda: Forward(lambda m, x: torch.cat([x.transpose(1, 3), -x.permute(0, 3, 2, 1)[:, :, 1:]], dim=2)), (4, 2, 3)),
    "slices": (lambda: Forward(lambda m, x: x[:, 1:4:2, 0].unsqueeze(2) + x[:, :1, None, 1].squeeze(2)), (4, 2, 3)),
    "clamp": (lambda: Forward(lambda m, x: x.clamp(min=-0.5) + x.clamp(max=0.25) - functional.relu(x)), (4, 2, 3)),
    "matmul": (
        lambda: Forward(lambda m, x: torch.addmm(m.table.flatten(), x @ m.a.weight.t(), m.a.weight), a=nn.Linear(4, 4)),
        (4,),
    ),
}  # fmt: skip


def agrees(network: RealNetwork, inputs: np.ndarray, outputs: np.ndarray) -> None:
    """The outputs are the exact ones up to the proved error, and the bound is worth something."""
    for x, y in zip(inputs, outputs, strict=True):
        exact = evaluate_exactly(network, x)
        bound = float32_error(network, x, x)[network.output.name].reshape(-1)
        assert len(exact) == y.size
        for value, true, most in zip(y.reshape(-1), exact, bound, strict=True):
            assert abs(Fraction(float(value)) - true) <= Fraction(float(most))
            assert most < 1e-2


def export(module: nn.Module, path: Path, shape: tuple[int, ...], dynamic: bool = False) -> Path:
    sizes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(module, (torch.zeros(2 if dynamic else 1, *shape),), dynamic_shapes=sizes)
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    build, shape = MODULES[name]
    module = randomized(build())
    inputs = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    network = import_torch_float(module, inputs)
    agrees(network, inputs.numpy(), replay_float(module, inputs.numpy())[1])


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["residual", "linear"])
def test_files_and_their_replay(tmp_path: Path, name: str, dynamic: bool) -> None:
    build, shape = MODULES[name]
    module = randomized(build())
    path = export(module, tmp_path / "m.pt2", shape, dynamic)
    inputs = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    runtime, outputs = replay_float(path, inputs)
    assert runtime.startswith("torch ")
    with torch.inference_mode():
        assert np.allclose(outputs, module(torch.from_numpy(inputs)).numpy(), atol=1e-5)
    agrees(load_float_model(path), inputs, outputs)


def test_softmax_is_dropped() -> None:
    network = import_torch_float(nn.Sequential(nn.Linear(3, 4), nn.Softmax(1)).eval(), torch.zeros(1, 3))
    assert network.metadata["output"] == "softmax"
    with pytest.raises(UnsupportedModelError, match="nothing may follow"):
        import_torch_float(nn.Sequential(nn.Linear(3, 4), nn.Softmax(1), nn.ReLU()).eval(), torch.zeros(1, 3))
    with pytest.raises(UnsupportedModelError, match="all outputs"):
        import_torch_float(nn.Softmax(1).eval(), torch.zeros(1, 3, 2))


def shares_memory(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    y = x * 2.0
    seen = y.view(1, 2, 2)
    functional.relu_(y)
    return seen


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (lambda: nn.GELU(), "piecewise linear"),
        (lambda: Forward(lambda m, x: x * x), "not linear"),
        (lambda: Forward(lambda m, x: 1 / (x + 9)), "piecewise linear|not linear"),
        (lambda: Forward(lambda m, x: x.sum()), "piecewise linear"),
        (lambda: Forward(lambda m, x: torch.cat([x, x], 0)), "batch axis"),
        (lambda: Forward(lambda m, x: x.t()), "piecewise linear|batch axis"),
        (lambda: Forward(lambda m, x: (x, x)), "outputs"),
        (lambda: Forward(lambda m, x: x if x.sum() > 0 else -x), "can't trace"),
        (lambda: Forward(shares_memory), "in place"),
        (lambda: Forward(lambda m, x: torch.add(x, x, alpha=2)), "alpha"),
        (lambda: Forward(lambda m, x: m.table.sum() + torch.zeros(1)), "depend on the input|piecewise linear"),
    ],
)
def test_what_is_refused(module: Callable[[], nn.Module], text: str) -> None:
    with pytest.raises(UnsupportedModelError, match=text) as found:
        import_torch_float(module().eval(), torch.zeros(1, 4))
    assert "\n" not in str(found.value)


def test_a_tensor_read_after_it_was_changed_in_place() -> None:
    def change(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = x * 2.0
        functional.relu_(y)
        return y

    network = import_torch_float(Forward(change), torch.zeros(1, 2))
    assert evaluate_exactly(network, np.array([-1.0, 1.0])) == [0, 2]


def test_numbers_that_are_none() -> None:
    module = nn.Linear(2, 2).eval()
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    with pytest.raises(ModelFileError, match="NaN"):
        import_torch_float(module, torch.zeros(1, 2))
    with pytest.raises(UnsupportedModelError, match=r"piecewise linear|float32"):
        import_torch_float(Forward(lambda m, x: m.a(x.double()).float(), a=nn.Linear(2, 2).double()), torch.zeros(1, 2))


def test_modules_and_examples_that_make_no_sense() -> None:
    for module, example in (
        (nn.Linear(2, 2), torch.zeros(1, 2)),
        (nn.ReLU().eval(), torch.zeros(2)),
        (nn.ReLU().eval(), [[1]]),
    ):
        with pytest.raises(InvalidInputError):
            import_torch_float(module, example)


def changed(path: Path, member: str, change: Callable[[bytes], bytes]) -> Path:
    """A copy of an archive with one member changed."""
    target = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for item in source.infolist():
            content = source.read(item)
            copy.writestr(item.filename, change(content) if item.filename.endswith(member) else content)
    return target


def edited(change: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        data = json.loads(content)
        change(data)
        return json.dumps(data).encode()

    return apply


WEIGHTS, MODEL = "model_weights_config.json", "model.json"


@pytest.mark.parametrize(
    ("member", "change", "text"),
    [
        (WEIGHTS, edited(lambda d: d["config"]["0.weight"].update(use_pickle=True)), "pickled"),
        (WEIGHTS, edited(lambda d: d["config"]["0.weight"]["tensor_meta"]["sizes"].__setitem__(0, {"as_int": 9999})), "fit"),
        (WEIGHTS, edited(lambda d: d["config"]["0.weight"]["tensor_meta"]["strides"].__setitem__(0, {"as_int": -7})), "fit"),
        (WEIGHTS, edited(lambda d: d["config"]["0.weight"]["tensor_meta"].update(dtype=13)), "type"),
        (WEIGHTS, edited(lambda d: d["config"].pop("0.weight")), "KeyError"),
        (WEIGHTS, lambda content: content[:-9], "damaged"),
        (MODEL, edited(lambda d: d["schema_version"].update(major=99)), "version 99"),
        (MODEL, edited(lambda d: d["graph_module"]["graph"]["nodes"].pop(0)), "depends on the input"),
        (MODEL, edited(lambda d: d["graph_module"]["graph"]["tensor_values"].clear()), "KeyError"),
        (MODEL, lambda content: b"[]", "damaged"),
        (MODEL, lambda content: b"[" * 100_000, "damaged"),
        ("weight_0", lambda content: content[:8], "fit"),
        ("byteorder", lambda content: b"big", "little-endian"),
    ],
)
def test_damaged_files(tmp_path: Path, member: str, change: Callable[[bytes], bytes], text: str) -> None:
    build, shape = MODULES["linear"]
    path = changed(export(randomized(build()), tmp_path / "m.pt2", shape), member, change)
    with pytest.raises(QertifyError, match=text) as found:
        load_float_model(path)
    assert "\n" not in str(found.value)


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    with pytest.raises(ModelFileError, match="no such file"):
        load_float_model(path)
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, buffer)
    for content in (b"", b"PK\x03\x04", buffer.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"not a torch\.export file"):
            load_float_model(path)
    for name in ("m.ts.pt", "m.tflite", "m.qnet"):
        with pytest.raises(ModelFileError, match=r"float model format; readable suffixes are \.h5, \.onnx, \.pt2"):
            load_float_model(tmp_path / name)


def test_mutated_files(tmp_path: Path) -> None:
    """Whatever the bytes of the description or of the archive: a network or one of qertify's errors, in one line."""
    build, shape = MODULES["residual"]
    source = export(randomized(build()), tmp_path / "m.pt2", shape)
    with zipfile.ZipFile(source) as archive:
        description = next(archive.read(name) for name in archive.namelist() if name.endswith("models/model.json"))
    slim = json.loads(description)
    for node in slim["graph_module"]["graph"]["nodes"]:
        node.pop("metadata")
    outcomes, lines = {"read": 0, "refused": 0}, set()

    def load(path: Path) -> None:
        try:
            load_float_model(path)
            outcomes["read"] += 1
        except QertifyError as error:
            outcomes["refused"] += 1
            lines.add(str(error).count("\n"))

    for data in mutations(json.dumps(slim).encode(), 250):
        load(changed(source, "models/model.json", lambda _, data=data: data))
    target = tmp_path / "mutated.pt2"
    for data in mutations(source.read_bytes(), 100):
        target.write_bytes(data)
        load(target)
    assert lines == {0}
    assert outcomes["refused"] > 100
    assert outcomes["read"] > 0
