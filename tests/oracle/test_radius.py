"""The maximum radius against enumeration, and against the published radii."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from qertify.errors import InvalidInputError
from qertify.options import Method, Options
from qertify.queries.radius import maximum_radius
from qertify.queries.radius_result import RadiusResult
from qertify.queries.robustness import local_robustness
from qertify.specification.property import Ties
from tests.data import images, published_network, shared_data
from tests.oracle.random_networks import random_network, violated_somewhere


def test_against_enumeration() -> None:
    generator = np.random.default_rng(11)
    seen = set[int | None]()
    for number in range(36):
        network = random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        ties = list(Ties)[number % 3]
        result = maximum_radius(network, centre, ties=ties, options=Options(seed=number))
        whole = network.input.high - network.input.low
        queries = [local_robustness(network, centre, radius, ties=ties) for radius in range(whole + 1)]
        robust = [not violated_somewhere(q.network, q.region, q.property) for q in queries]
        seen.add(result.verified_radius)
        if not robust[0]:
            assert result.verified_radius is None
            continue
        assert result.exact
        truth = next((radius for radius, fine in enumerate(robust) if not fine), None)
        assert result.refuted_radius == truth
        assert result.verified_radius == (whole if truth is None else truth - 1)
        assert RadiusResult.from_json(result.to_json()) == result
    assert len(seen) > 4


def test_limits() -> None:
    network = random_network(np.random.default_rng(0))
    centre = np.zeros(network.input_shape, dtype=np.int64)
    capped = maximum_radius(network, centre, max_radius=0)
    assert (capped.verified_radius, capped.refuted_radius) in ((0, None), (None, None))
    with pytest.raises(InvalidInputError, match="negative"):
        maximum_radius(network, centre, max_radius=-1)
    attacked = maximum_radius(network, centre, options=Options(method=Method.ATTACK))
    assert attacked.verified_radius in (0, None)


@pytest.mark.skipif(shared_data() is None, reason="the data folder is not there")
def test_published_radii() -> None:
    folder = shared_data()
    assert folder is not None
    with (folder / "qvip" / "published" / "mrr.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "solved" and "64_in_8_qu_6" in row["model"]]
    for row in rows[::18]:
        pixels, labels = images("mnist")
        network = published_network(row["model"])
        sample = int(row["sample_id"])
        result = maximum_radius(network, pixels[sample], label=int(labels[sample]), options=Options(timeout=4))
        assert result.verified_radius is not None
        assert result.verified_radius <= int(row["mrr"])
        assert result.refuted_radius is None or result.refuted_radius > int(row["mrr"])
