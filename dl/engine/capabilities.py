"""What an engine can do, and what the linker refuses where it cannot."""

from __future__ import annotations

from dl.records import dataclass


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; the linker refuses with a clear error what the chosen engine cannot.

    Attributes:
        shared_memory: memories shared by threads, and atomic instructions.
        interrupts: guest code can be interrupted from another thread.
        exceptions: exception handling instructions and tags.
        tail_calls: `return_call_indirect`.
        table_reflection: `Store.table_entry` and `Store.function_type`.
        serialization: `Engine.serialize` and `Engine.deserialize`.
        simd: vector instructions and values of type v128.
        memory64: memories and tables with 64-bit addresses.
        externals: externals as objects: `EngineInstance.external`, `Store.external`, `Store.new_global`, and instantiation with
            a list of them.
        references: values of reference types cross into Python, see `Reference`; needs `externals`.
        stack_inspection: `Store.runs` can say no.
        type_tests: generated code tells whether a function is of a type: `ref.test`.
        profiling: files for profilers of the system (the engine's argument `profiler`), and `Store.new_profiler`.
        guest_wasi: WASI is called without Python: `HostFunctions.offer_wasi`, `Store.instantiate_with_wasi` and
            `Store.provide_wasi`.
        import_lists: `Store.read_table_by` and `Store.instantiate_listed`.
    """

    shared_memory: bool
    interrupts: bool
    exceptions: bool
    tail_calls: bool
    table_reflection: bool
    serialization: bool
    simd: bool
    externals: bool = False
    references: bool = False
    stack_inspection: bool = False
    memory64: bool = False
    guest_wasi: bool = False
    profiling: bool = False
    type_tests: bool = False
    import_lists: bool = False
