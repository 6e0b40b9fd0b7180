"""The C interface of `wasix-dl-wasmer` as the adapter calls it: plain addresses in and out, no wrapper objects.

Source of the declarations: `engines/wasmer/src`. Texts go as bytes and their number. What fails hands out a failure, which
`dl.engine.wasmer.errors` describes and frees.
"""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_char_p, c_int32, c_int64, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any

from wasix_dl_wasmer import LIBRARY

from dl.engine.native.arguments import taking_arguments
from dl.errors import EngineError

INTERFACE = 3
"""What the library must call its interface."""

CALLBACK = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_void_p, c_size_t)

FAILED_ENGINE, FAILED_LINK, FAILED_TRAP, FAILED_EXCEPTION, FAILED_RAISED = range(5)

CAN_INTERRUPT, CAN_SHARE, CAN_THROW, CAN_SIMD, FORKED = (1 << bit for bit in range(5))


class FailureView(ctypes.Structure):
    """`FailureView`: what a failure says; the texts belong to it."""

    _fields_ = (
        ("kind", c_uint32),
        ("code", c_int32),
        ("value", c_int64),
        ("text", c_void_p),
        ("text_bytes", c_size_t),
        ("frames", c_void_p),
        ("frames_bytes", c_size_t),
    )


class Entry(ctypes.Structure):
    """`Entry`: what tells a function of a table from others."""

    _fields_ = (("code", c_size_t), ("trampoline", c_size_t), ("signature", c_uint32))


_dll = ctypes.CDLL(LIBRARY)


def _prototype(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_dll, name)
    function.restype = result
    function.argtypes = arguments
    return function


_P, _N = c_void_p, c_size_t
_TEXT = (c_char_p, c_size_t)

_interface: int = _prototype("wd_interface", c_uint32)()
if _interface != INTERFACE:
    older = "wasix-dl-wasmer" if _interface < INTERFACE else "wasix-dl"
    raise EngineError(
        f"{LIBRARY} has interface {_interface}, and this version of wasix-dl calls {INTERFACE}: pip install --upgrade {older}"
    )

VERSION: str = _prototype("wd_version", c_char_p)().decode()
"""Of the library and of the engine in it."""

failure_read = _prototype("wd_failure_read", None, _P, _P)
failure_delete = _prototype("wd_failure_delete", None, _P)
failure_has_tag = _prototype("wd_failure_has_tag", c_bool, _P, _P)

engine_new = _prototype("wd_engine_new", _P, c_uint32, _N, _P)
engine_delete = _prototype("wd_engine_delete", None, _P)
engine_interrupt = _prototype("wd_engine_interrupt", None, _P)

module_new = _prototype("wd_module_new", _P, _P, *_TEXT, *_TEXT, _P)
module_delete = _prototype("wd_module_delete", None, _P)
module_bytes = _prototype("wd_module_bytes", _N, _P)
module_is_checked = _prototype("wd_module_is_checked", c_bool, _P)
module_serialize = _prototype("wd_module_serialize", _P, _P, _P)
module_deserialize = _prototype("wd_module_deserialize", _P, _P, *_TEXT, _P)
bytes_read = _prototype("wd_bytes_read", _N, _P, _P)
bytes_delete = _prototype("wd_bytes_delete", None, _P)

host_new = _prototype("wd_host_new", _P)
host_delete = _prototype("wd_host_delete", None, _P)
host_define = _prototype("wd_host_define", _P, _P, *_TEXT, *_TEXT, *_TEXT, _P)

store_new = _prototype("wd_store_new", _P, _P, _P, _P, _P)
store_delete = _prototype("wd_store_delete", None, _P)
store_limit = _prototype("wd_store_limit", None, _P, c_uint64, c_uint64)
store_define_host = _prototype("wd_store_define_host", _P, _P, *_TEXT, *_TEXT, *_TEXT, _P)
store_define_number = _prototype("wd_store_define_number", _P, _P, *_TEXT, *_TEXT, c_uint32)
store_define_instance = _prototype("wd_store_define_instance", _P, _P, *_TEXT, _P)
store_define_memory = _prototype("wd_store_define_memory", _P, _P, *_TEXT, *_TEXT, _P)
store_define_shared = _prototype("wd_store_define_shared", _P, _P, *_TEXT, *_TEXT, _P)

