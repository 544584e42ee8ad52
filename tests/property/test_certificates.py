"""The checker's bounds against enumeration; and certificates that were tampered with: a false claim is never accepted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qertify.certificates.bounds import Propagation, lower_bounds
from qertify.certificates.check import Examination, Verdict, box, check
from qertify.certificates.format import (
    BOUND,
    SPLIT,
    CaseClaim,
    Certificate,
    Claim,
    Multipliers,
    Proof,
    Region,
    Tree,
    enumeration,
    load,
    save,
)
from qertify.certificates.system import build
from qertify.certificates.violation import outputs_of
from qertify.errors import CertificateError
from qertify.network.evaluate import evaluate_nodes
from qertify.network.network import Network
from qertify.network.tensor import IntegerArray
from qertify.result import Verdict as Answer
from qertify.specification.region import linf_ball
from tests.certificates import answered, true, without_enumeration
from tests.oracle.random_graphs import random_graph
from tests.oracle.random_networks import random_network


@pytest.mark.parametrize("graphs", [False, True])
def test_bounds_hold_at_every_point(graphs: bool) -> None:
    generator = np.random.default_rng(5 + graphs)
    tight = tried = 0
    for _ in range(150):
        network = random_graph(generator) if graphs else random_network(generator)
        centre = generator.integers(network.input.low, network.input.high + 1, size=network.input_shape)
        region = linf_ball(centre, int(generator.integers(1, 3)), network.input.low, network.input.high)
        if region.size > 1 << 11:
            continue
        outputs = outputs_of(network)
        system = build(network, region.low, region.high, outputs.node, outputs.element)
        count, batch = len(system.units), 12
        truth = evaluate_nodes(network, region.points())
        known = np.array([unit.accumulator >= 0 or not unit.owner for unit in system.units])
        z = np.zeros((region.size, count), dtype=np.int64)
        for position, unit in enumerate(system.units):
            if known[position]:
                source = outputs.node if not unit.owner else network.by_name[unit.owner].inputs[0]
                element = outputs.element[unit.accumulator] if not unit.owner else unit.accumulator
                z[:, position] = truth[source].reshape(region.size, -1)[:, element]
        low, high = np.tile(system.low, (batch, 1)), np.tile(system.high, (batch, 1))
        for row in range(1, batch):  # a part of the box, cut at the accumulators of some of its points
            anchor = z[generator.integers(region.size)]
            for position in np.flatnonzero(known & (generator.random(count) < 0.3)):
                if generator.random() < 0.5:
                    low[row, position] = max(low[row, position], anchor[position])
                else:
                    high[row, position] = min(high[row, position], anchor[position])
        objective = np.zeros((batch, count), dtype=np.int64)
        objective[:, system.hidden :] = generator.integers(-2, 3, size=(batch, count - system.hidden))
        bits = generator.integers(0, 5, size=batch)
        multipliers = generator.integers(-3, 4, size=(batch, count)) * (generator.random((batch, count)) < 0.5)
        multipliers[-1] = generator.integers(-(1 << 60), 1 << 60, size=count)
        multipliers[0], bits[0] = 0, 0
        bounds = lower_bounds(system, low, high, objective, multipliers, bits)
        tighter_low, tighter_high, empty = Propagation(system)(low, high)
        for row in range(batch):
            inside = np.all(~known | ((z >= low[row]) & (z <= high[row])), axis=1)
            assert inside.any()
            assert not empty[row]
            assert np.all(~known | (tighter_low[row] <= z[inside].min(axis=0)))
            assert np.all(~known | (tighter_high[row] >= z[inside].max(axis=0)))
            least = (z[inside] @ objective[row]).min()
            assert int(bounds[row]) <= least
            tight, tried = tight + (int(bounds[row]) == least), tried + 1
    assert tight > tried // 20, (
        f"{tight} of {tried} bounds are attained"
    )  # a bound that is always far below proves nothing here


def mutated_integers(values: IntegerArray, generator: np.random.Generator) -> IntegerArray:
    result = values.copy()
    if result.size:
        position = int(generator.integers(result.size))
        result.flat[position] += int(generator.choice([-1, 1, -2, 2, 7, -30, 1000]))
    return result


def mutation(certificate: Certificate, network: Network, generator: np.random.Generator) -> tuple[str, Certificate]:
    """One random change and its name."""
    claim, proof = certificate.claim, certificate.proof

    def claiming(**change: Any) -> Certificate:
        return replace(certificate, claim=replace(claim, **change))

    def proving(**change: Any) -> Certificate:
        assert proof is not None
        return replace(certificate, proof=replace(proof, **change))

    region, step = claim.region, int(generator.choice([1, 2, 4]))
    options: list[tuple[str, Any]] = [
        ("label", lambda: claiming(label=int(generator.integers(network.output_size)))),
        ("target", lambda: claiming(target=int(generator.integers(network.output_size)))),
        ("ties", lambda: claiming(ties=str(generator.choice(["first", "last", "violation"])))),
        ("kind", lambda: claiming(kind=str(generator.choice(["robust", "non_robust", "misclassified", "radius"])))),
        (
            "centre",
            lambda: claiming(region=replace(region, low=(moved := mutated_integers(region.low, generator)), high=moved)),
        ),
        ("box", lambda: claiming(region=Region(region.low - step, region.high + step))),
    ]
    if region.radius is not None:
        options.append(("radius", lambda: claiming(region=replace(region, radius=region.radius + step))))
    if certificate.counterexample is not None:
        moved = mutated_integers(certificate.counterexample, generator)
        options.append(("counterexample", lambda: replace(certificate, counterexample=moved)))
    if proof is not None and not proof.enumeration:
        tree, rows = proof.tree, proof.multipliers
        for name in ("parent", "case", "unit", "threshold", "side", "closed"):
            changed = mutated_integers(getattr(tree, name), generator)
            options.append((name, lambda name=name, changed=changed: proving(tree=replace(tree, **{name: changed}))))
        for name in ("unit", "value", "bits", "start"):
            new = mutated_integers(getattr(rows, name), generator)
            options.append((name, lambda name=name, new=new: proving(multipliers=replace(rows, **{name: new}))))
        nothing = np.zeros_like(rows.value)
        options.append(("no multipliers", lambda: proving(multipliers=replace(rows, value=nothing))))
        options.append(("tighten", lambda: proving(tighten=mutated_integers(proof.tighten, generator))))
        if proof.cases:
            at = int(generator.integers(len(proof.cases)))
            case = proof.cases[at]
            for new_case in (
                replace(case, first=case.first + step),
                replace(case, last=case.last - step),
                replace(case, competitor=0 if case.competitor is None else None),
                replace(case, weights=tuple((index, weight + step) for index, weight in case.weights)),
                replace(case, weights=(*case.weights, *case.weights)),
                replace(case, weights=()),
            ):
                cases = (*proof.cases[:at], new_case, *proof.cases[at + 1 :])
                options.append(("case", lambda cases=cases: proving(cases=cases)))
        if len(tree.parent):
            options.append(("missing node", lambda: proving(**without_node(proof, int(generator.integers(len(tree.parent)))))))
    name, change = options[int(generator.integers(len(options)))]
    return name, change()


def without_node(proof: Proof, node: int) -> dict[str, Any]:
    """The proof without one node and all below it."""
    tree, gone = proof.tree, {node}
    for place, parent in enumerate(tree.parent.tolist()):
        if parent in gone:
            gone.add(place)
    kept = np.array([place for place in range(len(tree.parent)) if place not in gone], dtype=np.int64)
    new = np.full(len(tree.parent) + 1, -1)
    new[kept] = np.arange(len(kept))
    parts = {name: getattr(tree, name)[kept] for name in ("case", "unit", "threshold", "side", "closed")}
    bounded = np.flatnonzero(tree.closed == BOUND).tolist()
    rows = np.array(
        [*range(len(proof.tighten)), *(len(proof.tighten) + row for row, place in enumerate(bounded) if place not in gone)],
        dtype=np.int64,
    )
    dense = proof.multipliers.dense(rows, proof.units)
    return {
        "tree": Tree(parent=new[tree.parent[kept]], **parts),
        "multipliers": sparse(dense, proof.multipliers.bits[rows]),
        "trusted": {int(new[place]): name for place, name in proof.trusted.items() if place not in gone},
    }


def sparse(dense: IntegerArray, bits: IntegerArray) -> Multipliers:
    rows, units = np.nonzero(dense)
    start = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(dense)))])
    return Multipliers(start, units, dense[rows, units], bits)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_false_claim_is_never_accepted(graphs: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_enumeration(monkeypatch)
    generator = np.random.default_rng(31 + graphs)
    seen: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    trees = 0
    for item in answered(208, 40 if graphs else 115, graphs=graphs):
        network, certificate = item.query.network, item.certificate()
        proof = certificate.proof
        rich = proof is not None and len(proof.tree.parent) > 0
        trees += rich
        if not rich and generator.random() < 0.85:  # most questions are settled by intervals: a few will do
            continue
        for _ in range(24 if rich else 4):
            name, changed = mutation(certificate, network, generator)
            seen[name] += 1
            try:
                save(changed, tmp_path / "c")
                outcome = check(load(tmp_path / "c"), network).verdict
            except CertificateError:
                rejected["unusable"] += 1
                rejected[name] += 1
                continue
            if outcome is Verdict.VALID:
                assert true(changed, network), f"{name}: a false claim was accepted"
            else:
                rejected[name] += 1
    assert trees > 2
    # what breaks a proof is noticed; a change of one multiplier or threshold may leave another proof
    for name in ("start", "missing node", "parent"):
        assert rejected[name] > 0.6 * seen[name] > 0, (name, rejected[name], seen[name])
    print(dict(seen), dict(rejected), trees)


def test_random_proofs_of_false_claims_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees that cover everything, with any multipliers: where there is a violation, no leaf that holds it closes."""
    without_enumeration(monkeypatch)
    generator = np.random.default_rng(77)
    refused = 0
    for item in answered(78, 70):
        if item.result.verdict is not Answer.NON_ROBUST:
            continue
        query = item.query
        claim = Claim(
            "robust",
            query.property.label,
            query.property.target,
            query.property.ties.value,
            Region(query.region.low, query.region.high),
        )
        examination = Examination(query.network, claim, *box(claim, query.network))
        keys = list(examination.reachable)
        atoms = list(examination.reachable.values())
        cases = tuple(
            CaseClaim(
                key[0],
                key[1],
                key[1],
                atom.weights or (*((i, 1) for i in atom.upper), *((i, -1) for i in atom.lower)),
            )
            for key, atom in zip(keys, atoms, strict=True)
        )
        for _ in range(6):
            proof = random_proof(examination, cases, generator)
            certificate = Certificate(query.network.digest, "test", claim, None, proof)
            assert check(certificate, query.network).verdict is Verdict.INVALID
            refused += 1
        lazy = Certificate(query.network.digest, "test", claim, None, enumeration())
        assert check(lazy, query.network).verdict is Verdict.INVALID
    assert refused > 40


