"""The table of formats: what belongs to which, and one clear line for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from qertify.errors import InvalidInputError, MissingExtraError, ModelFileError, QertifyError
from qertify.importers import registry
from qertify.importers.registry import Format, ImportOptions, load_model
from qertify.network.storage import save
from tests.files import comparison_model


def test_suffix_decides(tmp_path: Path) -> None:
    network = load_model(comparison_model(tmp_path / "MODEL.H5"), ImportOptions(bits=4, input_bits=4))
    save(network, tmp_path / "model.qnet")
    assert load_model(tmp_path / "model.qnet").digest == network.digest


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("model.h5", ImportOptions(), InvalidInputError, "need --bits"),
        ("model.qnet", ImportOptions(bits=4), InvalidInputError, "--bits has no meaning"),
        ("model.qnet", ImportOptions(input_bits=4), InvalidInputError, "--input-bits has no meaning"),
        ("missing.h5", ImportOptions(bits=4), ModelFileError, "no such file"),
        ("missing.qnet", ImportOptions(), ModelFileError, "no such file"),
        ("model.txt", ImportOptions(), ModelFileError, "unknown model format"),
        ("model", ImportOptions(), ModelFileError, "unknown model format"),
        ("model.pt", ImportOptions(), ModelFileError, "unknown model format"),
        ("model.future", ImportOptions(), ModelFileError, "Future files can't be read by this version"),
    ],
)
def test_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: ImportOptions,
    error: type[QertifyError],
    message: str,
) -> None:
    monkeypatch.setitem(registry.FORMATS, ".future", Format("Future"))
    with pytest.raises(error, match=message) as caught:
        load_model(tmp_path / name, options)
    assert "\n" not in str(caught.value)


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An importer whose dependency is not installed names the extra; a defect of our own does not hide behind it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_it.py").write_text("import a_package_that_is_not_installed\n")
    monkeypatch.setitem(registry.FORMATS, ".x", Format("Exotic", "needs_it:load", extra="exotic"))
    with pytest.raises(MissingExtraError, match=r"reading Exotic files needs .* pip install 'qertify\[exotic\]'"):
        load_model(tmp_path / "a.x")
    monkeypatch.setitem(registry.FORMATS, ".x", Format("Exotic", "needs_it:load"))
    with pytest.raises(ModuleNotFoundError):
        load_model(tmp_path / "a.x")
