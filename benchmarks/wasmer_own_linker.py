"""Runs the fixtures under Wasmer's own linker and under this one on the same engine, and says what is the same.

    pip install wasmer-sdk 'wasix-dl[wasmer]'
    python benchmarks/wasmer_own_linker.py

`wasmer-sdk` is Wasmer's package for Python, which runs WASIX programs under Wasmer's own linker. It is only compared with, and
is no dependency: its licence is MIT with a clause for large products. Each run is a process of its own with a time limit.
Fixtures that open folders of the host, or need options of their own, are left out. The page `docs/comparison-wasmer.md` says
what was seen.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"


def cases(only: tuple[str, ...]) -> list[tuple[str, dict[str, Any], str]]:
    """Every run of every fixture, with each kind of memory, that needs no folder of the host."""
    found = []
    for file in sorted(FIXTURES.glob("*/case.json")):
        if only and file.parent.name not in only:
            continue
        for run in json.loads(file.read_text()):
            if not run.get("preopens") and "wamr_mode" not in run:
                found += [(file.parent.name, run, memory) for memory in run["memory"]]
    return found


async def under_wasmer(case: str, run: dict[str, Any], memory: str) -> dict[str, Any]:
    """Run one fixture under Wasmer's linker; its libraries are in /lib."""
    from wasmer_sdk import PackageCommandDefinition, PackageDefinition, Wasmer  # noqa: PLC0415  not installed for others

    folder = FIXTURES / case / memory
    files = {f"/lib/{one.relative_to(folder)}": one.read_bytes() for one in folder.rglob("*.so")}
    for path in run.get("library_path", ["."]):
        for one in (folder / path).glob("*"):
            if one.suffix in {".so", ".wasm"}:
                files.setdefault(f"/lib/{one.name}", one.read_bytes())
    async with Wasmer(cache_root=os.path.join(tempfile.gettempdir(), "wasmer-sdk-cache")) as wasmer:
        package = await wasmer.packages.create(
            PackageDefinition(
                modules={"main": (folder / run["main"]).read_bytes()},
                commands={"main": PackageCommandDefinition(module="main")},
                files=files,
            )
        )
        async with await wasmer.sandboxes.create(packages=[package], env=run.get("env", {})) as box:
            began = time.perf_counter()
            command = box.command(package, run.get("args") or [])
            out = await command.run(check=False, stdin=run.get("stdin", ""))
            return {
                "seconds": time.perf_counter() - began,
                "code": out.exit_code,
                "out": out.stdout.bytes.decode(errors="replace"),
                "err": out.stderr.bytes.decode(errors="replace")[-300:],
            }


def started(command: list[str], given: str, seconds: float) -> dict[str, Any]:
    """Run a process; say what it printed, or that it did not end."""
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return {"hangs": True, "seconds": seconds}
    spent = time.perf_counter() - began
    return {"seconds": spent, "code": done.returncode, "out": done.stdout, "err": done.stderr[-300:]}


def verdict(run: dict[str, Any], seen: dict[str, Any]) -> str:
    """Say in a word or a line how a run ended."""
    if seen.get("hangs"):
        return "hangs"
    if "out" not in seen:
        return "fails: " + seen.get("err", "").strip().splitlines()[-1][:100]
    wanted, got = run["stdout"], seen["out"].splitlines()
    ended_well = (
        seen["code"] == run.get("exit_code", 0) if run.get("ends", "exit") == "exit" else seen["code"]
    )
    if got == wanted and ended_well:
        return "same"
    for number, (want, have) in enumerate(zip([*wanted, "(end)"], [*got, "(end)"], strict=False)):
        if want != have:
            return f"line {number + 1}: {have[:40]!r} for {want[:40]!r}"
    return f"exit code {seen['code']}"


@click.command()
@click.option("--seconds", default=15.0, show_default=True, help="After so long a run hangs.")
@click.option("--memory", "kind", help="Only with this kind of memory: shared or unshared.")
@click.option("--only", multiple=True, help="Only this fixture; may be repeated.")
@click.option("--child", hidden=True)
def main(seconds: float, only: tuple[str, ...], kind: str | None, child: str | None) -> None:
    """Print a line for each run, and the sums."""
    if child is not None:
        case, run, memory = cases(())[int(child)]
        print(json.dumps(asyncio.run(under_wasmer(case, run, memory))))
        return
    sums: dict[str, Counter[str]] = {"theirs": Counter(), "ours": Counter()}
    for number, (case, run, memory) in enumerate(cases(())):
        if (only and case not in only) or memory != (kind or memory):
            continue
        theirs = started([sys.executable, __file__, "--child", str(number)], "", seconds + 10)
        if not theirs.get("hangs") and theirs["code"] == 0:
            theirs = json.loads(theirs["out"])
        elif not theirs.get("hangs"):
            theirs = {"err": theirs["err"] or "no reason", "seconds": theirs["seconds"]}
        folder = FIXTURES / case / memory
        paths = [word for path in run.get("library_path", ["."]) for word in ("-L", str(folder / path))]
        env = [word for name, value in run.get("env", {}).items() for word in ("--env", f"{name}={value}")]
        command = [sys.executable, "-m", "dl", "run", "--engine", "wasmer", *paths, *env]
        ours = started(
            [*command, str(folder / run["main"]), *(run.get("args") or [])], run.get("stdin", ""), seconds
        )
        words = {"theirs": verdict(run, theirs), "ours": verdict(run, ours)}
        for side, word in words.items():
            sums[side][word if word in {"same", "hangs"} else "different"] += 1
        print(
            f"{case}/{run['name']}/{memory}: Wasmer's: {words['theirs']} ({theirs['seconds']:.1f} s); "
            f"ours: {words['ours']} ({ours['seconds']:.1f} s)",
            flush=True,
        )
    for side, counter in sums.items():
        print(f"{side}: {dict(counter)}")


if __name__ == "__main__":
    main()
