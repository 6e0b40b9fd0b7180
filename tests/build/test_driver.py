"""`dlrun cc`, `dlrun c++` and `dlrun new`: what is built runs, with the C library that is shipped."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dl
from dl.build.driver import Driver, parse
from dl.build.sysroot import KINDS, SHIPPED, SHIPPED_PARTS
from dl.modules.image import image_from_file
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None,
        reason="ziglang, the toolchain, is not installed (pip install 'wasix-dl[build]')",
    ),
]

KIND = {"unshared": [], "shared": ["-pthread"]}

HOST = """
#include <dlfcn.h>
#include <stdio.h>
int main(int count, char **arguments) {
  void *library = dlopen(arguments[1], RTLD_NOW);
  if (!library) { printf("%s\\n", dlerror()); return 1; }
  const char *(*greet)(const char *) = (const char *(*)(const char *))dlsym(library, "greet");
  printf("%s\\n", greet(arguments[2]));
  return dlclose(library);
}
"""
PLUGIN = """
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
static char text[100];
static int loads;
__attribute__((constructor)) static void come(void) { loads++; }
__attribute__((visibility("hidden"))) int hidden(void) { return 1; }
int last_error(void) { errno = 0; strtol("99999999999999999999", 0, 10); return errno == ERANGE; }
const char *greet(const char *name) { snprintf(text, sizeof text, "hello %s, %d, %.2f", name, loads, 1.5); return text; }
"""
FILES = """
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <vector>
namespace fs = std::filesystem;
int main() {
  fs::path folder = "/data";
  fs::create_directories(folder / "deep/er");
  std::ofstream(folder / "deep/one.txt") << "first\\nsecond " << 42 << "\\n";
  fs::copy_file(folder / "deep/one.txt", folder / "deep/er/two.txt");
  std::ifstream in(folder / "deep/er/two.txt");
  std::string line;
  std::getline(in, line);
  std::getline(in, line);
  std::cout << line << "\\n";
  std::vector<std::string> seen;
  for (auto &entry : fs::recursive_directory_iterator(folder))
    seen.push_back(fs::relative(entry.path(), folder).string() + (entry.is_directory() ? "/" : ""));
  std::sort(seen.begin(), seen.end());
  for (auto &one : seen) std::cout << one << " ";
  std::cout << "\\n" << fs::canonical(folder / "deep/../deep/er").string() << "\\n";
  std::error_code error;
  fs::permissions(folder / "deep/one.txt", fs::perms::owner_read, error);
  std::cout << error.message() << "\\n";
  std::cout << fs::remove_all(folder / "deep");
  std::cout << " left " << std::distance(fs::directory_iterator(folder), fs::directory_iterator()) << "\\n";
}
"""
CPLUSPLUS = """
#include <stdexcept>
#include <string>
extern "C" int parse(const char *text) {
  try {
    std::string all(text);
    if (all.empty()) throw std::invalid_argument("empty");
    return static_cast<int>(all.size());
  } catch (const std::exception &) {
    return -1;
  }
}
"""


def cc(folder: Path, *words: str, cplusplus: bool = False) -> list[str]:
    """Build in a folder, and return what the driver said."""
    said: list[str] = []
    before = Path.cwd()
    os.chdir(folder)
    try:
        Driver(parse(words, cplusplus=cplusplus), said.append).run()
    finally:
        os.chdir(before)
    return said


def dlrun(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dl", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("kind", KIND)
def test_a_program_opens_a_library(tmp_path: Path, kind: str) -> None:
    """Both are built by the driver; the library has the program's C library, `errno` included."""
    (tmp_path / "host.c").write_text(HOST)
    (tmp_path / "plugin.c").write_text(PLUGIN)
    cc(tmp_path, *KIND[kind], "-shared", "plugin.c", "-o", "plugin.so")
    cc(tmp_path, *KIND[kind], "-O1", "host.c", "-o", "host.wasm")
    done = dlrun(tmp_path, "-L", ".", "host.wasm", "plugin.so", "you")

    assert (done.returncode, done.stdout) == (0, "hello you, 1, 1.50\n"), done.stderr
    with dl.Linker(tmp_path / "host.wasm") as linker:
        plugin = linker.main_group.library(tmp_path / "plugin.so")
        assert plugin.last_error() == 1
        assert plugin.function("greet", str)("me") == "hello me, 1, 1.50"
        assert "hidden" not in plugin


