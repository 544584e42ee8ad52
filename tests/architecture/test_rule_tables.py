"""Every analysis has a rule for every node kind."""

from __future__ import annotations

import pytest

from qertify.bounds import operate
from qertify.certificates import backward
from qertify.ilp import encode
from qertify.ilp.solvers import SOLVERS
from qertify.importers.registry import FORMATS
from qertify.network import evaluate, ranges
from qertify.network.nodes import NODE_KINDS, Input
from qertify.options import Method
from qertify.search.portfolio import _STAGES


@pytest.mark.parametrize(
    "table",
    [evaluate.RULES, ranges.RULES, encode.RULES, operate.RULES, backward.RULES],
    ids=["evaluate", "ranges", "encode", "operate", "certificates"],
)
def test_rules_cover_every_kind(table: dict[type, object]) -> None:
    assert set(table) | {Input} == set(NODE_KINDS)


def test_every_method_has_stages() -> None:
    assert set(_STAGES) == set(Method)


def test_no_suffix_hides_another() -> None:
    for suffix in FORMATS:
        assert suffix == suffix.lower()
        assert not any(other != suffix and other.endswith(suffix) for other in FORMATS)


@pytest.mark.parametrize("entry", [*SOLVERS.values(), *(item.importer for item in FORMATS.values() if item.importer)])
def test_registry_entries_name_a_module_and_a_function(entry: str) -> None:
    import importlib.util

    module, function = entry.split(":")
    assert importlib.util.find_spec(module) is not None
    assert function.isidentifier()
