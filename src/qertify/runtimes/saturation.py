"""What can make a runtime's integers differ from exact ones: 32-bit overflow, and int16 saturation of pairs of products.

CPUs without VNNI multiply uint8 activations by int8 weights with an instruction (vpmaddubsw) that adds two neighbouring
products in 16 bits, with saturation. Which products are neighbours depends on how a kernel packs its operands, so every
pair that meets in one accumulator is considered. Other operand types are widened first and can't saturate.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qertify.network.network import Network
from qertify.network.nodes import Convolution, Dense
from qertify.network.ranges import Range, accumulator_proofs, full_range, ranges
from qertify.network.tensor import IntegerArray
from qertify.specification.region import IntegerBox

PAIR_LOW, PAIR_HIGH = -(1 << 15), (1 << 15) - 1


class CpuClass(str, Enum):
    """How a CPU multiplies bytes."""

    VNNI = "vnni"
    """Four products are added in 32 bits: x86 with AVX-VNNI or AVX512-VNNI."""
    AVX2 = "avx2"
    """Pairs of uint8 · int8 products are added in 16 bits, saturating: every other x86 with AVX2."""


def host_cpu_class() -> CpuClass:
    """The class of this machine; AVX2, which promises least, where it can't be told."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return CpuClass.AVX2
    return CpuClass.VNNI if "avx512_vnni" in flags or "avx_vnni" in flags else CpuClass.AVX2


@dataclass(frozen=True, slots=True)
class PairProof:
    """Whether 16-bit sums of pairs can saturate in one linear node.

    Attributes:
        node: its name.
        operands: types of activation and weight, such as "uint8 · int8".
        low, high: proved bounds of the sum of any two products in one accumulator; 0, 0 where pairs are not added in 16 bits.
        absent: whether saturation is proved absent.
    """

    node: str
    operands: str
    low: int
    high: int
    absent: bool


def pair_proofs(network: Network, cpu_class: CpuClass, region: IntegerBox | None = None) -> tuple[PairProof, ...]:
    """One proof a multiplication whose operand types are in the network's metadata, over a region (None: all inputs).

    Networks whose importer recorded no types have nothing to prove. A kernel marked "pairs_in_16_bits" adds pairs in 16 bits
    on every CPU.
    """
    kernels: dict[str, dict[str, Any]] = json.loads(network.metadata.get("kernels", "{}"))
    box = full_range(network) if region is None else (region.low[None], region.high[None])
    known: dict[str, Range] | None = None
    proofs: list[PairProof] = []
    for node in network.nodes:
        if not isinstance(node, Dense | Convolution) or node.name not in kernels:
            continue
        kernel = kernels[node.name]
        operands = f"{kernel['activation']} · {kernel['weight']}"
        low = high = 0
        saturates = cpu_class is CpuClass.AVX2 or kernel.get("pairs_in_16_bits", False)
        if saturates and (kernel["activation"], kernel["weight"]) == ("uint8", "int8"):
            known = known or ranges(network, *box)
            low, high = _pair_bounds(node, stored_weight(node, kernel), known[node.inputs[0]])
        proofs.append(PairProof(node.name, operands, low, high, low >= PAIR_LOW and high <= PAIR_HIGH))
    return tuple(proofs)


def stored_weight(node: Dense | Convolution, kernel: dict[str, Any]) -> IntegerArray:
    """The weight as the kernel multiplies it: its zero point not yet subtracted."""
    shape = (-1,) + (1,) * (node.weight.ndim - 1)
    return node.weight + np.asarray(kernel["weight_zero_point"], dtype=np.int64).reshape(shape)


def _pair_bounds(node: Dense | Convolution, weight: IntegerArray, codes: Range) -> tuple[int, int]:
    """Bounds of the sum of any two products weight · code of one accumulator; codes are raw, not centred."""
    low, high = codes[0][0], codes[1][0]
    if isinstance(node, Dense):
        rows, least, greatest = weight, low[None, :], high[None, :]
    else:
        low, high = low.min(axis=(1, 2)), high.max(axis=(1, 2))
        if any(node.window.padding):
            low, high = np.minimum(low, node.zero_point), np.maximum(high, node.zero_point)
        rows = weight.reshape(weight.shape[0], -1)
        area = node.window.kernel[0] * node.window.kernel[1]
        least, greatest = (
            np.repeat(np.repeat(bound.reshape(node.groups, -1), area, axis=1), weight.shape[0] // node.groups, axis=0)
            for bound in (low, high)
        )
    positive, negative = np.maximum(rows, 0), np.minimum(rows, 0)
    return -_largest_pair(-(positive * least + negative * greatest)), _largest_pair(positive * greatest + negative * least)


def _largest_pair(products: NDArray[np.int64]) -> int:
    """The largest sum of two entries of one row, an entry without a partner counting alone."""
    padded = np.concatenate([products, np.zeros((len(products), 2), dtype=np.int64)], axis=1)
    return int(np.partition(padded, -2, axis=1)[:, -2:].sum(axis=1).max())


def arithmetic_doubts(network: Network, cpu_class: CpuClass, region: IntegerBox | None = None) -> tuple[str, ...]:
    """Why the runtime's integers may differ from the exact ones on a region, one line a node; empty if proved equal."""
    doubts = [
        f"node '{proof.node}': the accumulator may need {proof.bits_needed} bits, it has {proof.bits}"
        for proof in accumulator_proofs(network)
        if not proof.proved
    ]
    doubts += [
        f"node '{proof.node}': a pair of {proof.operands} products may reach {proof.low} … {proof.high}, which saturates in 16 "
        f"bits on CPU class '{cpu_class.value}'"
        for proof in pair_proofs(network, cpu_class, region)
        if not proof.absent
    ]
    return tuple(doubts)
