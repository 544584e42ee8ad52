"""Every analysis of real networks has a rule for every node kind."""

from __future__ import annotations

import importlib.util

import pytest

from qertify.bounds import fixed_point, operate_real
from qertify.importers.registry import FLOAT_FORMATS
from qertify.network import real_error, real_evaluate
from qertify.network.real import REAL_NODE_KINDS, RealInput

TABLES = {"exact": real_evaluate.EXACT_RULES, "float64": real_evaluate.FLOAT64_RULES, "error": real_error.RULES}
TABLES |= {"fixed point": fixed_point.RULES, "operators": operate_real.RULES}


@pytest.mark.parametrize("name", TABLES)
def test_rules_cover_every_real_kind(name: str) -> None:
    assert set(TABLES[name]) | {RealInput} == set(REAL_NODE_KINDS)


@pytest.mark.parametrize("suffix", FLOAT_FORMATS)
def test_float_formats_name_a_module_and_a_function(suffix: str) -> None:
    module, function = (FLOAT_FORMATS[suffix].importer or "").split(":")
    assert importlib.util.find_spec(module) is not None
    assert function.isidentifier()
