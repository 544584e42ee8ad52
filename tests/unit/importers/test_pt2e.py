"""What the importer of PT2E graphs refuses, in one clear line; damaged files; float and quantized files mixed up."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from qertify.errors import InvalidInputError, ModelFileError, QertifyError, UnsupportedModelError
from qertify.importers.registry import ImportOptions, load_float_model, load_model
from qertify.importers.torch_quantized import import_torch
from qertify.queries.robustness import local_robustness, verify
from qertify.result import Verdict
from qertify.runtimes.base import runner, runtime_of
from tests.conformance.pt2e_models import OPS, Between, exported, requantized
from tests.unit.importers.test_float_torch import changed, edited
from tests.unit.importers.test_onnx_bad_files import mutations


def dense(outputs: int = 3, out: tuple[float, int] | None = (0.07, 3)) -> Between:
    generator = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(*shape, generator=generator) for shape in ((outputs, 6), (outputs,)))
    return Between(lambda m, x: functional.linear(torch.relu(x), m.weight, m.bias), (6,), out=out, weight=weight, bias=bias)


def saved(module: Between, path: Path, batch: bool = False) -> Path:
    torch.export.save(exported(module, batch), path)
    return path


def refused(module: Between, match: str) -> None:
    with pytest.raises(UnsupportedModelError, match=match) as caught:
        import_torch(exported(module), torch.zeros(1, *module.shape))
    assert "\n" not in str(caught.value)


def per_channel(module: Between, x: torch.Tensor) -> torch.Tensor:
    return OPS.quantize_per_channel(x, module.a, module.z, 1, 0, 255, torch.uint8).float()


def wide(x: torch.Tensor) -> torch.Tensor:
    return OPS.dequantize_per_tensor(
        OPS.quantize_per_tensor(x, 0.1, 0, -9000, 9000, torch.int16), 0.1, 0, -9000, 9000, torch.int16
    )


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda m, x: torch.cumsum(x, 1), r"aten\.cumsum.*neither an exact integer form"),
        (lambda m, x: torch.softmax(x, 1), r"softmax"),
        (lambda m, x: x.mean(1), r"mean.*dim"),
        (lambda m, x: torch.cat([x, x], 0), "batch axis"),
        (lambda m, x: x + x.mean((2, 3), keepdim=True), "differ in shape"),
        (lambda m, x: 2 * functional.avg_pool2d(x, 2), "only the sum or product"),
        (lambda m, x: torch.add(x, x.transpose(2, 3), alpha=2), "alpha"),
        (lambda m, x: x / x.transpose(2, 3), "only the sum or product"),
        (lambda m, x: x - functional.avg_pool2d(x, 1), "subtracts what was computed"),
        (lambda m, x: functional.adaptive_avg_pool2d(x, 3), "does not divide"),
        (lambda m, x: functional.pad(x + 1e6, (1, 1)), "no code stands for the zero"),
        (lambda m, x: x.transpose(1, 3) * m.a, "single number"),
        (lambda m, x: x * 1e39, "NaN or infinity"),
        (lambda m, x: wide(x), "int8 are needed"),
        (lambda m, x: functional.dropout(x, 0.5, True), "dropout"),
        (lambda m, x: functional.linear(x, m.w), "one axis is needed"),
        (per_channel, "quantize_per_channel"),
    ],
)
def test_what_is_refused(function, match: str) -> None:
    refused(Between(function, (2, 4, 4), a=torch.ones(2), z=torch.zeros(2, dtype=torch.int64), w=torch.ones(3, 4)), match)


class TwoQuantizers(Between):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return requantized(x, 0.1, 0) + requantized(x, 0.2, 0)


class FloatFirst(Between):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return requantized(self.function(self, x), 0.1, 0)


def test_ends() -> None:
    refused(TwoQuantizers(lambda m, x: x, (3,)), "several ways")
    refused(FloatFirst(lambda m, x: 2 * x, (3,)), "no quantizer|only the sum or product")
    refused(FloatFirst(lambda m, x: functional.pad(x, (1, 1)), (3,)), "pads what was computed in float")
    refused(Between(lambda m, x: x, (3,), scale=1e-40), "scale.*outside the normal numbers")
    with pytest.raises(InvalidInputError, match="batch axis first"):
        import_torch(exported(dense()), torch.zeros(6))


@pytest.mark.parametrize("batch", [False, True])
def test_files_and_kinds(tmp_path: Path, batch: bool) -> None:
    path = saved(dense(), tmp_path / "m.pt2", batch)
    network = load_model(path, ImportOptions(runtime="torch-pt2e"))
    assert network.metadata["output"] == "dequantized"
    x = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32) * 3
    assert runtime_of(network).replay(path, x).agrees.all()
    with pytest.raises(InvalidInputError, match="run on torch-pt2e, not on 'torch-fbgemm'"):
        load_model(path, ImportOptions(runtime="torch-fbgemm"))
    with pytest.raises(UnsupportedModelError, match="quantized model; the float original"):
        load_float_model(path)
    torch.export.save(torch.export.export(torch.nn.Linear(6, 2).eval(), (torch.zeros(1, 6),)), tmp_path / "f.pt2")
    with pytest.raises(UnsupportedModelError, match="float model; a quantized one is needed"):
        load_model(tmp_path / "f.pt2")
    with pytest.raises(ModelFileError, match="no such file"):
        load_model(tmp_path / "none.pt2")


@pytest.mark.parametrize("out", [(0.02, 128), None])
def test_verdicts_hold_on_torch(tmp_path: Path, out: tuple[float, int] | None) -> None:
    """Scores that stay float, too: robust where random inputs find nothing, and violations are torch's own."""
    path = saved(dense(out=out), tmp_path / "m.pt2")
    network = load_model(path)
    runtime, generator = runtime_of(network), np.random.default_rng(1)
    verdicts = set()
    for radius in (1, 4, 20):
        for _ in range(6):
            centre = generator.integers(0, 256, 6)
            label = int(runtime.replay(path, runtime.real_input(centre[None])).predicted[0])
            query = local_robustness(network, centre, radius, label=label)
            result = verify(query, run=runner(network, path))
            verdicts.add(result.verdict)
            near = generator.integers(query.region.low, query.region.high + 1, (200, 6))
            others = runtime.replay(path, runtime.real_input(near)).predicted != label
            if result.verdict is Verdict.ROBUST:
                assert not others.any()
            elif result.verdict is Verdict.NON_ROBUST:
                assert result.counterexample is not None
                found = np.array(result.counterexample.levels)
                assert query.region.contains(found[None]).all()
                assert runtime.replay(path, runtime.real_input(found[None])).predicted[0] != label
    assert {Verdict.ROBUST, Verdict.NON_ROBUST} <= verdicts


