"""``qertify vnnlib``: a VNN-LIB property of a model."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from qertify.cli.common import check_writable, say, status_line, within
from qertify.cli.flags import (
    EncodingOption,
    EngineFlags,
    JsonOption,
    ModelArgument,
    ModelFlags,
    VerboseOption,
    with_flags,
)
from qertify.cli.render import render_answer
from qertify.cli.supervisor import Channel
from qertify.errors import InvalidInputError
from qertify.queries.vnnlib_result import Answer, SpecificationResult
from qertify.result import Reason

EXIT_STATUS = {"unsat": 0, "sat": 1, "unknown": 3}


@with_flags
def vnnlib_command(
    context: typer.Context,
    *,
    model: ModelArgument,
    property_: Annotated[
        Path, typer.Argument(metavar="PROPERTY.vnnlib", help="VNN-LIB 1.0 or 2.0, also as .gz.", show_default=False)
    ],
    second: Annotated[
        Path | None,
        typer.Option("--second", metavar="MODEL2", help="The second network of a property of two.", show_default=False),
    ] = None,
    result_file: Annotated[
        Path | None, typer.Option(metavar="F", help="Write the answer there as VNN-COMP wants it.", show_default=False)
    ] = None,
    flags: ModelFlags,
    engines: EngineFlags,
    encoding: EncodingOption = "compact",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Decide what a VNN-LIB file states of a model. Exit status: 0 unsat, 1 sat (a counterexample), 2 unusable, 3 unknown."""
    channel: Channel = context.obj
    options = engines.options(encoding)
    if result_file is not None:
        check_writable(result_file, result_file.suffix, "--result-file")
        _write(result_file, "unknown\n")  # what stands should the command be stopped before it has understood the question
    stopped = SpecificationResult("", "", Answer.UNKNOWN, 0, 0.0, options.method.value, Reason.TIMEOUT)
    draft = {**stopped.to_json(), "property": str(property_)}
    channel.draft({**draft, "model_digest": None, "runtime_profile": None, "parts": None}, as_json)
    channel.limit(options.timeout, options.memory)

    from qertify.cli.pairing import confirm
    from qertify.importers.original import Original
    from qertify.importers.registry import load_model
    from qertify.queries.vnnlib import decide_specification
    from qertify.queries.vnnlib_pair import decide_pair_specification
    from qertify.specification.vnnlib import read_vnnlib

    specification = read_vnnlib(property_)
    if (specification.networks == 2) != (second is not None):
        which = f"speaks of {specification.networks} network(s)"
        raise InvalidInputError(
            f"{property_}: {which}; --second names the second of two, {'none' if second is None else 'one'} is given"
        )
    imports = flags.options()
    network = load_model(model if second is None else second, imports)
    original = None if second is None else Original(model, imports).load()
    parts = len(specification.parts)
    known = {"model_digest": network.digest, "runtime_profile": network.runtime_profile, "parts": parts}
    channel.draft({**draft, **known, "exactness": network.exactness}, as_json)
    if result_file is not None and options.timeout is not None:
        _write(result_file, stopped.competition_text())
    outputs = specification.outputs // specification.networks
    say(
        f"property: {specification.inputs} inputs, {outputs} outputs, {parts} input box(es)"
        + (", two networks" if second is not None else "")
    )
    options = within(options, channel.limit(options.timeout, options.memory))
    with nullcontext(say) if verbose else status_line("deciding …") as show:

        def progress(line: str) -> None:
            channel.progress(line)
            show(line)

        if second is not None and original is not None:
            files = (model, second)
            result = decide_pair_specification(
                original, network, specification, options, progress, lambda found, query: confirm(found, query, *files)
            )
        else:
            result = decide_specification(network, specification, options, progress, None if model.suffix == ".qnet" else model)
    if result_file is not None:
        _write(result_file, result.competition_text())
    answer = {**result.to_json(), "property": str(property_)}
    return channel.finish(render_answer(answer, as_json, sys.stdout.isatty()), EXIT_STATUS[result.verdict.value])


def _write(path: Path, text: str) -> None:
    """Write the whole file or nothing."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InvalidInputError(f"--result-file {path}: can't be written: {error.strerror or error}") from error