@pytest.mark.parametrize("kind", KIND)
def test_cplusplus_with_exceptions_and_strings_runs(tmp_path: Path, kind: str) -> None:
    """A library throws and catches; the program's C++ library serves it, and prints through streams."""
    (tmp_path / "parse.cpp").write_text(CPLUSPLUS)
    (tmp_path / "main.cpp").write_text(
        '#include <iostream>\nextern "C" int parse(const char *);\n'
        'int main() { std::cout << parse("four") << " " << parse("") << std::endl; }\n'
    )
    cc(tmp_path, *KIND[kind], "-shared", "parse.cpp", "-o", "libparse.so", cplusplus=True)
    cc(tmp_path, *KIND[kind], "main.cpp", "-L.", "-lparse", "-o", "main.wasm", cplusplus=True)
    done = dlrun(tmp_path, "main.wasm")

    assert (done.returncode, done.stdout) == (0, "4 -1\n"), done.stderr


THREAD_LOCAL = """
#include <cstdio>
#include <cstdlib>
struct Traced {
  const char *name;
  explicit Traced(const char *name) : name(name) {}
  ~Traced() { printf("%s ", name); fflush(stdout); }
};
"""


def test_cplusplus_reads_and_writes_files(tmp_path: Path) -> None:
    """Streams of files, directories, copies, and paths as the program sees them; what WASI lacks says so."""
    (tmp_path / "data").mkdir()
    (tmp_path / "main.cpp").write_text(FILES)
    cc(tmp_path, "main.cpp", "-o", "main.wasm", cplusplus=True)
    done = dlrun(tmp_path, "--dir", f"/data::{tmp_path / 'data'}", "main.wasm")

    assert done.stdout.split("\n") == [
        "second 42",
        "deep/ deep/er/ deep/er/two.txt deep/one.txt ",
        "/data/deep/er",
        "Function not implemented",
        "4 left 0",
        "",
    ]


@pytest.mark.parametrize("kind", KIND)
def test_thread_local_variables_are_destroyed_with_their_thread(tmp_path: Path, kind: str) -> None:
    """Last first, a library's and the program's: before keys when a thread ends, before atexit when the program does."""
    (tmp_path / "part.cpp").write_text(
        THREAD_LOCAL
        + 'thread_local Traced own("library");\nextern "C" const char *part() { return own.name; }\n'
    )
    (tmp_path / "main.cpp").write_text(
        THREAD_LOCAL
        + """
extern "C" const char *part();
thread_local Traced first("first");
static Traced whole("static");
static void *use(void *) { return (void *)(first.name == part()); }
#ifdef _REENTRANT
#include <pthread.h>
static void *in_thread(void *key) {
  pthread_setspecific(*(pthread_key_t *)key, key);
  use(0);
  pthread_exit(0);
}
#endif
int main() {
#ifdef _REENTRANT
  pthread_key_t key;
  pthread_t thread;
  pthread_key_create(&key, [](void *) { printf("key "); });
  pthread_create(&thread, 0, in_thread, &key);
  pthread_join(thread, 0);
#endif
  use(0);
  atexit([] { printf("atexit "); });
  printf("end ");
  exit(3);
}
"""
    )
    cc(tmp_path, *KIND[kind], "-shared", "part.cpp", "-o", "libpart.so", cplusplus=True)
    cc(tmp_path, *KIND[kind], "main.cpp", "-L.", "-lpart", "-o", "main.wasm", cplusplus=True)
    done = dlrun(tmp_path, "main.wasm")

    thread = "library first key " if kind == "shared" else ""
    assert (done.returncode, done.stdout) == (3, f"{thread}end library first atexit static "), done.stderr


