"""How a question is cut, and how its parts travel.

A part is a box of inputs, or a subproblem of a search: a case of the violation with bounds on accumulators. Cuts take a part
and return parts that together hold every violation of it, so the conjunction of their answers is exact:

- property-based: a subproblem a case, that is a competing class, or an output and sign (`root_subproblems`);
- output-based: intervals of the label's output level (`by_levels`), or of any output's code (`by_output`), which do not
  overlap;
- neurons: z ≤ T−1 or z ≥ T at a threshold T of one unit (`at_threshold`), which do not overlap;
- inputs: halves of the box (`halves`), which do not overlap.

Cuts compose, since each returns parts of the kind that it takes.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qertify.bounds.program import Program
from qertify.parallel.executor import Message
from qertify.search.domains import Subproblem, root_domains
from qertify.specification.cases import Case, CaseSplitter
from qertify.specification.region import IntegerBox
from qertify.specification.splitting import Bisector

Cost = Callable[[Subproblem], float]


def width_cost(subproblem: Subproblem) -> float:
    """Estimated effort: the number of output levels that are left."""
    return float(subproblem.case.last - subproblem.case.first + 1)


def bisect_levels(program: Program, splitter: Bisector, subproblem: Subproblem) -> tuple[Subproblem, ...]:
    """The lower and the upper half of a case's levels, where it has several.

    A violation at which the label's accumulator is within the lower half's bound is one of the lower half, so the upper
    one may take the accumulator to be above it: the parts do not overlap.
    """
    if subproblem.case.single:
        return (subproblem,)
    outputs = program.output_units()
    parts: list[Subproblem] = []
    floor: tuple[tuple[int, int], ...] = ()
    for case in splitter.bisect(subproblem.case):
        fresh = root_domains(program, [case])
        low, high = torch.maximum(subproblem.low, fresh.low[0]), torch.minimum(subproblem.high, fresh.high[0])
        for index, bound in floor:
            low[outputs[index]] = max(float(low[outputs[index]]), bound + 1)
        parts.append(replace(subproblem, case=case, low=low, high=high))
        if isinstance(splitter, CaseSplitter):  # elsewhere a case's label is no accumulator
            floor = tuple((index, bound) for index, bound in case.upper if index == case.label)
    return tuple(parts)


def by_levels(
    program: Program, splitter: Bisector, subproblem: Subproblem, count: int, cost: Cost = width_cost
) -> tuple[Subproblem, ...]:
    """Up to ``count`` intervals of the label's level, of about equal cost: the costliest is halved first."""
    parts = [subproblem]
    while len(parts) < count:
        several = [position for position, part in enumerate(parts) if not part.case.single]
        if not several:
            break
        costliest = max(several, key=lambda position: cost(parts[position]))
        parts[costliest : costliest + 1] = bisect_levels(program, splitter, parts[costliest])
    return tuple(parts)


def at_threshold(program: Program, subproblem: Subproblem, unit: int, threshold: float) -> tuple[Subproblem, Subproblem]:
    """The parts with z_unit below a threshold and with z_unit at or above it."""
    high, low = subproblem.high.clone(), subproblem.low.clone()
    high[unit] = min(float(high[unit]), threshold - program.gap(unit))
    low[unit] = max(float(low[unit]), threshold)
    return replace(subproblem, high=high), replace(subproblem, low=low)


def by_output(
    program: Program, subproblem: Subproblem, unit: int, count: int, cost: Cost | None = None
) -> tuple[Subproblem, ...]:
    """Up to ``count`` intervals of an output code, or of an output's integer accumulator, of about equal cost.

    Args:
        unit: of the output: its values are the codes, or it has none and its accumulator is cut.
        cost: of a part; by default the number of codes or integers that are left.
    """
    parts = [subproblem]

    def ends(part: Subproblem) -> tuple[float, float]:
        if not bool(program.has_value[unit]):
            return float(part.low[unit]), float(part.high[unit])
        first, last = (program.values(bound[None])[0, unit] for bound in (part.low, part.high))
        return float(first), float(last)

    def width(part: Subproblem) -> float:
        first, last = ends(part)
        return last - first

    while len(parts) < count:
        several = [position for position, part in enumerate(parts) if width(part) > 0]
        if not several:
            break
        costliest = max(several, key=lambda position: (cost or width)(parts[position]))
        first, last = ends(parts[costliest])
        middle = first + (last - first) // 2 + 1
        threshold = middle
        if bool(program.has_value[unit]):
            threshold = float(program.threshold(torch.full_like(program.low, middle)[None])[0, unit])
        parts[costliest : costliest + 1] = at_threshold(program, parts[costliest], unit, threshold)
    return tuple(parts)


