"""Answers as text, from their JSON form: the supervisor prints drafts with the same code."""

from __future__ import annotations

import json
from typing import Any

from qertify.result import EVIDENCE, REASONS

_COLOURS = {"robust": "32", "unsat": "32", "non_robust": "31", "sat": "31", "misclassified": "31", "unknown": "33"}


def render_radius(answer: dict[str, Any], as_json: bool, colour: bool) -> str:
    """As `render_answer`, for `RadiusResult.to_json`."""
    if as_json:
        return json.dumps(answer, allow_nan=False) + "\n"
    verified, refuted, found = answer["verified_radius"], answer["refuted_radius"], answer["counterexample"]
    if verified is None:
        kind = "unknown" if answer["reason"] else "misclassified"
        why = REASONS[answer["reason"]] if answer["reason"] else f"predicted as {answer['predicted']}, label {answer['label']}"
        head, tail = ("UNKNOWN" if answer["reason"] else "MISCLASSIFIED"), why
    elif answer["exact"] and "verified_below" in answer:
        kind, head = "robust", f"RADIUS {verified}"
        below = answer["verified_below"]
        tail = f"class {answer['label']} wins at every input " + (
            f"within {verified}, as far as was asked"
            if below is None
            else f"nearer than {below} ({answer['radius_unit']}), and loses there"
        )
    elif answer["exact"]:
        kind, head = "robust", f"RADIUS {verified}"
        reach = amount(str(verified), answer.get("radius_unit", "levels"))
        tail = f"class {answer['label']} wins at every input within {reach}" + (
            ", as far as was asked" if refuted is None else f", and loses within {refuted}"
        )
    else:
        above = "no larger one is refuted" if refuted is None else f"refuted at {refuted}"
        kind, head, tail = "unknown", f"RADIUS AT LEAST {verified}", f"{above}; {REASONS[answer['reason'] or 'unsupported']}"
    if colour:
        head = f"\x1b[1;{_COLOURS[kind]}m{head}\x1b[0m"
    lines = [f"{head}: {tail}"]
    if found:
        lines.append(f"  predicted   {found['predicted']} instead of {answer['label']} at distance {refuted}")
    if evidence := answer.get("evidence"):
        lines.append(f"  evidence    {EVIDENCE[evidence]} ({evidence})")
    lines.append(f"  effort      {answer['questions']} questions, {answer['nodes']} domains, {answer['seconds']:.2f} s")
    return "\n".join(lines) + "\n"


def render_equivalence(answer: dict[str, Any], as_json: bool, colour: bool) -> str:
    """As `render_answer`, for `EquivalenceResult.to_json`."""
    if as_json:
        return json.dumps(answer, allow_nan=False) + "\n"
    verdict, found, known = answer["verdict"], answer["counterexample"], answer["max_delta"]
    subject = "the outputs" if answer["output"] is None else f"the values of output {answer['output']}"
    least, greatest = known or (None, None)
    if answer["question"] == "top1":
        claim = {"equivalent": "both networks predict the same class at every input of the region"}
        claim["not_equivalent"] = "the networks predict different classes at an input of the region"
    elif answer["question"] == "delta":
        claim = {"equivalent": f"{subject} differ by at most {answer['delta']} at every input of the region"}
        claim["not_equivalent"] = f"{subject} differ by more than {answer['delta']} at an input of the region"
    else:
        claim = {"equivalent": f"the greatest difference of {subject} is {greatest}"}
    head = verdict.upper().replace("_", " ")
    if colour:
        colours = {"equivalent": "32", "not_equivalent": "31", "unknown": "33"}
        head = f"\x1b[1;{colours[verdict]}m{head}\x1b[0m"
    lines = [f"{head}: {claim.get(verdict) or REASONS[answer['reason']]}"]
    if verdict != "unknown":
        lines.append(f"  evidence    {EVIDENCE[answer['evidence']]} ({answer['evidence']})")
    if known is not None:
        above = "nothing above is excluded" if greatest is None else f"none above {greatest:.6g}"
        lines.append(f"  differences {least:.6g} is attained, {above}")
    if answer["float32_error"] is not None:
        part = "taken into account" if answer["float_semantics"] == "float32-bounded" else "not taken into account"
        lines.append(f"  rounding    float32 may change the float network's outputs by {answer['float32_error']:.3g}, {part}")
    if found:
        classes = f"classes {found['original_predicted']} and {found['quantized_predicted']}"
        lines.append(f"  found       difference {found['difference']:.6g} at output {found['output']}; {classes}")
        where = "the reference evaluators" if found["replayed_on"] == "reference" else found["replayed_on"]
        lines.append(f"  replayed    on {where}")
    nodes = f", {answer['nodes']} domains" if answer["nodes"] else ""
    solver = f" with {answer['solver']}" if answer["solver"] else ""
    lines.append(f"  effort      {answer['method']}{solver}{nodes}, {answer['seconds']:.2f} s")
    return "\n".join(lines) + "\n"


