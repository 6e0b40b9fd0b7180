"""What a linker is given as its main module, and options that would be misunderstood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import dl
from tests.support.modules import got, pie, returns


class TestOptions:
    @pytest.mark.parametrize("options", [{"library_path": "lib"}, {"args": "prog"}, {"side_memory": "heap"}])
    def test_what_would_be_misunderstood(self, options: dict[str, Any]) -> None:
        """One text where a list belongs, and a choice that is none, are refused by the option's name."""
        with pytest.raises(dl.LinkerUsageError, match=next(iter(options))):
            dl.Linker(None, **options)

    def test_library_path_of_one_call(self) -> None:
        """The same for the library path of one dlopen."""
        with dl.Linker(None) as program, pytest.raises(dl.LinkerUsageError, match="library_path"):
            program.main_group.dlopen("x.so", library_path="lib")


class TestSources:
    def test_from_file_and_bytes(self, tmp_path: Path) -> None:
        """A main module may be a path, text or not, or bytes."""
        main = pie(returns("f", 3))
        path = tmp_path / "main.wasm"
        path.write_bytes(main)
        for source in (path, str(path), main, bytearray(main), memoryview(main)):
            with dl.Linker(source) as program:  # type: ignore[arg-type]
                assert program.main_group.dlsym(1, "f")() == 3

    def test_name(self, tmp_path: Path) -> None:
        """The name given for a main module is what messages say."""
        with pytest.raises(dl.UnresolvedSymbolsError, match="cannot link prog"):
            dl.Linker(pie(got("nothing", "mem")), name="prog")
        (tmp_path / "main.wasm").write_bytes(pie(got("nothing", "mem")))
        with pytest.raises(dl.UnresolvedSymbolsError, match="cannot link prog"):
            dl.Linker(tmp_path / "main.wasm", name="prog")

    def test_unreadable(self, tmp_path: Path) -> None:
        """A missing file, a directory, a device and a name with NUL are errors of the linker that name the file."""
        for source in (tmp_path / "none.wasm", tmp_path, "/dev/zero", "a\0b"):
            with pytest.raises(dl.LinkError):
                dl.Linker(source)

    def test_not_a_module(self, tmp_path: Path) -> None:
        """Bytes that are no module are malformed, an empty file too."""
        for content in (b"", b"\x7fELF", b"\0asm", b"hello"):
            with pytest.raises(dl.MalformedModuleError):
                dl.Linker(content)
