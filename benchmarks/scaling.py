"""How far does it scale? Real piece times, replayed on any number of simulated workers.

    python -m benchmarks.scaling record --out pieces.json --count 30 --timeout 20
    python -m benchmarks.scaling replay pieces.json --questions 10000 --plot scaling.svg
    python -m benchmarks.scaling ratio --model mnist_1blk_100_in_8_qu_6 --count 12
    python -m benchmarks.scaling ratio --equivalence 1blk_100 --delta 1 4 --count 12
    python -m benchmarks.scaling split --sample 588 --radius 6
    python -m benchmarks.scaling split --equivalence 1blk_100 --bits 6 --sample 3236 --radius 6 --factor 1.05

`record` answers hard published questions in this process, with the searches cut into short pieces, and writes down the time of
every piece and which pieces it came from; and it measures what a piece costs that does nothing. `replay` schedules whole
campaigns of such questions on 1 … 1,024 workers as the runner does: a worker a question, and where workers have nothing to do
any more, the longest questions are cut into their pieces. `ratio` times a radius campaign, or one about two networks,
with one and with two workers, as a user starts them.
`split` answers one question here alone, and with its search shared out among two workers, and prints wall and CPU times: is it
robust, or do two networks stay within a factor above the difference that an attack reaches?
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.equivalence import data, mnist_query
from benchmarks.published_tasks import images, published_network, tasks

from qertify.campaign.runner import ENOUGH_IDLE, HELP_AFTER, HELPERS
from qertify.campaign.store import Store, open_store
from qertify.importers.registry import ImportOptions
from qertify.network.storage import save
from qertify.options import Method, Options
from qertify.parallel.executor import InProcess
from qertify.parallel.processes import Processes
from qertify.parallel.worker import Desk, greeting
from qertify.queries.equivalence import equivalence
from qertify.queries.pieces import question_piece
from qertify.queries.robustness import local_robustness, verify
from qertify.search import sharing

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
HANDS, BUDGET = 16, 0.25
"""Into how many hands the recorded searches are dealt, and seconds of their pieces."""
UNSUPERVISED = """
import sys
from qertify.cli.main import run
from qertify.cli.supervisor import Direct
sys.exit(run(sys.argv[1:], Direct()))
"""
"""The command line as one process, whose CPU time the system adds up with that of its workers."""
PIECE = re.compile(r"piece (\d+) \(of ([\d, ]+)\): .* ([\d.]+) s")


@dataclass(frozen=True, slots=True)
class Question:
    """One recorded question.

    Attributes:
        head: seconds before its search is shared.
        pieces: (parents, seconds) of each; a parent is the number of an earlier piece, 0 the head.
    """

    name: str
    head: float
    pieces: tuple[tuple[tuple[int, ...], float], ...]

    @property
    def seconds(self) -> float:
        """All of its work."""
        return self.head + sum(seconds for _, seconds in self.pieces)


def record(arguments: argparse.Namespace) -> None:
    sharing.FIRST_BUDGET, sharing.GROWTH, sharing.LARGEST_BUDGET = BUDGET, 1.0, BUDGET
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for model, sample, radius, *_ in tasks(arguments):
            network = published_network(model)
            save(network, Path(folder) / "m.qnet")
            desk = Desk(greeting(Path(folder) / "m.qnet", ImportOptions(), Options()))
            pixels, labels = images("fashion-mnist" if "fashion" in model else "mnist")
            query = local_robustness(network, np.minimum(pixels[sample], network.input.high), radius, label=int(labels[sample]))
            lines: list[str] = []
            start = time.perf_counter()
            executor = InProcess(desk.answer, ready=HANDS, size=HANDS)
            result = verify(query, Options(timeout=arguments.timeout), lines.append, executor=executor)
            seconds = time.perf_counter() - start
            pieces = sorted((int(m[1]), m[2], float(m[3])) for m in map(PIECE.fullmatch, lines) if m is not None)
            number = {piece: place for place, (piece, _, _) in enumerate(pieces, 1)} | {0: 0}
            rows = [[[number[int(parent)] for parent in parents.split(", ")], taken] for _, parents, taken in pieces]
            head = max(0.0, seconds - sum(taken for _, _, taken in pieces))
            name = f"{model} {sample} {radius} {result.verdict.value}"
            found.append({"name": name, "head": head, "pieces": rows})
            print(f"{name}: {head:.2f} s, then {len(rows)} pieces, {sum(row[1] for row in rows):.2f} s", flush=True)
        overhead = message_seconds(Path(folder))
    arguments.out.write_text(json.dumps({"overhead": overhead, "questions": found}))
    print(f"a piece that does nothing costs {overhead * 1e3:.2f} ms of the driver and the pipe")


def message_seconds(folder: Path, count: int = 300) -> float:
    """Wall time that a piece costs beyond its work: there and back, through a real worker process."""
    network = published_network("mnist_1blk_64_in_8_qu_4.h5")
    save(network, folder / "m.qnet")
    first = greeting(folder / "m.qnet", ImportOptions(), Options())
    centre = np.minimum(images("mnist")[0][0], network.input.high)
    piece = question_piece(local_robustness(network, centre, 0))
    desk = Desk(first)
    start = time.perf_counter()
    for _ in range(count):
        desk.answer(piece, lambda: False)
    alone = time.perf_counter() - start
    with closing(Processes(1, first, network.digest)) as executor:
        executor.submit(piece).result()
        start = time.perf_counter()
        for _ in range(count):
            executor.submit(piece).result()
        return max((time.perf_counter() - start - alone) / count, 1e-4)


def makespan(question: Question, workers: int, overhead: float) -> float:
    """Seconds until its pieces are done on so many workers, which are given pieces as these become ready."""
    waiting = [len(parents) for parents, _ in question.pieces]
    children: list[list[int]] = [[] for _ in range(len(question.pieces) + 1)]
    for place, (parents, _) in enumerate(question.pieces):
        for parent in parents:
            children[parent].append(place)
    ready: list[int] = []
    done = [(0.0, -1)]
    free, end = workers, 0.0
    while done:
        now, finished = heapq.heappop(done)
        end = now
        free += finished >= 0
        for place in children[finished + 1]:
            waiting[place] -= 1
            if not waiting[place]:
                ready.append(place)
        while free and ready:
            place = ready.pop(0)
            free -= 1
            heapq.heappush(done, (now + overhead + question.pieces[place][1], place))
    return end


def campaign(questions: Sequence[Question], workers: int, overhead: float, shared: bool) -> float:
    """Seconds until all questions are answered; the driver handles one message after the other."""
    running: list[tuple[float, float, int]] = []
    driver = end = 0.0
    for number, question in enumerate(questions):
        now = heapq.heappop(running)[0] if len(running) == workers else 0.0
        end = max(end, now)
        driver = max(driver, now) + overhead
        heapq.heappush(running, (driver + question.seconds, driver, number))
    while running:  # nothing waits any more
        now = running[0][0]
        idle = workers - len(running)
        if shared and idle >= ENOUGH_IDLE:
            longest = sorted(running, key=lambda entry: entry[1])[:HELPERS]
            for entry in longest:
                finish, since, number = entry
                begin = max(now, since + HELP_AFTER)
                question = questions[number]
                helped = begin + question.head + makespan(question, max(1, idle // len(longest)), overhead)
                if helped < finish:
                    running.remove(entry)
                    running.append((helped, float("inf"), number))
            heapq.heapify(running)
        end = max(end, heapq.heappop(running)[0])
    return end


def replay(arguments: argparse.Namespace) -> None:
    data = json.loads(arguments.pieces.read_text())
    known = [
        Question(item["name"], item["head"], tuple((tuple(parents), seconds) for parents, seconds in item["pieces"]))
        for item in data["questions"]
    ]
    rng = random.Random(arguments.seed)
    drawn = rng.choices(known, k=arguments.questions) if arguments.questions else known
    total, longest = sum(question.seconds for question in drawn), max(question.seconds for question in drawn)
    overhead = data["overhead"] if arguments.overhead is None else arguments.overhead
    print(f"{len(known)} recorded questions, {len(drawn)} asked: {total:.0f} s of work, the longest {longest:.1f} s")
    print(f"{overhead * 1e3:.2f} ms a message")
    print(f"{'workers':>8} {'seconds':>9} {'speed-up':>9} {'efficiency':>11} {'one tier':>9}")
    rows: list[tuple[int, float, float]] = []
    for workers in WORKERS:
        seconds = campaign(drawn, workers, overhead, True)
        one_tier = campaign(drawn, workers, overhead, False)
        rows.append((workers, total / seconds, total / seconds / workers))
        print(f"{workers:>8} {seconds:>9.1f} {rows[-1][1]:>9.1f} {rows[-1][2]:>11.1%} {total / one_tier / workers:>9.1%}")
    saturated = next((workers for workers, _, efficiency in rows if efficiency < 0.85), None)
    busy, tail = len(drawn) * overhead, min(question.head for question in drawn)
    print(
        "efficiency stays above 85 %" if saturated is None else f"efficiency falls below 85 % at {saturated} workers:",
        f"the driver needs {busy:.1f} s for its messages, the longest question {longest:.1f} s, of which a part can't be cut"
        f" (its attack and root bounds; at least {tail:.2f} s)",
    )
    if arguments.plot is not None:
        arguments.plot.write_text(plot(rows))


def plot(rows: Sequence[tuple[int, float, float]]) -> str:
    """Speed-up over workers, both logarithmic, with the ideal line and the efficiencies, as SVG."""

    def at(value: float) -> float:
        return 60 * np.log2(max(value, 1))

    points = " ".join(f"{60 + at(workers):.1f},{660 - at(speed):.1f}" for workers, speed, _ in rows)
    marks = "".join(
        f'<text x="{60 + at(workers):.1f}" y="680" text-anchor="middle">{workers}</text>'
        f'<text x="50" y="{664 - at(workers):.1f}" text-anchor="end">{workers}</text>'
        f'<circle cx="{60 + at(workers):.1f}" cy="{660 - at(speed):.1f}" r="4" fill="#1f5a99"/>'
        f'<text x="{66 + at(workers):.1f}" y="{676 - at(speed):.1f}">{efficiency:.0%}</text>'
        for workers, speed, efficiency in rows
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 710" font-family="sans-serif" font-size="12">'
        '<rect width="740" height="710" fill="white"/><line x1="60" y1="660" x2="660" y2="60" stroke="#bbb"/>'
        f'<polyline points="{points}" fill="none" stroke="#1f5a99" stroke-width="2"/>{marks}'
        '<text x="360" y="702" text-anchor="middle">workers</text><text x="60" y="40">speed-up, and efficiency</text></svg>\n'
    )


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def ratio(arguments: argparse.Namespace) -> None:
    """One campaign with one and with two workers, as a user starts it, in one run."""
    inputs = f"{data() / 'mnist' / 't10k-images-idx3-ubyte.gz'}[{arguments.first}:{arguments.first + arguments.count}]"
    if arguments.equivalence:
        (path,) = (data() / "qebverif" / "mnist").glob(f"PTQ_mnist_{arguments.equivalence}_in_8_relu_0.h5")
        flags = ["--bits", str(arguments.bits), "--scheme", "qebverif", "--float", str(path), "--input-scale", "1/255"]
        flags += ["--radius", str(arguments.radius), *(["--delta", *arguments.delta] if arguments.delta else ["--max-delta"])]
    else:
        flags = ["--search-radius"]
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.equivalence:
            path = Path(folder) / "m.qnet"
            save(published_network(f"{arguments.model}.h5"), path)
        walls: list[float] = []
        files = [Path(folder) / f"{workers}.db" for workers in (1, 2)]
        for workers, file in enumerate(files, start=1):
            command = [sys.executable, "-c", UNSUPERVISED, "campaign", str(path), *flags, "--inputs", inputs]
            command += ["--timeout", str(arguments.timeout), "--workers", str(workers), "--out", str(file), "--json"]
            start, before = time.perf_counter(), cpu_seconds()
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)
            walls.append(time.perf_counter() - start)
            print(
                f"{workers} worker(s): {walls[-1]:.1f} s for {found['questions']} questions, {found['seconds']:.1f} s of them"
                f" in the engines, {cpu_seconds() - before:.1f} s of CPU in all; unknown: {found['reasons'] or 'none'}",
                flush=True,
            )
        with open_store(files[0]) as first, open_store(files[1]) as second:
            answers = [_answers(store) for store in (first, second)]
    both = [key for key in answers[0] if key in answers[1]]
    same = sum(answers[0][key] == answers[1][key] for key in both)
    print(f"ratio {walls[0] / walls[1]:.2f}; {len(both)} answers decided in both, {same} of them equal")


def _answers(store: Store) -> dict[tuple[Any, ...], Any]:
    """What is decided."""
    decided: dict[tuple[Any, ...], Any] = {
        (record.position, record.radius, record.asked): record.result.verdict
        for record in store.compared()
        if record.result.reason is None
    }
    for search in store.searches():
        if search.result.reason is None:
            decided[search.position,] = (search.result.verified_radius, search.result.refuted_radius)
    return decided


def split(arguments: argparse.Namespace) -> None:
    """One question alone, and with its search shared out."""
    sample, radius, imports = arguments.sample, arguments.radius, ImportOptions()
    ask: Callable[..., Any]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.qnet"
        if arguments.equivalence:
            query, _ = mnist_query(arguments.equivalence, arguments.bits, sample, radius)
            reached = equivalence(query, Options(method=Method.ATTACK, timeout=20.0)).max_delta
            assert reached is not None
            question: Any = replace(query, delta=Fraction(reached[0]) * Fraction(arguments.factor))
            network, ask = query.quantized, equivalence
        else:
            network = published_network(f"{arguments.model}.h5")
            pixels, labels = images("mnist")
            centre = np.minimum(pixels[sample], network.input.high)
            question, ask = local_robustness(network, centre, radius, label=int(labels[sample])), verify
        save(network, path)
        options = Options(timeout=arguments.timeout)
        for workers in (1, 2):
            before, lines = cpu_seconds(), list[str]()
            with closing(Processes(workers, greeting(path, imports, Options()), network.digest)) as executor:
                if workers > 1:
                    executor.prepare()
                    while executor.ready < workers:
                        time.sleep(0.05)
                start = time.perf_counter()
                result = ask(question, options, lines.append, executor=executor if workers > 1 else None)
                seconds = time.perf_counter() - start
            print(
                f"{workers} worker(s): {result.verdict.value} in {seconds:.1f} s, {cpu_seconds() - before:.1f} s of CPU with"
                f" the start of the workers, {result.nodes} domains",
                *(line for line in lines if line.startswith("shared search")),
                sep="; ",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("record")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--model", default="mnist_1blk_100_in_8_qu_6")
    one.add_argument("--min-radius", type=int, default=3)
    one.add_argument("--max-radius", type=int, default=6)
    one.add_argument("--count", type=int, default=30)
    one.add_argument("--timeout", type=float, default=20.0)
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=record, reliability=["consistent", "other"], known=False)
    two = commands.add_parser("replay")
    two.add_argument("pieces", type=Path)
    two.add_argument("--questions", type=int, default=0, help="draw so many with replacement, 0 for those recorded")
    two.add_argument("--overhead", type=float, help="seconds a message, in place of the measured ones")
    two.add_argument("--plot", type=Path)
    two.add_argument("--seed", type=int, default=0)
    two.set_defaults(run=replay)
    three = commands.add_parser("ratio")
    three.add_argument("--model", default="mnist_1blk_100_in_8_qu_6")
    three.add_argument("--first", type=int, default=0)
    three.add_argument("--count", type=int, default=12)
    three.add_argument("--timeout", type=float, default=60.0)
    three.add_argument("--equivalence", metavar="NAME", help="compare the float network of this name and its quantization")
    three.add_argument("--bits", type=int, default=6)
    three.add_argument("--radius", type=int, default=3)
    three.add_argument("--delta", nargs="*", default=[], help="without any, the greatest difference is asked")
    three.set_defaults(run=ratio)
    four = commands.add_parser("split")
    four.add_argument("--model", default="mnist_1blk_100_in_8_qu_6")
    four.add_argument("--equivalence", metavar="NAME", help="compare the float network of this name and its quantization")
    four.add_argument("--bits", type=int, default=6)
    four.add_argument("--factor", default="1.1")
    four.add_argument("--sample", type=int, required=True)
    four.add_argument("--radius", type=int, required=True)
    four.add_argument("--timeout", type=float, default=60.0)
    four.set_defaults(run=split)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