def random_proof(examination: Examination, cases: tuple[CaseClaim, ...], generator: np.random.Generator) -> Proof:
    system = examination.system
    count = len(system.units)
    rows: list[tuple[int, int, int, int, int, int]] = [(-1, case, -1, 0, 0, BOUND) for case in range(len(cases))]
    for _ in range(int(generator.integers(0, 12))):
        node = int(generator.integers(len(rows)))
        unit = int(generator.integers(count))
        if rows[node][-1] != BOUND:
            continue
        threshold = int(generator.integers(system.low[unit] - 1, system.high[unit] + 2))
        rows[node] = (*rows[node][:-1], SPLIT)
        rows += [(node, rows[node][1], unit, threshold, side, BOUND) for side in (-1, 1)]
    columns = [np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)]
    leaves = int(np.count_nonzero(columns[-1] == BOUND))
    tighten = np.zeros((int(generator.integers(0, 4)), 3), dtype=np.int64)
    tighten[:, 1] = generator.integers(0, count, size=len(tighten))
    tighten[:, 2] = generator.choice([-1, 1], size=len(tighten))
    bits = generator.integers(0, 4, size=leaves + len(tighten))
    reach = int(generator.choice([1, 4, 16, 1 << 40]))
    dense = generator.integers(-reach, reach + 1, size=(len(bits), count)) * (generator.random((len(bits), count)) < 0.6)
    return Proof(False, count, system.hidden, tighten, cases, Tree(*columns), sparse(dense, bits))