def render_specification(answer: dict[str, Any], as_json: bool, colour: bool) -> str:
    """As `render_answer`, for `SpecificationResult.to_json` with the key ``property``."""
    if as_json:
        return json.dumps(answer, allow_nan=False) + "\n"
    verdict, found = answer["verdict"], answer["counterexample"]
    tail = {"sat": "an input satisfies what the property states", "unsat": "no input satisfies what the property states"}
    head = f"\x1b[1;{_COLOURS[verdict]}m{verdict.upper()}\x1b[0m" if colour else verdict.upper()
    lines = [f"{head}: {tail.get(verdict) or REASONS[answer['reason']]}"]
    if verdict != "unknown":
        lines.append(f"  evidence    {EVIDENCE[answer['evidence']]} ({answer['evidence']})")
    if found:
        for name in ("input", "output"):
            values = " ".join(f"{float(value):.9g}" for value in found[name][:16])
            lines.append(f"  {name:<11} {values}{' …' if len(found[name]) > 16 else ''}")
        replayed = "the reference evaluator" if found["replayed_on"] == "reference" else found["replayed_on"]
        rounded = "" if found["holds_in_runtime"] in (None, True) else "; its rounded outputs just miss the statement"
        lines.append(f"  replayed    on {replayed}{rounded}")
    solver = f" with {answer['solver']}" if answer["solver"] else ""
    nodes = f", {answer['nodes']} domains" if answer["nodes"] else ""
    lines.append(f"  effort      {answer['method']}{solver}{nodes}, {answer['seconds']:.2f} s")
    return "\n".join(lines) + "\n"


CHECKS = {
    "valid": ("VALID", "the certificate proves that {claim}"),
    "valid_if_trusted": ("VALID IF TRUSTED", "the certificate proves that {claim}, if what it takes on trust is right"),
    "invalid": ("INVALID", "the certificate does not prove that {claim}"),
    "unknown": ("UNKNOWN", "the check did not end; the claim is that {claim}"),
}
"""Verdicts of checks as one says them."""


def render_check(answer: dict[str, Any], as_json: bool, colour: bool) -> str:
    """As `render_answer`, for the answer of ``qertify check``."""
    if as_json:
        return json.dumps(answer, allow_nan=False) + "\n"
    head, tail = CHECKS[answer["verdict"]]
    kinds = {"valid": "robust", "invalid": "non_robust"}
    if colour:
        head = f"\x1b[1;{_COLOURS[kinds.get(answer['verdict'], 'unknown')]}m{head}\x1b[0m"
    lines = [f"{head}: {tail.format(claim=_claim(answer['claim']))}"]
    if answer["reason"]:
        lines.append(f"  reason      {REASONS.get(answer['reason'], answer['reason'])}")
    lines += [f"  on trust    {step}" for step in answer["trusted"][:8]]
    if len(answer["trusted"]) > 8:
        lines.append(f"              … {len(answer['trusted'])} steps in all")
    lines.append(f"  effort      {answer['leaves']} leaves, {answer['seconds']:.2f} s")
    return "\n".join(lines) + "\n"


