"""The builder: every method against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from qertify.errors import InvalidNetworkError, UnsupportedModelError
from qertify.importers.lowering import Builder, Codes, Requantize
from qertify.network.evaluate import evaluate_nodes
from qertify.network.nodes import Dense, Rearrange, Staircase, Table, Window
from qertify.network.staircase import Rounding
from qertify.network.tensor import QuantizationParameters

UNIT = QuantizationParameters.of(1.0)


def shift(bits, rows=1):
    return Requantize(lambda z: Rounding.HALF_EVEN.divide(z, 1 << bits), rows, 0, 255, UNIT)


def start(shape):
    builder = Builder()
    return builder, builder.input("x", shape, 0, 255, UNIT)


def value(builder: Builder, codes: Codes, x):
    network = builder.build(codes, UNIT, UNIT, "test", {})
    assert network.shapes[network.output.name] == codes.shape
    return evaluate_nodes(network, x)[codes.node], network


def batch(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=(7, *shape))


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_dense_over_the_last_axis(shape):
    builder, x = start(shape)
    random = np.random.default_rng(1)
    weight, bias, data = random.integers(-128, 128, size=(5, 6)), random.integers(-999, 999, size=5), batch(shape)
    scales = np.array([9, 10, 11, 12, 13])
    per_channel = Requantize(lambda z: Rounding.FLOOR.divide(z, 1024) * scales[:, None] // 10, 5, -128, 127, UNIT)
    found, network = value(builder, builder.dense("d", x, weight, bias, 3, per_channel), data)
    z = (data - 3) @ weight.T + bias
    assert np.array_equal(found, np.clip((z // 1024) * scales // 10, -128, 127))
    assert isinstance(network.nodes[1], Dense) == (len(shape) == 1)


def test_moves_follow_numpy_and_are_composed():
    builder, x = start((2, 3, 4))
    data = batch((2, 3, 4))
    y = builder.transpose("t", x, (2, 0, 1))
    y = builder.reshape("r", y, (8, 3))
    y = builder.pad("p", y, [(1, 0), (-1, 2)], 77)
    expected = data.transpose(0, 3, 1, 2).reshape(7, 8, 3)[:, :, 1:]
    expected = np.pad(expected, [(0, 0), (1, 0), (0, 2)], constant_values=77)
    found, network = value(builder, y, data)
    assert np.array_equal(found, expected)
    assert [type(node) for node in network.nodes[1:]] == [Rearrange]


def test_a_transpose_and_its_inverse_vanish():
    builder, x = start((2, 3, 4))
    y = builder.transpose("back", builder.transpose("there", x, (1, 2, 0)), (2, 0, 1))
    assert (y.node, y.shape) == ("x", (2, 3, 4))


def test_concatenate_and_broadcast():
    builder, x = start((2, 3))
    data = batch((2, 3))
    row = builder.pad("row", x, [(0, -1), (0, 0)], 0)
    joined = builder.concatenate("c", (x, builder.broadcast("b", row, (4, 3))), 0)
    expected = np.concatenate([data, np.repeat(data[:, :1], 4, axis=1)], axis=1)
    assert np.array_equal(value(builder, joined, data)[0], expected)


def test_pools():
    builder, x = start((2, 4, 4))
    data = batch((2, 4, 4))
    sums = builder.pool_sum("s", x, Window((2, 2), (2, 2)), 10, shift(2))
    largest = builder.max_pool("m", sums, Window((2, 2)))
    blocks = (data - 10).reshape(7, 2, 2, 2, 2, 2).sum(axis=(3, 5))
    expected = np.clip(np.rint(blocks / 4), 0, 255).max(axis=(2, 3), keepdims=True)
    assert np.array_equal(value(builder, largest, data)[0], expected)


def test_unary_is_a_staircase_where_it_can_be():
    codes = np.arange(256)
    for image, kind in ((np.minimum(codes, 99), Staircase), ((codes - 100) ** 2 // 80, Table), (codes // 3 + 7, Staircase)):
        builder, x = start((300,))
        found, network = value(builder, builder.unary("u", x, image[None, :], 0, 400, UNIT), batch((300,)))
        assert np.array_equal(found, image[batch((300,))])
        assert isinstance(network.output, kind)
    builder, x = start((3,))
    assert builder.unary("same", x, codes[None, :], 0, 255, UNIT).node == "x"


def test_unary_by_rows():
    builder, x = start((2, 5))
    images = np.stack([np.arange(256), 255 - np.arange(256)])
    data = batch((2, 5))
    found, _ = value(builder, builder.unary("u", x, images, 0, 255, UNIT), data)
    assert np.array_equal(found, np.stack([data[:, 0], 255 - data[:, 1]], axis=1))
    row = np.array([1, 0, 0, 1, 1])
    builder, x = start((2, 5))
    found, _ = value(builder, builder.unary("u", x, images, 0, 255, UNIT, row), data)
    assert np.array_equal(found, np.where(row == 1, 255 - data, data))


def pairs():
    return np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), axis=-1).reshape(-1, 2, 1)


def combined(function, terms):
    builder, x = start((2, 1))
    a = builder.pad("a", x, [(0, -1), (0, 0)], 0)
    b = builder.pad("b", x, [(-1, 0), (0, 0)], 0)
    total = builder.combine("sum", a, b, function, terms, 0, 255, UNIT)
    found, network = value(builder, total, pairs())
    return found.reshape(256, 256), network


def test_combine_is_affine_where_one_grid_tells_all_pairs_apart():
    codes = np.arange(256)
    function = lambda a, b: np.rint(a * 0.371 + b * 0.652 - 3.3).astype(np.int64)  # noqa: E731
    found, network = combined(function, (codes * 0.371, codes * 0.652 - 3.3))
    assert np.array_equal(found, np.clip(function(codes[:, None], codes[None, :]), 0, 255))
    assert not any(isinstance(node, Table) for node in network.nodes)


def test_combine_falls_back_to_tables():
    codes = np.arange(256)
    bent = codes * 0.25 + (codes % 3) * 0.4
    function = lambda a, b: np.floor(a * 0.5 + bent[b]).astype(np.int64)  # noqa: E731
    found, network = combined(function, (codes * 0.5, bent))
    assert np.array_equal(found, np.clip(function(codes[:, None], codes[None, :]), 0, 255))
    assert any(isinstance(node, Table) for node in network.nodes)


def test_combine_refuses_what_no_sum_explains():
    codes = np.arange(256)
    with pytest.raises(UnsupportedModelError, match="no grid"):
        combined(lambda a, b: a * b // 255, (codes * 0.5, codes * 0.5))
    with pytest.raises(UnsupportedModelError, match="no grid"):
        combined(lambda a, b: (a + b) // 2, (codes * 1e17, codes * 1e17))


def test_unread_nodes_are_dropped_and_mistakes_named():
    builder, x = start((4,))
    builder.dense("unused", x, np.ones((2, 4), np.int64), np.zeros(2, np.int64), 0, shift(1))
    kept = builder.dense("kept", x, np.ones((3, 4), np.int64), np.zeros(3, np.int64), 0, shift(1))
    network = builder.build(kept, UNIT, UNIT, "test", {})
    assert [node.name for node in network.nodes] == ["x", "kept/accumulator", "kept/requantize"]
    with pytest.raises(InvalidNetworkError, match="'kept'"):
        builder.dense("kept", x, np.ones((2, 5), np.int64), np.zeros(2, np.int64), 0, shift(1))
    with pytest.raises(InvalidNetworkError, match="two nodes"):
        builder.dense("kept", x, np.ones((2, 4), np.int64), np.zeros(2, np.int64), 0, shift(1))
    with pytest.raises(InvalidNetworkError, match="elements"):
        builder.pad("huge", x, [(1 << 40, 0)], 0)
