"""Where the search for a difference starts: every row with both signs, on the whole region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from qertify.bounds.chords import first_multipliers
from qertify.bounds.difference import Joint
from qertify.bounds.dual import Domains, prove
from qertify.search.difference_rows import DifferenceRows
from qertify.search.domains import root_domains
from qertify.specification.cases import Case


@dataclass(slots=True, eq=False)
class Root:
    """A case and a domain for each row and sign, and the margins proved so far."""

    joint: Joint
    cases: tuple[Case, ...]
    domains: Domains
    margins: Tensor

    @property
    def closed(self) -> bool:
        return bool((self.margins >= 0).all())


def root_of(joint: Joint, rows: DifferenceRows, keys: Sequence[tuple[int, int]], allowed: Fraction | None) -> Root:
    """The limits of an allowed difference, and what one pass proves; without one, limits of 0, and nothing is proved yet.

    Args:
        keys: each row with one sign and then with the other, in the order of the program's outputs.
    """
    program = joint.program
    if allowed is None:
        cases = rows.cases(dict.fromkeys(keys, 0))
        domains = root_domains(program, cases)
        return Root(joint, cases, domains, torch.full_like(domains.limit, -torch.inf))
    cases = rows.cases({key: rows.limit(key[0], allowed, joint.output_bits) for key in keys})
    domains = root_domains(program, cases)
    outputs = list(program.output_units().values())
    least = torch.stack([program.low[outputs], -program.high[outputs]], dim=-1).reshape(-1)
    domains.limit[:] = torch.maximum(domains.limit, least - 1)  # a limit beyond the row's range says no more
    return Root(joint, cases, domains, prove(program, domains, first_multipliers(program, domains)).margin)
