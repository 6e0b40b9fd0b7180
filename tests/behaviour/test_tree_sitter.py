"""tree-sitter and three of its grammars, which others built, linked by `dl` and held against web-tree-sitter.

Node runs web-tree-sitter, whose loader is Emscripten's; the same sources go through
`examples/web_tree_sitter.py`, whose loader is `dl`. Both count UTF-16 code units, so the trees must be equal
as they stand.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import dl

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CACHE = ROOT / ".cache" / "tree-sitter"
PACKAGE_FILES = ("package.json", "package-lock.json")
NPM_TIMEOUT = 90

sys.path.insert(0, str(EXAMPLES))

from web_tree_sitter import CHUNK, CODE_UNIT, PAGE, Language, Node, TreeSitter  # noqa: E402

pytestmark = pytest.mark.network

CHUNK_UNITS = CHUNK // CODE_UNIT


def generated_python(functions: int) -> str:
    """Classes and functions with nesting, strings and comments, enough to fill many reads of the parser."""
    body = """
class C{0}(Base, metaclass=Meta):
    '''Größe {0}: naïve ∑ 😀'''
    async def f{0}(self, a: int = {0}, *args, **kw) -> "str":
        # ünï {0}
        for i, (x, y) in enumerate(zip(a, [b ** 2 for b in range({0}) if b % 3])):
            with open(f"file-{{i!r:>{{x}}}}") as h, lock:
                try:
                    yield lambda q, /, r: (q, r)[{0}:-1]
                except (ValueError, KeyError) as error:
                    raise RuntimeError({0}) from error
                else:
                    match x:
                        case [1, *rest] if rest: return {{"k{0}": rest, **kw}}
                        case _: pass
"""
    return "".join(body.format(number) for number in range(functions))


def generated_javascript(functions: int) -> str:
    """The same idea for JavaScript: classes, templates, regular expressions, destructuring."""
    body = """
export class K{0} extends (Base ?? Object) {{
  #größe = {0}n; static x{0} = /[a-z]+\\/{0}/giu;
  async *m{0}({{ a, b: [c = {0}, ...d] }}, ...rest) {{
    // ∑ 😀 {0}
    label: for await (const v of rest) {{
      if (v?.w?.[{0}] === `t${{a + `${{c}}`}}`) continue label
      else yield* d.map((e) => ({{ ...e, [c]: !e }}))
    }}
    return <div id={{c}} title="{0}">é {{a}}</div>
  }}
}}
"""
    return "".join(body.format(number) for number in range(functions))


def astral_at_the_end_of_a_chunk(units_before: int) -> str:
    """A JSON string whose one character outside the BMP begins after so many code units."""
    return '"' + "x" * (units_before - 1) + '😀 tail", [1]'


SOURCES: dict[str, dict[str, str]] = {
    "json": {
        "empty": "",
        "only white space": " \r\n\t ",
        "small": '{"a": [1, -2.5e3, true, null, "s\\n\\u00e9"], "b": {}}\n',
        "not ascii": '{"é": "😀 日本語 \\ud835", "ключ": ["🙂🙃"]}',
        "byte order mark": "\ufeff[1]",
        "syntax errors": '{"a": [1, 2,, }, b: tru, "unclosed\n',
        "deeply nested": "[" * 400 + "]" * 400,
        "large": json.dumps([{"id": n, "naïve": "∑" * (n % 7), "😀": [n / 7, None]} for n in range(400)]),
        "several documents": "1 2\n[3]",
        **{
            f"surrogate pair at {offset:+} of a chunk's end": astral_at_the_end_of_a_chunk(
                CHUNK_UNITS + offset
            )
            for offset in (-2, -1, 0, 1)
        },
    },
    "python": {
        "empty": "",
        "small": "def f(x):\n    return x + 1\n",
        "not ascii": 'größe = "😀é" + f"{naïve!r}"  # ∑ 日本\nclass Ключ: pass\n',
        "syntax errors": "def f(:\n  if x return [1,\n)))\nclass\n    @\nprint 'old'",
        "indentation": "if a:\n\tif b:\n\t\tc\n    \n  # odd\nelse:\n  d\n\\\n  e\r\n",
        "strings": "a = r'''\n\\''' b\"\\x00\" f'{x:{y}}{z=}' \"unclosed\nb = 1\n",
        "a module of this project": (EXAMPLES / "web_tree_sitter.py").read_text(encoding="utf-8"),
        "large": generated_python(60),
        "large with an error inside": generated_python(20) + "def (((\n" + generated_python(20),
    },
    "javascript": {
        "empty": "",
        "small": "const f = (x) => x + 1;\n",
        "not ascii": 'const größe = `😀${"é"}`; // ∑ 日本\nlet ключ = /[ж-я]+/u;\n',
        "syntax errors": "function (]{ let = ; `${ class { if (a { return }\n",
        "automatic semicolons": "a\n++b\nreturn\nc\n/d/g\nlet x = y\n[1]\n<!-- html\n--> comment\n",
        "a script of this project": (EXAMPLES / "node" / "dump_trees.mjs").read_text(encoding="utf-8"),
        "large": generated_javascript(60),
        "large with an error inside": generated_javascript(20) + "}})(\n" + generated_javascript(20),
    },
}

CASES = [
    pytest.param(language, name, id=f"{language}: {name}")
    for language in SOURCES
    for name in SOURCES[language]
]


def execute(
    *command: object, cwd: Path | None = None, timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; Python finds the `dl` of this tree, installed or not."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


def run(*command: object, cwd: Path | None = None, timeout: float = 60) -> str:
    done = execute(*command, cwd=cwd, timeout=timeout)
    if done.returncode != 0:
        pytest.fail(
            f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        )
    return done.stdout


@pytest.fixture(scope="session", name="packages")
def _packages() -> Path:
    """The folder with the pinned packages; npm fetches them and checks their hashes when the pins change."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if missing:
        reason = f"not on this machine: {', '.join(missing)}"
        if os.environ.get("DL_REQUIRE_NETWORK") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    pins = {name: (EXAMPLES / "node" / name).read_bytes() for name in PACKAGE_FILES}
    installed = CACHE / "installed-package-lock.json"
    if not installed.exists() or installed.read_bytes() != pins["package-lock.json"]:
        CACHE.mkdir(parents=True, exist_ok=True)
        installed.unlink(missing_ok=True)
        for name, content in pins.items():
            (CACHE / name).write_bytes(content)
        run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=CACHE, timeout=NPM_TIMEOUT)
        installed.write_bytes(pins["package-lock.json"])
    return CACHE


