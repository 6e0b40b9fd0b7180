"""What threads do wrong with groups is refused or reported, and harms nobody else."""

from __future__ import annotations

import threading

import pytest
import wasmtime

import dl

LIBRARY = """
(module
  (import "env" "memory" (memory 1 65536 shared))
  (import "env" "construct" (func $construct))
  (func (export "__wasm_call_ctors") (call $construct))
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))
"""


def library() -> bytes:
    wasm = bytes(wasmtime.wat2wasm(LIBRARY))
    section = b"\x08dylink.0\x01\x04\0\0\0\0"
    return wasm[:8] + b"\0" + bytes([len(section)]) + section + wasm[8:]


@pytest.mark.timeout(60)
def test_a_constructor_that_waits_for_who_waits_for_it_is_a_deadlock_with_both_names() -> None:
    """A constructor joins a thread that opens the same library: all are told who waits for what."""
    linker: dl.Linker

    def construct() -> None:
        linker.spawn(lambda group: group.dlopen("same.so"), name="opener").join()

    with dl.Linker(
        None,
        memory=dl.MemoryType(shared=True),
        imports={"env": {"construct": construct}},
        libraries={"same.so": library()},
    ) as linker:
        with pytest.raises(dl.DlError) as caught:
            linker.main_group.dlopen("same.so")

        text = str(caught.value)
        assert "deadlock" in text
        assert "the constructors of same.so" in text
        assert "opener" in text


def test_a_group_is_closed_by_its_own_thread_only() -> None:
    """Another thread's attempt is refused, and the group goes on."""
    with dl.Linker(
        None, memory=dl.MemoryType(shared=True), imports={"env": {"construct": lambda: None}}
    ) as linker:
        group = linker.main_group
        add = group.dlsym(group.dlopen(library()), "add")
        errors: list[BaseException] = []

        def close() -> None:
            try:
                group.close()
            except dl.LinkerUsageError as error:
                errors.append(error)

        thread = threading.Thread(target=close)
        thread.start()
        thread.join()

        assert len(errors) == 1
        assert add(2, 3) == 5


def test_linker_and_group_are_not_closed_from_inside_guest_code() -> None:
    """A host function that closes what runs it is refused; the load it belongs to goes on."""
    refused: list[str] = []
    linker: dl.Linker

    def construct() -> None:
        for close in (linker.close, linker.main_group.close):
            try:
                close()
            except dl.LinkerUsageError as error:
                refused.append(str(error))

    with dl.Linker(
        None, memory=dl.MemoryType(shared=True), imports={"env": {"construct": construct}}
    ) as linker:
        group = linker.main_group

        assert group.dlsym(group.dlopen(library()), "add")(2, 3) == 5
        assert len(refused) == 2


def test_a_closed_linker_is_not_entered() -> None:
    """A `with` around a linker that was closed says so at once."""
    linker = dl.Linker(None, memory=dl.MemoryType(1))
    linker.close()
    with pytest.raises(dl.LinkerClosedError), linker:
        raise AssertionError("it was entered")
