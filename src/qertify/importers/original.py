"""The first model of a comparison: a float network, or a quantized one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qertify.errors import UnsupportedModelError
from qertify.importers.registry import FLOAT_FORMATS, FORMATS, Format, ImportOptions, format_of, load_float_model, load_model
from qertify.network.network import Network
from qertify.network.real import RealNetwork


@dataclass(frozen=True, slots=True)
class Original:
    """How it is read; ``flags`` are those of the second model, ``bits`` and ``runtime`` make it a quantized one, too."""

    path: Path
    flags: ImportOptions
    bits: int | None = None
    runtime: str | None = None

    def load(self) -> RealNetwork | Network:
        """A float network, or a quantized one where ``bits`` or ``runtime`` or the file itself says so.

        Raises:
            QertifyError: as `qertify.importers.registry.load_model`.
        """
        flags = self._flags(FORMATS)
        if self.bits is not None or self.runtime is not None:
            return load_model(self.path, replace(flags, bits=self.bits or flags.bits, runtime=self.runtime or flags.runtime))
        name = self.path.name.lower()
        if not any(name.endswith(suffix) for suffix in FLOAT_FORMATS):
            return load_model(self.path, flags)
        try:
            return load_float_model(self.path, self._flags(FLOAT_FORMATS))
        except UnsupportedModelError:
            if not name.endswith((".onnx", ".pt2")):
                raise
            try:
                return load_model(self.path, flags)
            except UnsupportedModelError:
                pass
            raise

    def _flags(self, formats: Mapping[str, Format]) -> ImportOptions:
        """Those that have a meaning for this file: the other model may be of another format."""
        readable = format_of(self.path, formats).options
        given: dict[str, Any] = {name: value for name, value in self.flags.given().items() if name in readable}
        return ImportOptions(**given)
