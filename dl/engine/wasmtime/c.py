"""The wasmtime C API as the adapter calls it: plain addresses in and out, no wrapper objects.

The binding's own classes cost tens of microseconds a call and keep process-wide state, so the
adapter calls the same shared library through prototypes of its own, in which every pointer is an integer. The library is
the one that the ``wasmtime`` package ships, without that package's classes: see ``dl.engine.wasmtime.library``.

Source of the declarations: ``wasmtime.h`` and ``wasm.h`` of the wasmtime C API, version 50.
"""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_char_p, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any

from dl.engine.native.arguments import taking_arguments
from dl.engine.wasmtime.library import native_library

dll = native_library()

HOST_CALLBACK = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, c_size_t)
CHECKED_CALLBACK = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t)
FINALIZER = ctypes.CFUNCTYPE(None, c_void_p)
EPOCH_CALLBACK = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p)
OUTPUT_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_ssize_t, c_void_p, c_void_p, c_size_t)

EXTERN_FUNC, EXTERN_GLOBAL, EXTERN_TABLE, EXTERN_MEMORY, EXTERN_SHARED_MEMORY, EXTERN_TAG = range(6)

# wasm_valkind_t, except v128, which only wasmtime_valtype_kind_t has.
VALUE_KINDS = {"i32": 0, "i64": 1, "f32": 2, "f64": 3, "v128": 4, "externref": 128, "funcref": 129}

VAL_FUNCREF, VAL_EXTERNREF, VAL_ANYREF, VAL_EXNREF = (
    5,
    6,
    7,
    8,
)  # of wasmtime_valkind_t, which numbers references otherwise


class ByteVec(ctypes.Structure):
    """``wasm_byte_vec_t``: bytes owned by the engine until deleted."""

    _fields_ = (("size", c_size_t), ("data", c_void_p))


class Func(ctypes.Structure):
    """``wasmtime_func_t``."""

    _fields_ = (("store_id", c_uint64), ("private", c_void_p))


class Instance(ctypes.Structure):
    """``wasmtime_instance_t``."""

    _fields_ = (("store_id", c_uint64), ("private", c_size_t))


class Global(ctypes.Structure):
    """``wasmtime_global_t``."""

    _fields_ = (("store_id", c_uint64), ("p1", c_uint32), ("p2", c_uint32), ("p3", c_uint32))


class _Indexed(ctypes.Structure):
    _fields_ = (("store_id", c_uint64), ("p1", c_uint32))


class Memory(ctypes.Structure):
    """``wasmtime_memory_t``; tables and tags have the same shape."""

    _fields_ = (("head", _Indexed), ("p2", c_uint32))


class _ExternUnion(ctypes.Union):
    _fields_ = (
        ("func", Func),
        ("global_", Global),
        ("memory", Memory),
        ("table", Memory),
        ("tag", Memory),
        ("shared_memory", c_void_p),
    )


class Extern(ctypes.Structure):
    """``wasmtime_extern_t``."""

    _fields_ = (("kind", c_uint8), ("of", _ExternUnion))


class Exception_(ctypes.Structure):  # noqa: N801
    """``wasmtime_exnref_t``; external and other managed references have the same shape."""

    _fields_ = (("store_id", c_uint64), ("p1", c_uint32), ("p2", c_uint32), ("p3", c_void_p))


class Val(ctypes.Structure):
    """``wasmtime_val_t``, as far as numbers, functions and external references go."""

    class _Of(ctypes.Union):
        _fields_ = (
            ("i32", ctypes.c_int32),
            ("i64", c_int64),
            ("bits", c_uint8 * 16),
            ("func", Func),
            ("reference", Exception_),
        )

    _fields_ = (("kind", c_uint8), ("of", _Of))


def _prototype(name: str, result: Any, *arguments: Any) -> Any:
    """Return a function of the library with a prototype of its own.

    ``dll[name]`` makes a new function object each time, unlike ``dll.name``, whose prototype the binding may have set.
    """
    function = dll[name]
    function.restype = result
    function.argtypes = list(arguments)
    return function