def test_near_ties_are_no_proof(tmp_path: Path) -> None:
    """Two scores that differ by rounding alone: whichever wins, no run is claimed to be robust against it."""
    weight = torch.full((2, 64), 0.1)
    weight[1] += 1e-7
    module = Between(lambda m, x: functional.linear(x, m.weight), (64,), out=None, weight=weight)
    network = load_model(saved(module, tmp_path / "m.pt2"))
    result = verify(local_robustness(network, np.full(64, 100), 3, label=1))
    assert result.verdict is Verdict.UNKNOWN


def test_mutated_files(tmp_path: Path) -> None:
    """Whatever the bytes of the description or of the archive: a network or one of qertify's errors, in one line."""
    source = saved(Between(lambda m, x: functional.avg_pool2d(x, 2).flatten(1) + 0.5, (2, 4, 4)), tmp_path / "m.pt2")
    with zipfile.ZipFile(source) as archive:
        description = next(archive.read(name) for name in archive.namelist() if name.endswith("models/model.json"))
    slim = json.loads(description)
    for node in slim["graph_module"]["graph"]["nodes"]:
        node.pop("metadata")
    outcomes, lines = {"read": 0, "refused": 0}, set()

    def load(path: Path) -> None:
        try:
            load_model(path)
            outcomes["read"] += 1
        except QertifyError as error:
            outcomes["refused"] += 1
            lines.add(str(error).count("\n"))

    for data in mutations(json.dumps(slim).encode(), 800):
        load(changed(source, "models/model.json", lambda _, data=data: data))
    target = tmp_path / "mutated.pt2"
    for data in mutations(source.read_bytes(), 200):
        target.write_bytes(data)
        load(target)
    assert lines == {0}
    assert outcomes["refused"] > 400
    assert outcomes["read"] > 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("scale", {"as_float": -1.0}), ("scale", {"as_float": "NaN"}), ("scale", {"as_none": True}),
     ("quant_max", {"as_int": 4096}),
     ("quant_min", {"as_int": 255}), ("dtype", {"as_scalar_type": 7}), ("zero_point", {"as_int": 10**30})],
)  # fmt: skip
def test_damaged_quantizers(tmp_path: Path, key: str, value: object) -> None:
    def damage(data) -> None:
        node = data["graph_module"]["graph"]["nodes"][0]
        next(item for item in node["inputs"] if item["name"] == key)["arg"] = value

    path = changed(saved(dense(), tmp_path / "m.pt2"), "models/model.json", edited(damage))
    with pytest.raises(QertifyError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
