"""Int16 saturation of pairs: proved absent only where no pair of any packing order can saturate."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from qertify.network.network import Network
from qertify.network.nodes import Convolution, Dense, Input, Staircase, Window, per_channel_rows
from qertify.network.staircase import Rounding, shift_steps
from qertify.network.tensor import QuantizationParameters, as_integers
from qertify.runtimes.saturating_input import saturating_input
from qertify.runtimes.saturation import CpuClass, arithmetic_doubts, host_cpu_class, pair_proofs
from qertify.specification.region import IntegerBox

UNIT = QuantizationParameters.of(1.0)


def network(weight, activation="uint8", kind="int8", weight_zero_point=0, window=None, groups=1, shape=None, zero_point=0):
    weight = as_integers(weight)
    bias = as_integers(np.zeros(len(weight), np.int64))
    x = Input("x", shape or (weight.shape[1],), 0, 255)
    if window is None:
        node = Dense("layer", ("x",), weight, bias, zero_point)
    else:
        node = Convolution("layer", ("x",), weight, bias, window, zero_point, groups)
    kernels = {"layer": {"activation": activation, "weight": kind, "weight_zero_point": weight_zero_point}}
    return Network((x, node), UNIT, UNIT, "onnxruntime", {"kernels": json.dumps(kernels)})


def absent(candidate, cpu=CpuClass.AVX2, region=None):
    (proof,) = pair_proofs(candidate, cpu, region)
    return proof.absent


def test_against_all_pairs():
    """The bound is the largest sum of two products over all pairs and corner codes, no less and no more."""
    random = np.random.default_rng(0)
    for _ in range(60):
        weight = random.integers(-128, 128, size=(3, 4))
        low = random.integers(0, 200, size=4)
        high = low + random.integers(0, 56, size=4)
        (proof,) = pair_proofs(network(weight), CpuClass.AVX2, IntegerBox(low, high))
        sums = [
            weight[o, i] * x + weight[o, j] * y
            for o in range(3)
            for i, j in itertools.combinations(range(4), 2)
            for x in (low[i], high[i])
            for y in (low[j], high[j])
        ]
        assert max(max(sums), 0) <= proof.high <= max(max(sums), 0) + 128 * 255
        assert proof.low <= min(min(sums), 0)
        if max(sums) > 32767 or min(sums) < -32768:
            assert not proof.absent


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([64, 64, 1], True), ([65, 64, 1], False), ([-64, -64, 0], True), ([-64, -65, 0], False), ([127, -128, 0], True)],
)
def test_the_edge(weights, expected):
    """255·64 + 255·64 = 32640 fits 16 bits, 255·65 + 255·64 does not."""
    assert absent(network([weights])) is expected


def test_other_kernels_and_cpus_do_not_saturate():
    hot = [[127, 127]]
    assert not absent(network(hot))
    assert absent(network(hot), CpuClass.VNNI)
    assert absent(network(hot, activation="int8"))
    assert absent(network(hot, kind="uint8"))


def test_raw_weights_and_raw_codes_count():
    """The kernel multiplies weights with their zero point and codes with theirs."""
    assert not absent(network([[50, 50]], weight_zero_point=[60]))
    assert absent(network([[110, 110]], weight_zero_point=[-60]))
    assert not absent(network([[127, 127]], zero_point=255))


def test_regions_narrow_the_proof():
    hot = network([[127, 127]])
    assert absent(hot, region=IntegerBox(np.zeros(2, np.int64), np.full(2, 129)))
    assert not absent(hot, region=IntegerBox(np.zeros(2, np.int64), np.full(2, 130)))


def test_convolutions_count_padding_and_groups():
    weight = np.zeros((2, 1, 1, 2), np.int64)
    weight[0, 0, 0] = [127, 127]
    weight[1, 0, 0] = [1, 1]
    region = IntegerBox(np.zeros((2, 1, 3), np.int64), np.array([10, 255]).reshape(2, 1, 1) * np.ones((1, 1, 3), np.int64))
    plain = network(weight, window=Window((1, 2)), groups=2, shape=(2, 1, 3), zero_point=255)
    padded = network(weight, window=Window((1, 2), padding=(0, 1, 0, 0)), groups=2, shape=(2, 1, 3), zero_point=255)
    assert absent(plain, region=region)
    assert not absent(padded, region=region)


def test_doubts_name_node_and_class():
    (line,) = arithmetic_doubts(network([[127, 127]]), CpuClass.AVX2)
    assert "'layer'" in line
    assert "avx2" in line
    assert arithmetic_doubts(network([[127, 127]]), CpuClass.VNNI) == ()
    wide = Network(
        (Input("x", (1,), 0, 255), Dense("z", ("x",), as_integers([[1 << 24]]), as_integers([0]))), UNIT, UNIT, "onnxruntime"
    )
    assert "33 bits" in arithmetic_doubts(wide, CpuClass.VNNI)[0]
    assert host_cpu_class() in CpuClass


def largest_pair(weight, codes):
    products = weight * codes
    return max(abs(int(a + b)) for row in products for a, b in itertools.combinations(row, 2))


def test_an_input_that_saturates_is_found_and_does():
    """Whatever is found saturates; in a first layer something is found whenever anything saturates."""
    random = np.random.default_rng(2)
    seen = set()
    for _ in range(60):
        weight = random.integers(-90, 90, size=(3, 5))
        candidate = network(weight)
        found = saturating_input(candidate, "layer")
        seen.add(found is not None)
        assert (found is None) == absent(candidate)
        if found is not None:
            assert largest_pair(weight, found.codes) > 32767
            assert abs(found.reached) > 32767
    assert seen == {True, False}


def test_an_input_that_saturates_a_hidden_layer_is_found():
    """The hidden codes that do it need particular inputs: high ones for the first, low ones for the second."""
    first = Dense("z", ("x",), as_integers([[1, 0], [0, -1]]), as_integers([0, 255]))
    steps = Staircase("y", ("z",), shift_steps(0, Rounding.FLOOR, 0, 255), per_channel_rows(1, (2,)))
    kernels = {"layer": {"activation": "uint8", "weight": "int8", "weight_zero_point": 0}}
    last = Dense("layer", ("y",), as_integers([[127, 127]]), as_integers([0]))
    nodes = (Input("x", (2,), 0, 255), first, steps, last)
    deep = Network(nodes, UNIT, UNIT, "onnxruntime", {"kernels": json.dumps(kernels)})
    found = saturating_input(deep, "layer")
    assert found is not None
    x, y = found.codes.tolist()
    assert 127 * (x + 255 - y) == found.reached > 32767


def test_an_input_that_saturates_a_convolution_is_found():
    weight = np.zeros((2, 1, 1, 2), np.int64)
    weight[1, 0, 0] = [-100, -100]
    candidate = network(weight, window=Window((1, 2)), groups=2, shape=(2, 1, 3))
    found = saturating_input(candidate, "layer")
    assert found is not None
    assert found.reached == min(-100 * int(found.codes[1, 0, i] + found.codes[1, 0, i + 1]) for i in (0, 1)) < -32768
    weight[1, 0, 0] = [-60, -60]
    assert saturating_input(network(weight, window=Window((1, 2)), groups=2, shape=(2, 1, 3)), "layer") is None