_P, _N = c_void_p, c_size_t

config_new = _prototype("wasm_config_new", _P)
config_epochs = _prototype("wasmtime_config_epoch_interruption_set", None, _P, c_bool)
config_threads = _prototype("wasmtime_config_wasm_threads_set", None, _P, c_bool)
config_shared_memory = _prototype("wasmtime_config_shared_memory_set", None, _P, c_bool)
config_exceptions = _prototype("wasmtime_config_wasm_exceptions_set", None, _P, c_bool)
config_tail_calls = _prototype("wasmtime_config_wasm_tail_call_set", None, _P, c_bool)
config_simd = _prototype("wasmtime_config_wasm_simd_set", None, _P, c_bool)
config_memory64 = _prototype("wasmtime_config_wasm_memory64_set", None, _P, c_bool)
config_relaxed_simd = _prototype("wasmtime_config_wasm_relaxed_simd_set", None, _P, c_bool)
config_profiler = _prototype("wasmtime_config_profiler_set", None, _P, c_uint8)
config_max_stack = _prototype("wasmtime_config_max_wasm_stack_set", None, _P, c_size_t)
config_parallel = _prototype("wasmtime_config_parallel_compilation_set", None, _P, c_bool)
config_host_memory_creator = _prototype("wasmtime_config_host_memory_creator_set", None, _P, _P)
engine_new = _prototype("wasm_engine_new_with_config", _P, _P)
engine_delete = _prototype("wasm_engine_delete", None, _P)
engine_increment_epoch = _prototype("wasmtime_engine_increment_epoch", None, _P)

error_message = _prototype("wasmtime_error_message", None, _P, _P)
error_delete = _prototype("wasmtime_error_delete", None, _P)
error_new = _prototype("wasmtime_error_new", _P, c_char_p)
error_exit_status = _prototype("wasmtime_error_exit_status", c_bool, _P, _P)
error_trace = _prototype("wasmtime_error_wasm_trace", None, _P, _P)
trap_new = _prototype("wasmtime_trap_new", _P, c_char_p, _N)
trap_code = _prototype("wasmtime_trap_code", c_bool, _P, _P)
trap_message = _prototype("wasm_trap_message", None, _P, _P)
trap_trace = _prototype("wasm_trap_trace", None, _P, _P)
trap_delete = _prototype("wasm_trap_delete", None, _P)
frame_vec_delete = _prototype("wasm_frame_vec_delete", None, _P)
frame_function_name = _prototype("wasmtime_frame_func_name", _P, _P)
frame_module_name = _prototype("wasmtime_frame_module_name", _P, _P)
frame_function_index = _prototype("wasm_frame_func_index", c_uint32, _P)
frame_function_offset = _prototype("wasm_frame_func_offset", c_size_t, _P)
byte_vec_delete = _prototype("wasm_byte_vec_delete", None, _P)
byte_vec_new = _prototype("wasm_byte_vec_new", None, _P, _N, c_char_p)

module_new = _prototype("wasmtime_module_new", _P, _P, c_char_p, _N, _P)
module_delete = _prototype("wasmtime_module_delete", None, _P)
module_serialize = _prototype("wasmtime_module_serialize", _P, _P, _P)
module_deserialize = _prototype("wasmtime_module_deserialize", _P, _P, c_char_p, _N, _P)
module_deserialize_file = _prototype("wasmtime_module_deserialize_file", _P, _P, c_char_p, _P)
module_image_range = _prototype("wasmtime_module_image_range", None, _P, _P, _P)