instance_new = _prototype("wd_instance_new", _P, _P, _P, _P, _N, _P)
list_new = _prototype("wd_list_new", _P, c_uint32)
list_delete = _prototype("wd_list_delete", None, _P)
list_functions = _prototype("wd_list_functions", _P, _P, _P, _P, c_uint32, _P, _P, _N)
list_named = _prototype("wd_list_named", _P, _P, _P, c_uint32, *_TEXT, *_TEXT)
list_number = _prototype("wd_list_number", _P, _P, _P, c_uint32, c_bool, c_uint32)
list_export = _prototype("wd_list_export", _P, _P, c_uint32, _P, *_TEXT)
instance_listed = _prototype("wd_instance_listed", _P, _P, _P, _P, _P)
instance_delete = _prototype("wd_instance_delete", None, _P)
instance_function = _prototype("wd_instance_function", _P, _P, _P, *_TEXT)
instance_external = _prototype("wd_instance_external", _P, _P, *_TEXT)
instance_memory = _prototype("wd_instance_memory", _P, _P, *_TEXT)
instance_tag = _prototype("wd_instance_tag", _P, _P, *_TEXT)
instance_global = _prototype("wd_instance_global", c_bool, _P, _P, *_TEXT, _P)
function_delete = _prototype("wd_function_delete", None, _P)
tag_delete = _prototype("wd_tag_delete", None, _P)
call_with_arguments = taking_arguments(_dll, "wd_call", _P)

EXTERNAL_FUNCTION, EXTERNAL_GLOBAL, EXTERNAL_TABLE, EXTERNAL_MEMORY, EXTERNAL_TAG = range(5)

store_external = _prototype("wd_store_external", _P, _P, *_TEXT, *_TEXT)
store_objects = _prototype("wd_store_objects", _P, _P, _P)
external_delete = _prototype("wd_external_delete", None, _P)
external_kind = _prototype("wd_external_kind", c_uint32, _P)
external_key = _prototype("wd_external_key", None, _P, _P, _P)
external_function = _prototype("wd_external_function", _P, _P, _P)
external_signature = _prototype("wd_external_signature", _P, _P, _P)
external_memory = _prototype("wd_external_memory", _P, _P)
memory_external = _prototype("wd_memory_external", _P, _P)
function_reference = _prototype("wd_function_reference", _N, _P, _P, _P)
reference_function = _prototype("wd_reference_function", _P, _P, _N)
global_new = _prototype("wd_global_new", _P, _P, c_uint8, c_bool, _P, _P)
global_read = _prototype("wd_global_read", c_uint32, _P, _P, _P, _P)
global_write = _prototype("wd_global_write", None, _P, _P, _P)
table_type = _prototype("wd_table_type", c_uint32, _P, _P)
table_size = _prototype("wd_table_size", c_uint32, _P, _P)
table_read = _prototype("wd_table_read", c_bool, _P, _P, c_uint32, _P)
table_write = _prototype("wd_table_write", c_bool, _P, _P, c_uint32, _P)
table_grow = _prototype("wd_table_grow", c_int64, _P, _P, c_uint32, _P)

memory_new = _prototype("wd_memory_new", _P, _P, c_uint32, c_int64, _P)
memory_delete = _prototype("wd_memory_delete", None, _P)
memory_data = _prototype("wd_memory_data", _N, _P, _P)
memory_size = _prototype("wd_memory_size", c_uint64, _P, _P)
memory_grow = _prototype("wd_memory_grow", c_int64, _P, _P, c_uint32)
memory_shared = _prototype("wd_memory_shared", _P, _P, _P, _P)
shared_new = _prototype("wd_shared_new", _P, _P, c_uint32, c_uint32, _P)
shared_delete = _prototype("wd_shared_delete", None, _P)
shared_data = _prototype("wd_shared_data", _N, _P)
shared_size = _prototype("wd_shared_size", c_uint64, _P)
shared_grow = _prototype("wd_shared_grow", c_int64, _P, c_uint32)

table_entry = _prototype("wd_table_entry", c_uint32, _P, _P, *_TEXT, c_uint32, _P)
table_signature = _prototype("wd_table_signature", _P, _P, _P, *_TEXT, c_uint32, _P)