def test_objects_archives_and_names_are_linked_as_compilers_do(tmp_path: Path) -> None:
    """`-c`, several sources, `-D`, `-I`, `-Wl,` and an object given again."""
    (tmp_path / "include").mkdir()
    (tmp_path / "include/two.h").write_text("int two(void);\n")
    (tmp_path / "two.c").write_text('#include "two.h"\nint two(void) { return NUMBER; }\n')
    (tmp_path / "main.c").write_text('#include "two.h"\nint main(void) { return two() + EXTRA; }\n')
    cc(tmp_path, "-c", "two.c", "-Iinclude", "-DNUMBER=2")
    cc(
        tmp_path,
        "main.c",
        "two.o",
        "-I",
        "include",
        "-D",
        "EXTRA=40",
        "-lm",
        "-Wl,--export=two",
        "-o",
        "main.wasm",
    )

    assert dlrun(tmp_path, "main.wasm").returncode == 42
    assert "two" in image_from_file(tmp_path / "main.wasm", "main.wasm").wasm.exports


def test_what_would_run_is_shown(tmp_path: Path) -> None:
    """`-###` prints the commands and makes nothing; a program that opens nothing gets no more of libc than it uses."""
    (tmp_path / "main.c").write_text("int main(void) { return 0; }\n")
    said = cc(tmp_path, "-###", "-g", "main.c", "-o", "main.wasm")

    assert [line.split()[1] for line in said] == ["cc", "wasm-ld"]
    assert "-g" in said[0].split()
    assert not (tmp_path / "main.wasm").exists()
    cc(tmp_path, "main.c", "-o", "main.wasm")
    assert (tmp_path / "main.wasm").stat().st_size < 20_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no input files"),
        (("-o",), "-o needs a value"),
        (("main.c", "-lnothing_like_it"), "no libnothing_like_it.so"),
        (("-c", "main.c", "main.c", "-o", "x.o"), "several sources"),
        (("-static", "main.c"), "cannot be chosen"),
        (("main.txt",), "not a source"),
        (("main.c", "@words"), "@words: No closing quotation"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    """One line says what is wrong."""
    (tmp_path / "main.c").write_text("int main(void) { return 0; }\n")
    (tmp_path / "words").write_text("-DNAME='text")
    with pytest.raises(dl.BuildError, match=message):
        cc(tmp_path, *words)


def test_the_compiler_has_the_last_word(tmp_path: Path) -> None:
    """Its messages reach the user as they are, and the command fails with one line more."""
    (tmp_path / "wrong.c").write_text("int main(void) { return nothing_like_it; }\n")
    done = dlrun(tmp_path, "cc", "wrong.c")

    assert done.returncode == 1
    assert "wrong.c:1:25: error: use of undeclared identifier" in done.stderr
    assert done.stderr.splitlines()[-1] == "dlrun: error: zig cc ended with code 1"
    assert not (tmp_path / "a.wasm").exists()


def test_a_new_project_builds_and_runs(tmp_path: Path) -> None:
    """What `dlrun new plugin-host` writes is built by its script, and both hosts run."""
    done = dlrun(tmp_path, "new", "plugin-host", "project")
    assert done.returncode == 0, done.stderr
    project = tmp_path / "project"
    assert {Path(line).name for line in done.stdout.split()} == {p.name for p in project.iterdir()}
    (tmp_path / "dlrun").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dl "$@"\n')
    (tmp_path / "dlrun").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run(["sh", "build.sh"], cwd=project, env=env, timeout=200, check=True)
    done = dlrun(project, "-L", ".", "host.wasm", "shout.so", "backwards.so")
    assert done.stdout == "shout: HELLO FROM A PLUG-IN\nbackwards: NI-GULP A MORF OLLEH\n"
    python = subprocess.run(
        [sys.executable, "host.py", "./shout.so", "./backwards.so"],
        cwd=project,
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert python.stdout == "shout: HELLO FROM A PLUG-IN\nbackwards: ni-gulp a morf olleH\n"
    again = dlrun(tmp_path, "new", "plugin-host", "project")
    assert "not an empty directory" in again.stderr


def test_a_missing_toolchain_is_named_with_the_remedy(tmp_path: Path) -> None:
    """Without it one line says what to install."""
    code = "import sys; sys.modules['ziglang'] = None; from dl.cli import main; sys.exit(main(['cc', 'x.c']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert "pip install 'wasix-dl[build]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    """A source that is not there is reported by its name, before the compiler is asked."""
    with pytest.raises(dl.BuildError, match=r"^x\.c: no such file$"):
        cc(tmp_path, "-c", "x.c")


def test_the_c_libraries_are_shipped_and_name_no_folder_of_the_building_machine() -> None:
    """The wheel has them for both kinds of memory."""
    for kind in KINDS:
        for name in SHIPPED_PARTS:
            contents = (SHIPPED / kind / name).read_bytes().replace(b"/tmp/tmp-XXXXXX", b"")  # the guest's
            assert not any(folder in contents for folder in (b"/root/", b"/home/", b"/tmp/", b"/work/"))


@pytest.mark.parametrize("kind", KIND)
def test_setjmp_works(tmp_path: Path, kind: str) -> None:
    """`longjmp` comes back to `setjmp`, in C and beside exceptions in C++."""
    code = """
#include <setjmp.h>
static jmp_buf place;
static void away(int value) { longjmp(place, value); }
int main(void) {
  int came = setjmp(place);
  if (!came) away(7);
  return came;
}
"""
    for name, cplusplus in (("jump.c", False), ("jump.cpp", True)):
        (tmp_path / name).write_text(code)
        cc(tmp_path, *KIND[kind], name, "-o", "jump.wasm", cplusplus=cplusplus)
        assert dlrun(tmp_path, "jump.wasm").returncode == 7


def test_an_undefined_function_is_an_error_of_the_build(tmp_path: Path) -> None:
    """A program is complete, or is not built; the linker's message names the function."""
    (tmp_path / "main.c").write_text(
        "int nothing_like_it(void);\nint main(void) { return nothing_like_it(); }\n"
    )
    done = dlrun(tmp_path, "cc", "main.c")

    assert done.returncode == 1
    assert "undefined symbol: nothing_like_it" in done.stderr


def test_what_a_link_lacks_is_told(tmp_path: Path) -> None:
    """Functions of threads without -pthread, and a library that is linked as a program: the error ends with the option."""
    (tmp_path / "part.c").write_text(
        "#include <pthread.h>\nint add(pthread_mutex_t *m) { return pthread_mutex_lock(m); }\n"
    )
    said = dlrun(tmp_path, "cc", "part.c").stderr.splitlines()

    assert "undefined symbol: pthread_mutex_lock" in "\n".join(said)
    assert said[-1].endswith("ended with code 1 (threads need -pthread; a library is linked with -shared)")


@pytest.mark.parametrize("kind", KIND)
def test_dlfcn_is_whole(tmp_path: Path, kind: str) -> None:
    """`dladdr`, `RTLD_NEXT` and a `dlclose` that unloads, in a program and in a library of it."""
    (tmp_path / "next.c").write_text(
        "#include <dlfcn.h>\n#include <string.h>\n"
        'int number(void) { return 1 + ((int (*)(void))dlsym(RTLD_NEXT, "number"))(); }\n'
        'int is_mine(void) { Dl_info i; return dladdr((void *)number, &i) && strstr(i.dli_fname, "next.so") != 0; }\n'
    )
    (tmp_path / "last.c").write_text(
        "#include <stdio.h>\nint number(void) { return 40; }\n"
        '__attribute__((destructor)) static void go(void) { puts("gone"); }\n'
    )
    (tmp_path / "main.c").write_text(
        "#include <dlfcn.h>\n#include <stdio.h>\n"
        "int main(void) {\n"
        '  void *next = dlopen("next.so", RTLD_NOW | RTLD_GLOBAL);\n'
        "  if (!next) { puts(dlerror()); return 1; }\n"
        '  int (*number)(void) = (int (*)(void))dlsym(next, "number");\n'
        '  int (*is_mine)(void) = (int (*)(void))dlsym(next, "is_mine");\n'
        '  printf("%d %d\\n", number(), is_mine());\n'
        "  dlclose(next);\n"
        '  printf("%s\\n", dlopen("next.so", RTLD_NOW | RTLD_NOLOAD) ? "there" : "not there");\n'
        "}\n"
    )
    cc(tmp_path, *KIND[kind], "-shared", "last.c", "-o", "liblast.so")
    cc(tmp_path, *KIND[kind], "-shared", "next.c", "-L.", "-llast", "-o", "next.so")
    cc(tmp_path, *KIND[kind], "main.c", "-o", "main.wasm")
    done = dlrun(tmp_path, "main.wasm")

    assert (done.returncode, done.stdout) == (0, "41 1\ngone\nnot there\n"), done.stderr
