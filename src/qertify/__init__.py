"""Proofs and counterexamples for quantized neural networks, in exact integer arithmetic.

The public API, re-exports only. Names are imported on first use, so that ``import qertify`` is quick and loads no numerical
library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from qertify._version import __version__

if TYPE_CHECKING:
    from qertify.campaign.compare import compare as compare
    from qertify.campaign.export import export as export
    from qertify.campaign.launch import study as study
    from qertify.campaign.records import Campaign as Campaign
    from qertify.campaign.records import Point as Point
    from qertify.campaign.report.write import write_report as write_report
    from qertify.campaign.runner import Plan as Plan
    from qertify.campaign.runner import run_campaign as run_campaign
    from qertify.campaign.store import Store as Store
    from qertify.campaign.store import create_store as create_store
    from qertify.campaign.store import open_store as open_store
    from qertify.campaign.store import resume_store as resume_store
    from qertify.campaign.summary import summarise as summarise
    from qertify.certificates.check import check as check_certificate  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from qertify.certificates.format import Certificate as Certificate
    from qertify.certificates.format import load as load_certificate  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from qertify.certificates.format import save as save_certificate  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from qertify.certificates.write import certificate_of as certificate_of
    from qertify.certificates.write import radius_certificate as radius_certificate
    from qertify.errors import CertificateError as CertificateError
    from qertify.errors import InvalidInputError as InvalidInputError
    from qertify.errors import InvalidNetworkError as InvalidNetworkError
    from qertify.errors import MissingExtraError as MissingExtraError
    from qertify.errors import ModelFileError as ModelFileError
    from qertify.errors import QertifyError as QertifyError
    from qertify.errors import StoreError as StoreError
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
    from qertify.queries.equivalence import equivalence as equivalence
    from qertify.queries.equivalence_result import EquivalenceResult as EquivalenceResult
    from qertify.queries.radius import maximum_radius as maximum_radius
    from qertify.queries.radius_result import RadiusResult as RadiusResult
    from qertify.queries.radius_result import RealRadiusResult as RealRadiusResult
    from qertify.queries.real_radius import maximum_real_radius as maximum_real_radius
    from qertify.queries.robustness import RobustnessQuery as RobustnessQuery
    from qertify.queries.robustness import local_robustness as local_robustness
    from qertify.queries.robustness import verify as verify
    from qertify.queries.vnnlib import decide_specification as decide_specification
    from qertify.queries.vnnlib_result import SpecificationResult as SpecificationResult
    from qertify.result import Counterexample as Counterexample
    from qertify.result import Evidence as Evidence
    from qertify.result import Reason as Reason
    from qertify.result import Result as Result
    from qertify.result import Verdict as Verdict
    from qertify.runtimes.base import runner as runner
    from qertify.search.comparison import EquivalenceQuery as EquivalenceQuery
    from qertify.search.paired_input import grid as paired_codes  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from qertify.search.paired_input import interval as paired_reals  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from qertify.specification.formula import Specification as Specification
    from qertify.specification.property import Classification as Classification
    from qertify.specification.property import Ties as Ties
    from qertify.specification.region import IntegerBox as IntegerBox
    from qertify.specification.vnnlib import read_vnnlib as read_vnnlib

_EXPORTS: dict[str, str] = {
    "Campaign": "qertify.campaign.records:Campaign",
    "Certificate": "qertify.certificates.format:Certificate",
    "CertificateError": "qertify.errors:CertificateError",
    "Classification": "qertify.specification.property:Classification",
    "Counterexample": "qertify.result:Counterexample",
    "EquivalenceQuery": "qertify.search.comparison:EquivalenceQuery",
    "EquivalenceResult": "qertify.queries.equivalence_result:EquivalenceResult",
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
    "Plan": "qertify.campaign.runner:Plan",
    "Point": "qertify.campaign.records:Point",
    "QertifyError": "qertify.errors:QertifyError",
    "RadiusResult": "qertify.queries.radius_result:RadiusResult",
    "RealNetwork": "qertify.network.real:RealNetwork",
    "RealRadiusResult": "qertify.queries.radius_result:RealRadiusResult",
    "Reason": "qertify.result:Reason",
    "Result": "qertify.result:Result",
    "RobustnessQuery": "qertify.queries.robustness:RobustnessQuery",
    "Specification": "qertify.specification.formula:Specification",
    "SpecificationResult": "qertify.queries.vnnlib_result:SpecificationResult",
    "Store": "qertify.campaign.store:Store",
    "StoreError": "qertify.errors:StoreError",
    "Ties": "qertify.specification.property:Ties",
    "UnsupportedModelError": "qertify.errors:UnsupportedModelError",
    "Verdict": "qertify.result:Verdict",
    "accumulator_proofs": "qertify.network.ranges:accumulator_proofs",
    "certificate_of": "qertify.certificates.write:certificate_of",
    "check_certificate": "qertify.certificates.check:check",
    "compare": "qertify.campaign.compare:compare",
    "create_store": "qertify.campaign.store:create_store",
    "decide_specification": "qertify.queries.vnnlib:decide_specification",
    "equivalence": "qertify.queries.equivalence:equivalence",
    "evaluate": "qertify.network.evaluate:evaluate",
    "evaluate_exactly": "qertify.network.real_evaluate:evaluate_exactly",
    "export": "qertify.campaign.export:export",
    "float32_error": "qertify.network.real_error:float32_error",
    "import_torch": "qertify.importers.torch_quantized:import_torch",
    "import_torch_float": "qertify.importers.float_torch:import_torch_float",
    "load_certificate": "qertify.certificates.format:load",
    "load_float_model": "qertify.importers.registry:load_float_model",
    "load_model": "qertify.importers.registry:load_model",
    "local_robustness": "qertify.queries.robustness:local_robustness",
    "maximum_radius": "qertify.queries.radius:maximum_radius",
    "maximum_real_radius": "qertify.queries.real_radius:maximum_real_radius",
    "open_store": "qertify.campaign.store:open_store",
    "paired_codes": "qertify.search.paired_input:grid",
    "paired_reals": "qertify.search.paired_input:interval",
    "radius_certificate": "qertify.certificates.write:radius_certificate",
    "read_labels": "qertify.inputs:read_labels",
    "read_row": "qertify.inputs:read_row",
    "read_rows": "qertify.inputs:read_rows",
    "read_vnnlib": "qertify.specification.vnnlib:read_vnnlib",
    "resume_store": "qertify.campaign.store:resume_store",
    "run_campaign": "qertify.campaign.runner:run_campaign",
    "runner": "qertify.runtimes.base:runner",
    "save_certificate": "qertify.certificates.format:save",
    "save_network": "qertify.network.storage:save",
    "study": "qertify.campaign.launch:study",
    "summarise": "qertify.campaign.summary:summarise",
    "verify": "qertify.queries.robustness:verify",
    "write_report": "qertify.campaign.report.write:write_report",
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