valtype_new = _prototype("wasm_valtype_new", _P, c_uint8)
valtype_extended = _prototype("wasmtime_valtype_to_wasm", _P, _P, _P)
valtype_vec_new = _prototype("wasm_valtype_vec_new", None, _P, _N, _P)
valtype_described = _prototype("wasmtime_valtype_new", None, _P, _P)
valtype_description_delete = _prototype("wasmtime_valtype_delete", None, _P)
functype_new = _prototype("wasm_functype_new", _P, _P, _P)
functype_delete = _prototype("wasm_functype_delete", None, _P)
functype_params = _prototype("wasm_functype_params", _P, _P)
functype_results = _prototype("wasm_functype_results", _P, _P)
function_type = _prototype("wasmtime_func_type", _P, _P, _P)
memorytype_new = _prototype(
    "wasmtime_memorytype_new", _P, c_uint64, c_bool, c_uint64, c_bool, c_bool, c_uint8, _P
)
memorytype_delete = _prototype("wasm_memorytype_delete", None, _P)

store_new = _prototype("wasmtime_store_new", _P, _P, _P, _P)
store_delete = _prototype("wasmtime_store_delete", None, _P)
store_context = _prototype("wasmtime_store_context", _P, _P)
store_limiter = _prototype("wasmtime_store_limiter", None, _P, c_int64, c_int64, c_int64, c_int64, c_int64)
store_epoch_callback = _prototype("wasmtime_store_epoch_deadline_callback", None, _P, _P, _P, _P)
context_set_epoch_deadline = _prototype("wasmtime_context_set_epoch_deadline", None, _P, c_uint64)
context_set_wasi = _prototype("wasmtime_context_set_wasi", _P, _P, _P)
context_has_exception = _prototype("wasmtime_context_has_exception", c_bool, _P)
context_take_exception = _prototype("wasmtime_context_take_exception", c_bool, _P, _P)
exception_field_count = _prototype("wasmtime_exnref_field_count", _N, _P, _P)
exception_field = _prototype("wasmtime_exnref_field", _P, _P, _P, _N, _P)
exception_tag = _prototype("wasmtime_exnref_tag", _P, _P, _P, _P)
exception_unroot = _prototype("wasmtime_exnref_unroot", None, _P)

tag_equal = _prototype("wasmtime_tag_eq", c_bool, _P, _P, _P)

linker_new = _prototype("wasmtime_linker_new", _P, _P)
linker_clone = _prototype("wasmtime_linker_clone", _P, _P)
linker_delete = _prototype("wasmtime_linker_delete", None, _P)
linker_allow_shadowing = _prototype("wasmtime_linker_allow_shadowing", None, _P, c_bool)
linker_define = _prototype("wasmtime_linker_define", _P, _P, _P, c_char_p, _N, c_char_p, _N, _P)
linker_define_instance = _prototype("wasmtime_linker_define_instance", _P, _P, _P, c_char_p, _N, _P)
linker_define_function = _prototype(
    "wasmtime_linker_define_func_unchecked", _P, _P, c_char_p, _N, c_char_p, _N, _P, _P, _P, _P
)
linker_define_checked = _prototype(
    "wasmtime_linker_define_func", _P, _P, c_char_p, _N, c_char_p, _N, _P, _P, _P, _P
)
linker_get = _prototype("wasmtime_linker_get", c_bool, _P, _P, c_char_p, _N, c_char_p, _N, _P)
linker_define_wasi = _prototype("wasmtime_linker_define_wasi", _P, _P)
linker_instantiate = _prototype("wasmtime_linker_instantiate", _P, _P, _P, _P, _P, _P)

instance_new = _prototype("wasmtime_instance_new", _P, _P, _P, _P, _N, _P, _P)
instance_export = _prototype("wasmtime_instance_export_get", c_bool, _P, _P, c_char_p, _N, _P)
function_call = _prototype("wasmtime_func_call_unchecked", _P, _P, _P, _P, _N, _P)
call_with_arguments = taking_arguments(dll, "wasmtime_func_call_unchecked", _P)
func_from_raw = _prototype("wasmtime_func_from_raw", None, _P, _P, _P)
function_call_checked = _prototype("wasmtime_func_call", _P, _P, _P, _P, _N, _P, _N, _P)
caller_context = _prototype("wasmtime_caller_context", _P, _P)