@pytest.fixture(scope="session", name="expected")
def _expected(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[Node]]:
    """What web-tree-sitter makes of every source, by language and name."""
    folder = tmp_path_factory.mktemp("sources")
    trees: dict[tuple[str, str], list[Node]] = {}
    for language, sources in SOURCES.items():
        files = [folder / f"{language}-{number}" for number in range(len(sources))]
        for file, source in zip(files, sources.values(), strict=True):
            file.write_bytes(source.encode())
        output = run("node", EXAMPLES / "node" / "dump_trees.mjs", packages, language, *files)
        for name, nodes in zip(sources, json.loads(output), strict=True):
            trees[language, name] = [Node(*node) for node in nodes]
    return trees


@pytest.fixture(scope="module", name="shared")
def _shared(packages: Path) -> Iterator[TreeSitter]:
    """One linker into which every test links its grammar, so that all of them stand side by side."""
    tree_sitter = TreeSitter(packages)
    yield tree_sitter
    tree_sitter.close()


@pytest.fixture(name="fresh")
def _fresh(packages: Path) -> Iterator[TreeSitter]:
    """A linker of the test's own."""
    tree_sitter = TreeSitter(packages)
    yield tree_sitter
    tree_sitter.close()


def assert_same_tree(actual: list[Node], expected: list[Node]) -> None:
    for number, (ours, theirs) in enumerate(zip(actual, expected, strict=False)):
        assert ours == theirs, f"node {number} of {len(expected)}"
    assert len(actual) == len(expected)


@pytest.mark.parametrize(("language", "name"), CASES)
def test_tree_equals_that_of_web_tree_sitter(
    shared: TreeSitter, expected: dict[tuple[str, str], list[Node]], language: str, name: str
) -> None:
    """Every node's depth, field, type and range is what web-tree-sitter gives in Node."""
    actual = shared.parse(shared.language(language), SOURCES[language][name])

    assert_same_tree(actual, expected[language, name])


def test_sources_cover_what_can_differ(expected: dict[tuple[str, str], list[Node]]) -> None:
    """The comparison is worth something: errors, missing nodes, fields, and trees of thousands of nodes."""
    nodes = [node for tree in expected.values() for node in tree]

    assert any(node.type == "ERROR" for node in nodes)
    assert any(node.missing for node in nodes)
    assert any(node.field is not None for node in nodes)
    assert all(len(expected[language, "large"]) > 3000 for language in SOURCES)


def test_node_finds_the_package_of_the_same_version(packages: Path) -> None:
    """What was compared is the version that the pins name, not another that happens to be installed."""
    pinned = json.loads((EXAMPLES / "node" / "package.json").read_text())["dependencies"]

    for package, version in pinned.items():
        manifest = json.loads((packages / "node_modules" / package / "package.json").read_text())
        assert manifest["version"] == version


