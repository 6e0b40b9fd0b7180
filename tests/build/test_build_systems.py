"""What build systems and programs written for Unix expect of a compiler and its C library."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dl
from dl.build.driver import Driver, parse
from dl.modules.image import image_from_file
from tests.support.modules import MEMORY, MEMORY_BASE, imports, library
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None,
        reason="ziglang, the toolchain, is not installed (pip install 'wasix-dl[build]')",
    ),
]

UNIX = """
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/times.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t seen;
static void handler(int number) { seen = number; }

int main(void) {
  struct rusage used;
  struct tms times_used;
  char name[] = "/tmp/file-XXXXXX", folder[] = "/tmp/folder-XXXXXX", text[8] = "";
  signal(SIGUSR1, handler);
  raise(SIGUSR1);
  char *mapped = mmap(0, 100, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int works = clock() >= 0 && !getrusage(RUSAGE_SELF, &used) && times(&times_used) != (clock_t)-1;
  printf("signal %d clocks %d map %d pid %d\\n", seen == SIGUSR1, works, mapped != MAP_FAILED, getpid() > 0);
  FILE *file = tmpfile();
  if (!file) {
    printf("no /tmp: %s\\n", strerror(errno));
    return system(0);
  }
  fputs("kept", file);
  rewind(file);
  int descriptor = mkstemp(name);
  printf("%s %d %d %d\\n", fgets(text, sizeof text, file), descriptor >= 0, !unlink(name), !!mkdtemp(folder));
  printf("%d %d %d\\n", strcmp(name, "/tmp/file-XXXXXX") != 0, tmpnam(0) != 0, mkstemp(text));
  return system("true") + 1;
}
"""


def dlrun(folder: Path, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dl", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def cc(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.chdir(folder)
    Driver(parse(words, cplusplus=False), lambda _line: None).run()


@pytest.mark.parametrize("kind", [(), ("-pthread",)], ids=["unshared", "shared"])
def test_what_wasi_emulates_is_in_the_c_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: tuple[str, ...]
) -> None:
    """Signals within a program, mappings, clocks and temporary files need no option of the compiler, nor `-D`."""
    (tmp_path / "unix.c").write_text(UNIX)
    cc(tmp_path, monkeypatch, *kind, "-Wall", "-Werror", "unix.c", "-o", "unix.wasm")
    (tmp_path / "tmp").mkdir()
    done = dlrun(tmp_path, "--dir", "/tmp::tmp", "unix.wasm")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "signal 1 clocks 1 map 1 pid 1\nkept 1 1 1\n1 1 -1\n"
    assert len(os.listdir(tmp_path / "tmp")) == 1  # the folder
    assert "no /tmp: " in dlrun(tmp_path, "unix.wasm").stdout


def test_cplusplus_has_the_headers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`<csignal>` and `<cstdio>` find what C has, and `-fsyntax-only` writes nothing."""
    (tmp_path / "main.cpp").write_text(
        "#include <csignal>\n#include <cstdio>\n#include <cstdlib>\n#include <ctime>\n"
        "int main() { std::signal(SIGINT, SIG_IGN); return std::clock() < 0 || std::tmpfile(); }\n"
    )
    monkeypatch.chdir(tmp_path)
    Driver(parse(["-fsyntax-only", "main.cpp"], cplusplus=True), lambda _line: None).run()
    assert os.listdir(tmp_path) == ["main.cpp"]


def test_questions_are_answered_by_the_compiler(tmp_path: Path) -> None:
    """`--version`, `-v` alone and `-dumpmachine`, which build systems ask first."""
    assert dlrun(tmp_path, "cc", "--version").stdout.startswith("clang version")
    assert dlrun(tmp_path, "c++", "-v").stdout.startswith("clang version")
    assert dlrun(tmp_path, "cc", "-dumpmachine").stdout == "wasm32-unknown-wasi\n"


def test_a_source_from_standard_input(tmp_path: Path) -> None:
    """`-x c -` compiles what comes through a pipe, and a name without a suffix is a source after `-x`."""
    (tmp_path / "odd").write_text("int two(void) { return 2; }\n")
    done = dlrun(
        tmp_path,
        "cc",
        "-x",
        "c",
        "-",
        "odd",
        "-o",
        "m.wasm",
        input="int two(void); int main(void) { return two(); }",
    )
    assert done.returncode == 0, done.stderr
    assert dlrun(tmp_path, "m.wasm").returncode == 2


def test_options_for_elf_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library with `-soname`, `-z`, `--as-needed` and the like is linked, and `-rpath` becomes its run path."""
    (tmp_path / "lib.c").write_text("int two(void) { return 2; }\n")
    (tmp_path / "flags").write_text(
        "-shared -fPIC '-Wl,-soname,libtwo.so.1,-z,relro' -Wl,--as-needed -Wl,-rpath=/far"
    )
    cc(tmp_path, monkeypatch, "@flags", "-Wl,-rpath,$ORIGIN/lib:/near", "lib.c", "-o", "libtwo.so.1.0")
    (tmp_path / "libtwo.so").symlink_to("libtwo.so.1.0")
    (tmp_path / "main.c").write_text("int two(void); int main(void) { return two(); }\n")
    cc(
        tmp_path,
        monkeypatch,
        "main.c",
        "-L.",
        "-ltwo",
        "-Wl,-rpath,.",
        "-Wl,--start-group",
        "-Wl,--end-group",
        "-o",
        "main.wasm",
    )

    info = image_from_file(tmp_path / "libtwo.so.1.0", "libtwo").wasm.dylink
    assert info is not None
    assert info.runtime_path == ("/far", "$ORIGIN/lib", "/near")
    assert dlrun(tmp_path, "main.wasm").returncode == 2


def test_files_of_options_that_name_each_other_are_refused(tmp_path: Path) -> None:
    """`@FILE` is read as often as it is nested, up to a bound; a missing one is named."""
    (tmp_path / "a").write_text(f"@{tmp_path}/a")
    for word, reason in ((f"@{tmp_path}/a", "without end"), ("@missing", "No such file")):
        with pytest.raises(dl.BuildError, match=reason):
            parse([word], cplusplus=False)


def test_archives(tmp_path: Path) -> None:
    """`dlrun ar` makes an archive that the linker reads, also without `s`, and fails as `ar` does."""
    (tmp_path / "two.c").write_text("int two(void) { return 2; }\n")
    (tmp_path / "main.c").write_text("int two(void); int main(void) { return two(); }\n")
    assert dlrun(tmp_path, "cc", "-c", "two.c").returncode == 0
    assert dlrun(tmp_path, "ar", "rc", "libtwo.a", "two.o").returncode == 0
    assert dlrun(tmp_path, "ar", "t", "libtwo.a").stdout == "two.o\n"
    assert dlrun(tmp_path, "cc", "main.c", "-L.", "-ltwo", "-o", "main.wasm").returncode == 0
    assert dlrun(tmp_path, "main.wasm").returncode == 2
    assert dlrun(tmp_path, "ar", "t", "missing.a").returncode == 1


def test_a_program_lends_what_other_compilers_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that imports `memcpy` and `memmove`, which this compiler writes as instructions, finds them in the program."""
    (tmp_path / "main.c").write_text("int main(void) { return 0; }\n")
    cc(tmp_path, monkeypatch, "-rdynamic", "main.c", "-o", "main.wasm")
    kind = "(param i32 i32 i32) (result i32)"
    call = "(drop (call $mem{0} (global.get $memory_base) (i32.add (global.get $memory_base) (i32.const {1})) (i32.const 4)))"
    (tmp_path / "other.so").write_bytes(
        library(
            MEMORY,
            MEMORY_BASE,
            imports("memcpy", kind),
            imports("memmove", kind),
            '(data (global.get $memory_base) "........abcdefgh")',
            f'(func (export "copied") (result i64) {call.format("cpy", 8)} {call.format("move", 9)}'
            " (i64.load (global.get $memory_base)))",
            memory_size=16,
        )
    )
    with dl.Linker(tmp_path / "main.wasm") as linker:
        copied = linker.main_group.library(tmp_path / "other.so").copied()
        assert copied.to_bytes(8, "little") == b"bcde...."