shared_memory_new = _prototype("wasmtime_sharedmemory_new", _P, _P, _P, _P)
shared_memory_delete = _prototype("wasmtime_sharedmemory_delete", None, _P)
shared_memory_data = _prototype("wasmtime_sharedmemory_data", _P, _P)
shared_memory_data_size = _prototype("wasmtime_sharedmemory_data_size", _N, _P)
shared_memory_grow = _prototype("wasmtime_sharedmemory_grow", _P, _P, c_uint64, _P)
memory_new = _prototype("wasmtime_memory_new", _P, _P, _P, _P)
memory_data = _prototype("wasmtime_memory_data", _P, _P, _P)
memory_data_size = _prototype("wasmtime_memory_data_size", _N, _P, _P)
memory_grow = _prototype("wasmtime_memory_grow", _P, _P, _P, c_uint64, _P)
table_get = _prototype("wasmtime_table_get", c_bool, _P, _P, c_uint64, _P)
val_unroot = _prototype("wasmtime_val_unroot", None, _P)
table_set = _prototype("wasmtime_table_set", _P, _P, _P, c_uint64, _P)
table_grow = _prototype("wasmtime_table_grow", _P, _P, _P, c_uint64, _P, _P)
table_size = _prototype("wasmtime_table_size", c_uint64, _P, _P)
externref_new = _prototype("wasmtime_externref_new", c_bool, _P, _P, _P, _P)
externref_data = _prototype("wasmtime_externref_data", _P, _P, _P)
globaltype_new = _prototype("wasm_globaltype_new", _P, _P, c_uint8)
globaltype_delete = _prototype("wasm_globaltype_delete", None, _P)
global_new = _prototype("wasmtime_global_new", _P, _P, _P, _P, _P)
global_set = _prototype("wasmtime_global_set", _P, _P, _P, _P)
global_get = _prototype("wasmtime_global_get", None, _P, _P, _P)

wasi_new = _prototype("wasi_config_new", _P)
wasi_delete = _prototype("wasi_config_delete", None, _P)
wasi_argv = _prototype("wasi_config_set_argv", c_bool, _P, _N, _P)
wasi_env = _prototype("wasi_config_set_env", c_bool, _P, _N, _P, _P)
wasi_stdin_inherit = _prototype("wasi_config_inherit_stdin", None, _P)
wasi_stdout_inherit = _prototype("wasi_config_inherit_stdout", None, _P)
wasi_stderr_inherit = _prototype("wasi_config_inherit_stderr", None, _P)
wasi_stdin_file = _prototype("wasi_config_set_stdin_file", c_bool, _P, c_char_p)
wasi_stdout_file = _prototype("wasi_config_set_stdout_file", c_bool, _P, c_char_p)
wasi_stderr_file = _prototype("wasi_config_set_stderr_file", c_bool, _P, c_char_p)
wasi_stdin_bytes = _prototype("wasi_config_set_stdin_bytes", None, _P, _P)
wasi_stdout_custom = _prototype("wasi_config_set_stdout_custom", None, _P, _P, _P, _P)
wasi_stderr_custom = _prototype("wasi_config_set_stderr_custom", None, _P, _P, _P, _P)
wasi_preopen = _prototype("wasi_config_preopen_dir", c_bool, _P, c_char_p, c_char_p, c_bool)

profiler_new = _prototype("wasmtime_guestprofiler_new", _P, _P, _P, c_uint64, _P, c_size_t)
profiler_sample = _prototype("wasmtime_guestprofiler_sample", None, _P, _P, c_uint64)
profiler_finish = _prototype("wasmtime_guestprofiler_finish", _P, _P, _P)
profiler_delete = _prototype("wasmtime_guestprofiler_delete", None, _P)


class ProfiledModule(ctypes.Structure):
    """``wasmtime_guestprofiler_modules_t``: a module whose frames a profiler records, and what it calls it."""

    _fields_ = (("name", c_void_p), ("module", c_void_p))