def test_grammars_opened_after_the_heap_grew_leave_the_heap_alone(
    fresh: TreeSitter, expected: dict[tuple[str, str], list[Node]]
) -> None:
    """A grammar's data never overlaps the guest's allocations, though `malloc` thinks all memory its own."""
    size = 3 * 1024 * 1024
    before = fresh.linker.memory.size
    blocks: list[tuple[int, bytes]] = []

    def fill_heap(until: int) -> None:
        while fresh.linker.memory.size < until:
            pattern = bytes([len(blocks) % 251 + 1]) * size
            address = fresh.call("malloc", size)
            fresh.linker.memory.write(address, pattern)
            blocks.append((address, pattern))

    languages: dict[str, Language] = {}
    for step, name in enumerate(SOURCES, start=1):
        fill_heap(before + step * 64 * PAGE)
        languages[name] = fresh.language(name)
    for name, language in languages.items():
        assert_same_tree(fresh.parse(language, SOURCES[name]["large"]), expected[name, "large"])

    assert len(blocks) > 2
    for address, pattern in blocks:
        assert fresh.linker.memory.read(address, size) == pattern


def test_two_linkers_in_one_process_do_not_meet(
    fresh: TreeSitter, shared: TreeSitter, expected: dict[tuple[str, str], list[Node]]
) -> None:
    """Two linkers that hold the same modules parse in turns, each in its own memory."""
    for name in ("small", "syntax errors", "large"):
        for tree_sitter in (fresh, shared):
            actual = tree_sitter.parse(tree_sitter.language("python"), SOURCES["python"][name])
            assert_same_tree(actual, expected["python", name])


def test_exception_of_a_host_function_reaches_the_caller_through_guest_code(
    packages: Path, expected: dict[tuple[str, str], list[Node]]
) -> None:
    """What the source callback raises leaves `parse` unchanged; after a reset the parser is as before."""

    class SourceLostError(Exception):
        pass

    class LosesTheSource(TreeSitter):
        lost = True

        def _read_source(self, buffer: int, index: int, row: int, column: int, length: int) -> None:
            if self.lost and index > CHUNK_UNITS:
                raise SourceLostError
            super()._read_source(buffer, index, row, column, length)

    with closing(LosesTheSource(packages)) as tree_sitter:
        language = tree_sitter.language("javascript")
        source = SOURCES["javascript"]["large"]

        for _ in range(50):
            with pytest.raises(SourceLostError):
                tree_sitter.parse(language, source)
            tree_sitter.reset()
        tree_sitter.lost = False

        assert_same_tree(tree_sitter.parse(language, source), expected["javascript", "large"])


def test_library_that_is_no_grammar_is_refused_and_the_linker_goes_on(
    packages: Path, fresh: TreeSitter, expected: dict[tuple[str, str], list[Node]], tmp_path: Path
) -> None:
    """A grammar cut short is a `DlError`; the linker then links and uses the whole one."""
    content = (packages / "node_modules" / "tree-sitter-json" / "tree-sitter-json.wasm").read_bytes()
    cut = tmp_path / "cut.wasm"
    cut.write_bytes(content[: len(content) // 2])

    with pytest.raises(dl.DlError, match=r"cut\.wasm"):
        fresh.linker.main_group.dlopen(cut, dl.RTLD_NOW)

    assert_same_tree(fresh.parse(fresh.language("json"), SOURCES["json"]["small"]), expected["json", "small"])


class TestCommand:
    """`python examples/tree_sitter.py`."""

    def test_prints_json(
        self, packages: Path, tmp_path: Path, expected: dict[tuple[str, str], list[Node]]
    ) -> None:
        """`--json` prints every node of the tree that web-tree-sitter gives."""
        file = tmp_path / "source.js"
        file.write_bytes(SOURCES["javascript"]["not ascii"].encode())

        output = run(
            sys.executable,
            EXAMPLES / "tree_sitter.py",
            "--packages",
            packages,
            "--language",
            "javascript",
            "--json",
            file,
        )

        assert [Node(**node) for node in json.loads(output)] == expected["javascript", "not ascii"]

    def test_prints_a_tree_for_people(self, packages: Path, tmp_path: Path) -> None:
        """Without `--json` it prints one line a node, with fields and ranges, and no colours into a pipe."""
        file = tmp_path / "source.json"
        file.write_text('{"k": 1}')

        output = run(
            sys.executable, EXAMPLES / "tree_sitter.py", "--packages", packages, "--language", "json", file
        )

        assert output.splitlines() == [
            "document [0, 8)",
            "  object [0, 8)",
            '    "{" [0, 1)',
            "    pair [1, 7)",
            "      key: string [1, 4)",
            '        "\\"" [1, 2)',
            "        string_content [2, 3)",
            '        "\\"" [3, 4)',
            '      ":" [4, 5)',
            "      value: number [6, 7)",
            '    "}" [7, 8)',
        ]

    def test_names_a_grammar_that_is_not_there(self, packages: Path, tmp_path: Path) -> None:
        """A language without a package ends in one line that names the file, not in a traceback."""
        file = tmp_path / "source"
        file.write_text("")

        done = execute(
            sys.executable, EXAMPLES / "tree_sitter.py", "--packages", packages, "--language", "cobol", file
        )

        assert done.returncode == 1
        assert "tree-sitter-cobol.wasm" in done.stderr
        assert "Traceback" not in done.stderr
