"""`dlrun stress`: many threads do everything at once to one program, and in the end all must agree."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import click
from rich.text import Text

from dl.cli.console import messages, output, print_error, print_note
from dl.cli.params import Number, Whole, engine_option
from dl.stress.run import StressProgress, StressReport, run_stress

FOUND_FAILURES = 1


@click.command(short_help="Try the linker with many threads, and compare them.")
@click.option(
    "--threads",
    type=Whole(1),
    metavar="N",
    default=64,
    show_default=True,
    help="How many at a time.",
)
@click.option(
    "--seconds",
    type=Number(0, min_open=True),
    metavar="S",
    default=10.0,
    show_default=True,
    help="How long.",
)
@click.option(
    "--seed", type=int, metavar="SEED", help="Do what a former run did: each thread, not how they interleave."
)
@engine_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are documented and stable.")
def stress(threads: int, seconds: float, seed: int | None, engine: str | None, as_json: bool) -> int:
    """Try the linker on this machine.

    Threads open libraries, good ones and bad ones, look up, call, wait, compute without end, trap, and end in every way;
    new ones take their places. Each result is checked, and at the end the tables, instances and symbols of all threads
    are compared. Progress goes to standard error once a second. The exit code is 1 if anything was wrong.
    """
    if not math.isfinite(seconds):
        raise click.UsageError("--seconds must be a finite number")
    try:
        report = run_stress(threads, seconds, seed, _tell, engine=engine)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        print(json.dumps(_as_json(report), indent=2))
    else:
        _print(report)
    for failure in report.failures:
        first, *rest = failure.rstrip().splitlines()
        print_error(first)
        for line in rest:
            print_note(line)
    return FOUND_FAILURES if report.failures else 0


def _tell(progress: StressProgress) -> None:
    messages().print(
        f"dlrun: {progress.seconds:.0f} s: {progress.operations:,} operations, {progress.committed:,} link operations "
        f"committed, {progress.threads} threads"
    )


def _print(report: StressReport) -> None:
    console = output()
    barriers = report.barriers
    lines = [
        ("failures", f"{len(report.failures)}"),
        ("threads", f"{report.threads} at a time, {report.seconds:.1f} s, seed {report.seed}"),
        ("operations", f"{report.total:,}, {report.per_second:,.0f} a second"),
        (
            "link operations",
            f"{report.committed:,} committed, {report.libraries} libraries loaded at the end",
        ),
        (
            "barriers",
            f"{barriers.count:,}: median {barriers.median:.2f} ms, 90 % {barriers.p90:.2f} ms, 99 % "
            f"{barriers.p99:.2f} ms, most {barriers.most:.2f} ms",
        ),
        ("catch-ups", f"{report.catch_ups:,}"),
        ("interrupts", f"{report.interrupts:,}"),
        ("threads ended", _counts(report.ends)),
        ("compared", f"{report.compared} instance groups"),
        ("what was done", _counts(report.operations)),
    ]
    for title, text in lines:
        line = Text(f"{title:<16}", style="cyan")
        line.append(text, style="bold red" if title == "failures" and report.failures else "default")
        console.print(line)


def _counts(counts: Any) -> str:
    return (
        ", ".join(f"{what} {number:,}" for what, number in sorted(counts.items(), key=lambda item: -item[1]))
        or "none"
    )


def _as_json(report: StressReport) -> dict[str, Any]:
    return {
        "failures": list(report.failures),
        "threads": report.threads,
        "seconds": report.seconds,
        "seed": report.seed,
        "operations": report.total,
        "operations_per_second": report.per_second,
        "operations_by_kind": dict(report.operations),
        "barriers_ms": asdict(report.barriers),
        "committed": report.committed,
        "catch_ups": report.catch_ups,
        "interrupts": report.interrupts,
        "threads_ended_by": dict(report.ends),
        "libraries": report.libraries,
        "groups_compared": report.compared,
    }