def _claim(claim: dict[str, Any]) -> str:
    radius = claim["radius"]
    where = "in its box of inputs" if radius is None else f"within {amount(str(radius), 'levels')} of its input"
    against = "" if claim["target"] is None else f" against class {claim['target']}"
    label = f"class {claim['label']}"
    match claim["kind"]:
        case "robust":
            return f"{label} wins{against} at every input {where}"
        case "non_robust":
            return f"{label} loses{against} at an input {where}"
        case "misclassified":
            return f"{label} loses at its input"
        case _:
            beyond = "" if claim["refuted"] is None else f", and loses within {amount(str(claim['refuted']), 'levels')}"
            return f"{label} wins{against} at every input {where}{beyond}"


def render_answer(answer: dict[str, Any], as_json: bool, colour: bool) -> str:
    """The text for stdout.

    Args:
        answer: `Result.to_json`.
        as_json: one JSON object instead of readable lines.
        colour: whether stdout is a terminal.
    """
    if "verified_radius" in answer:
        return render_radius(answer, as_json, colour)
    if "max_delta" in answer:
        return render_equivalence(answer, as_json, colour)
    if "claim" in answer:
        return render_check(answer, as_json, colour)
    if "property" in answer:
        return render_specification(answer, as_json, colour)
    if as_json:
        return json.dumps(answer, allow_nan=False) + "\n"
    verdict = answer["verdict"]
    head, _, tail = _headline(answer).partition(":")
    if colour:
        head = f"\x1b[1;{_COLOURS[verdict]}m{head}\x1b[0m"
    lines = [f"{head}:{tail}"]
    if verdict == "unknown":
        if answer["bound_reached"] is not None:
            lines.append(f"  closest     class {answer['nearest_class']} stays {-answer['bound_reached']} short of excluded")
    elif answer["evidence"]:
        lines.append(f"  evidence    {EVIDENCE[answer['evidence']]} ({answer['evidence']})")
    if found := answer["counterexample"]:
        lines.append(f"  predicted   {found['predicted']} instead of {answer['label']}")
        lines.append(f"  change      at most {found['distance']} level(s) an input")
        lines.append(f"  outputs     {_numbers(found['outputs'])}")
        lines.append(
            f"  replayed    on {'the reference evaluator' if found['replayed_on'] == 'reference' else found['replayed_on']}"
        )
    nodes = f", {answer['nodes']} domains" if answer["nodes"] else ""
    solver = f" with {answer['solver']}" if answer["solver"] else ""
    lines.append(f"  effort      {answer['method']}{solver}{nodes}, {answer['seconds']:.2f} s")
    return "\n".join(lines) + "\n"


def _headline(answer: dict[str, Any]) -> str:
    label, target = answer["label"], answer["target"]
    within = f"within {amount(answer['radius'], answer['radius_unit'])} of the given one"
    match answer["verdict"]:
        case "robust":
            against = "" if target is None else f" against class {target}"
            return f"ROBUST: class {label} wins{against} at every input {within}"
        case "non_robust":
            found = answer["counterexample"]
            outcome = (
                f"is predicted as {found['predicted']}" if target is None else f"lets class {target} overtake class {label}"
            )
            return f"NOT ROBUST: an input {within} {outcome}"
        case "misclassified":
            return f"MISCLASSIFIED: the given input is itself predicted as {answer['predicted']}, its label is {label}"
        case _:
            return f"UNKNOWN: {REASONS[answer['reason']]}"


def amount(radius: str, unit: str) -> str:
    """A radius with its unit, as one says it."""
    names = {"levels": "level", "pixel": "pixel step"}
    if unit not in names:
        return f"{radius} ({unit})"
    return f"{radius} {names[unit]}{'' if radius == '1' else 's'}"


def _numbers(values: list[int]) -> str:
    shown = " ".join(str(value) for value in values[:16])
    return shown if len(values) <= 16 else f"{shown} … ({len(values)} in all)"
