"""The first model of a comparison: a float network, or a quantized one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qertify.errors import UnsupportedModelError
from qertify.importers.registry import FLOAT_FORMATS, ImportOptions, format_of, load_float_model, load_model
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
        if self.bits is not None or self.runtime is not None:
            flags = replace(self.flags, bits=self.bits or self.flags.bits, runtime=self.runtime or self.flags.runtime)
            return load_model(self.path, flags)
        name = self.path.name.lower()
        if not any(name.endswith(suffix) for suffix in FLOAT_FORMATS):
            return load_model(self.path, self.flags)
        readable = format_of(self.path, FLOAT_FORMATS).options
        given: dict[str, Any] = {name: value for name, value in self.flags.given().items() if name in readable}
        try:
            return load_float_model(self.path, ImportOptions(**given))
        except UnsupportedModelError:
            if not name.endswith((".onnx", ".pt2")):
                raise
            try:
                return load_model(self.path, self.flags)
            except UnsupportedModelError:
                pass
            raise
