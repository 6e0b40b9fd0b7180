//! The exceptions that a store's guest code has thrown.
//!
//! The engine keeps each one, with the stack trace that it takes of it, until the store is dropped: some 440 bytes. Nothing in
//! the engine says which are still referred to. When no guest code of the store runs, only its globals and tables can.

use wasmer::StoreMut;
use wasmer::sys::vm::{StoreObject, VMExceptionObj, VMTable};
use wasmer::{AsStoreMut, Type};

/// So many are kept without asking: what few programs throw in one call costs nothing.
const FEW: usize = 256;

/// Frees the exceptions of a store of which no guest code runs, if there are many and nothing refers to one.
pub fn forget(native: &mut StoreMut<'_>) {
    let objects = native.objects_mut().as_sys_mut();
    if VMExceptionObj::list(objects).len() <= FEW {
        return;
    }
    let in_table = VMTable::list(objects).iter().any(|table| table.ty().ty == Type::ExceptionRef);
    let in_global = objects.iter_globals().any(|global| {
        // SAFETY: a global lies in its instance, which lives as long as the store, and holds a value of its type.
        global.ty().ty == Type::ExceptionRef && unsafe { global.vmglobal().as_ref().val.exnref } != 0
    });
    if !in_table && !in_global {
        *VMExceptionObj::list_mut(objects) = Vec::new();
    }
}
