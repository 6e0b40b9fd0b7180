"""A program of WAMR's kind: its root opens a library through `env`, and the host looks on.

    python examples/wamr_program.py [MODE]

The root is the example of WAMR's proposal for run-time linking (`fixtures/wamr/root.c`), the library is `fixtures/wamr/app.c`.
MODE is the number of `iwasm --enable-dlopen`; this root exports an allocator, so bit 1 (2) must be set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dl

FOLDER = Path(__file__).resolve().parents[1] / "fixtures/wamr/unshared"


def main(bits: int) -> int:
    """Run the root in a mode; return its exit code."""
    mode = dl.WamrMode.from_mode_bits(bits)
    print(f"mode {bits}: {mode.binding} binding, malloc from the {mode.memory_operations}", flush=True)
    try:
        linker = dl.Linker(FOLDER / "root.wasm", library_path=[FOLDER], wamr=mode)
    except dl.LinkError as error:
        print(f"refused: {error.reason}")
        return 1
    with linker:
        # What the guest opens, the host can open too.
        with linker.main_group.library("app.wasm") as library:
            print(f"from the host: add42(8) = {library.add42(8)}", flush=True)
        code = linker.main_group.run()
        print(f"look-ups of the guest: {linker.wamr_statistics().lookups}")
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a program of WAMR's kind, and look on.")
    parser.add_argument(
        "mode",
        nargs="?",
        type=int,
        choices=range(32),
        metavar="MODE",
        default=2 | 16,
        help="number of `iwasm --enable-dlopen`, 0 to 31; default %(default)s",
    )
    main(parser.parse_args().mode)