def halves(box: IntegerBox, count: int) -> tuple[IntegerBox, ...]:
    """Up to ``count`` boxes: the largest is halved along its widest input, over and over."""
    boxes = [box]
    while len(boxes) < count:
        largest = max(range(len(boxes)), key=lambda position: boxes[position].size)
        whole = boxes[largest]
        width = (whole.high - whole.low).reshape(-1)
        axis = int(width.argmax())
        if not width[axis]:
            break
        middle = int(whole.low.reshape(-1)[axis]) + int(width[axis]) // 2
        below, above = whole.high.copy(), whole.low.copy()
        below.reshape(-1)[axis], above.reshape(-1)[axis] = middle, middle + 1
        boxes[largest : largest + 1] = [IntegerBox(whole.low, below), IntegerBox(above, whole.high)]
    return tuple(boxes)


def deal(subproblems: Sequence[Subproblem], hands: int) -> list[list[Subproblem]]:
    """Share out as cards are dealt, the least proved first, so that all hands get easy and hard ones; none is empty."""
    ordered = sorted(subproblems, key=lambda item: item.margin)
    return [ordered[start::hands] for start in range(min(hands, len(ordered)))]


def pack(subproblems: Sequence[Subproblem]) -> Message:
    """Subproblems as plain data."""
    cases: dict[Case, int] = {}
    places = [cases.setdefault(item.case, len(cases)) for item in subproblems]
    return {
        "cases": [asdict(case) for case in cases],
        "case": places,
        "margin": [item.margin if np.isfinite(item.margin) else None for item in subproblems],
        "depth": [item.depth for item in subproblems],
        "stuck": [item.stuck for item in subproblems],
        "low": pack_rows([item.low for item in subproblems]),
        "high": pack_rows([item.high for item in subproblems]),
    }


def unpack(data: Message, program: Program) -> list[Subproblem]:
    """The inverse of `pack`, for searches of the same program.

    Raises:
        ValueError: not made by `pack`.
    """
    cases = [case_from(item) for item in data["cases"]]
    low, high = (unpack_rows(data[name], len(data["case"]), len(program.units)) for name in ("low", "high"))
    return [
        Subproblem(cases[place], low[row], high[row], -torch.inf if margin is None else margin, depth, stuck)
        for row, (place, margin, depth, stuck) in enumerate(
            zip(data["case"], data["margin"], data["depth"], data["stuck"], strict=True)
        )
    ]


def case_from(data: dict[str, Any]) -> Case:
    """The inverse of ``asdict(case)`` after a journey through JSON."""
    pairs: dict[str, Any] = {name: tuple(tuple(pair) for pair in data[name]) for name in ("weights", "upper", "lower")}
    return Case(**data | pairs)


def pack_rows(rows: Sequence[Tensor]) -> str:
    """Rows of float64 numbers, exactly, as text; element by element, since neighbouring domains differ in few."""
    table = np.stack([row.cpu().numpy() for row in rows], axis=1) if rows else np.zeros((0, 0))
    return base64.b64encode(zlib.compress(table.astype("<f8").tobytes(), 1)).decode()


def unpack_rows(text: str, rows: int, width: int) -> Tensor:
    """The inverse of `pack_rows`, (rows, width).

    Raises:
        ValueError: another size; no more than that is ever unpacked.
    """
    size = 8 * rows * width
    data = zlib.decompressobj().decompress(base64.b64decode(text), size + 1)
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes of bounds where {size} were announced")
    table = np.frombuffer(data, dtype="<f8").astype(np.float64).reshape(width, rows)
    return torch.from_numpy(np.ascontiguousarray(table.T))
