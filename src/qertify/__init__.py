"""Proofs and counterexamples for quantized neural networks, in exact integer arithmetic.

The public API, re-exports only. Names are imported on first use, so that ``import qertify`` is quick and loads no numerical
library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qertify._version import __version__

if TYPE_CHECKING:
    from qertify.errors import InvalidInputError as InvalidInputError
    from qertify.errors import InvalidNetworkError as InvalidNetworkError
    from qertify.errors import MissingExtraError as MissingExtraError
    from qertify.errors import ModelFileError as ModelFileError
    from qertify.errors import QertifyError as QertifyError
    from qertify.errors import UnsupportedModelError as UnsupportedModelError
    from qertify.importers.float_torch import import_torch_float as import_torch_float
    from qertify.importers.registry import ImportOptions as ImportOptions
    from qertify.importers.registry import load_float_model as load_float_model
    from qertify.importers.registry import load_model as load_model
    from qertify.importers.torch_quantized import import_torch as import_torch
    from qertify.inputs import read_labels as read_labels
    from qertify.inputs import read_row as read_row
    from qertify.inputs import read_rows as read_rows
    from qertify.network.evaluate import evaluate as evaluate
    from qertify.network.network import Network as Network
    from qertify.network.ranges import accumulator_proofs as accumulator_proofs
    from qertify.network.real import RealNetwork as RealNetwork
    from qertify.network.real_error import float32_error as float32_error
    from qertify.network.real_evaluate import evaluate_exactly as evaluate_exactly
    from qertify.network.storage import save as save_network  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from qertify.options import Method as Method
    from qertify.options import Options as Options
    from qertify.queries.robustness import RobustnessQuery as RobustnessQuery
    from qertify.queries.robustness import local_robustness as local_robustness
    from qertify.queries.robustness import verify as verify
    from qertify.result import Counterexample as Counterexample
    from qertify.result import Evidence as Evidence
    from qertify.result import Reason as Reason
    from qertify.result import Result as Result
    from qertify.result import Verdict as Verdict
    from qertify.specification.property import Classification as Classification
    from qertify.specification.property import Ties as Ties
    from qertify.specification.region import IntegerBox as IntegerBox

_EXPORTS: dict[str, str] = {
    "Classification": "qertify.specification.property:Classification",
    "Counterexample": "qertify.result:Counterexample",
    "Evidence": "qertify.result:Evidence",
    "ImportOptions": "qertify.importers.registry:ImportOptions",
    "IntegerBox": "qertify.specification.region:IntegerBox",
    "InvalidInputError": "qertify.errors:InvalidInputError",
    "InvalidNetworkError": "qertify.errors:InvalidNetworkError",
    "Method": "qertify.options:Method",
    "MissingExtraError": "qertify.errors:MissingExtraError",
    "ModelFileError": "qertify.errors:ModelFileError",
    "Network": "qertify.network.network:Network",
    "Options": "qertify.options:Options",
    "QertifyError": "qertify.errors:QertifyError",
    "RealNetwork": "qertify.network.real:RealNetwork",
    "Reason": "qertify.result:Reason",
    "Result": "qertify.result:Result",
    "RobustnessQuery": "qertify.queries.robustness:RobustnessQuery",
    "Ties": "qertify.specification.property:Ties",
    "UnsupportedModelError": "qertify.errors:UnsupportedModelError",
    "Verdict": "qertify.result:Verdict",
    "accumulator_proofs": "qertify.network.ranges:accumulator_proofs",
    "evaluate": "qertify.network.evaluate:evaluate",
    "evaluate_exactly": "qertify.network.real_evaluate:evaluate_exactly",
    "float32_error": "qertify.network.real_error:float32_error",
    "import_torch": "qertify.importers.torch_quantized:import_torch",
    "import_torch_float": "qertify.importers.float_torch:import_torch_float",
    "load_float_model": "qertify.importers.registry:load_float_model",
    "load_model": "qertify.importers.registry:load_model",
    "local_robustness": "qertify.queries.robustness:local_robustness",
    "read_labels": "qertify.inputs:read_labels",
    "read_row": "qertify.inputs:read_row",
    "read_rows": "qertify.inputs:read_rows",
    "save_network": "qertify.network.storage:save",
    "verify": "qertify.queries.robustness:verify",
}
"""Public name → where it lives."""

__all__ = ["__version__", *_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'qertify' has no attribute '{name}'")
    module, attribute = _EXPORTS[name].split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
