"""The public names, spelled out: a change here is a change users see."""

from __future__ import annotations

import subprocess
import sys

import qertify

PUBLIC = [
    "Campaign",
    "Certificate",
    "CertificateError",
    "Classification",
    "Counterexample",
    "EquivalenceQuery",
    "EquivalenceResult",
    "Evidence",
    "ImportOptions",
    "IntegerBox",
    "InvalidInputError",
    "InvalidNetworkError",
    "Method",
    "MissingExtraError",
    "ModelFileError",
    "Network",
    "Options",
    "Plan",
    "Point",
    "QertifyError",
    "RadiusResult",
    "RealNetwork",
    "RealRadiusResult",
    "Reason",
    "Result",
    "RobustnessQuery",
    "Specification",
    "SpecificationResult",
    "Store",
    "StoreError",
    "Ties",
    "UnsupportedModelError",
    "Verdict",
    "__version__",
    "accumulator_proofs",
    "certificate_of",
    "check_certificate",
    "compare",
    "create_store",
    "decide_specification",
    "equivalence",
    "evaluate",
    "evaluate_exactly",
    "export",
    "float32_error",
    "import_torch",
    "import_torch_float",
    "load_certificate",
    "load_float_model",
    "load_model",
    "local_robustness",
    "maximum_radius",
    "maximum_real_radius",
    "open_store",
    "paired_codes",
    "paired_reals",
    "radius_certificate",
    "read_labels",
    "read_row",
    "read_rows",
    "read_vnnlib",
    "resume_store",
    "run_campaign",
    "runner",
    "save_certificate",
    "save_network",
    "study",
    "summarise",
    "verify",
    "write_report",
]


def test_public_names() -> None:
    assert sorted(qertify.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(qertify, name) is not None


def test_importing_qertify_loads_no_library() -> None:
    code = "import sys, qertify, qertify.cli.main; print([m for m in ('torch', 'numpy', 'typer', 'h5py') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
