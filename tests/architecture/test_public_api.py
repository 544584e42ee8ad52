"""The public names, spelled out: a change here is a change users see."""

from __future__ import annotations

import subprocess
import sys

import qertify

PUBLIC = [
    "Classification",
    "Counterexample",
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
    "QertifyError",
    "RealNetwork",
    "Reason",
    "Result",
    "RobustnessQuery",
    "Ties",
    "UnsupportedModelError",
    "Verdict",
    "__version__",
    "accumulator_proofs",
    "evaluate",
    "evaluate_exactly",
    "float32_error",
    "import_torch",
    "import_torch_float",
    "load_float_model",
    "load_model",
    "local_robustness",
    "read_labels",
    "read_row",
    "read_rows",
    "save_network",
    "verify",
]


def test_public_names() -> None:
    assert sorted(qertify.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(qertify, name) is not None


def test_importing_qertify_loads_no_library() -> None:
    code = "import sys, qertify, qertify.cli.main; print([m for m in ('torch', 'numpy', 'typer', 'h5py') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"
