//! What a table holds.

use std::ptr::NonNull;

use wasmer::sys::vm::{TableElement, VMCallerCheckedAnyfunc, VMExtern, VMSignatureHash};
use wasmer::{AsStoreMut, AsStoreRef, Extern, Instance};

use crate::border::{self, Failure};
use crate::engine::WdBytes;
use crate::host::signature_text;
use crate::instance::WdInstance;
use crate::store::{WdStore, with_store};

/// What tells a function from others: equal for the same function of the guest in all stores.
#[repr(C)]
pub struct Entry {
    code: usize,
    trampoline: usize,
    signature: VMSignatureHash,
}

/// Returns what describes the function that an exported table holds at an index.
///
/// The engine's own way, `Table::get`, makes a handle in the store each time, which is only freed with the store.
unsafe fn held(
    store: *mut WdStore,
    instance: &Instance,
    name: &str,
    index: u32,
) -> Option<NonNull<VMCallerCheckedAnyfunc>> {
    let found = instance.exports.get_extern(name)?;
    let VMExtern::Table(table) = found.to_vm_extern().unwrap_sys() else { return None };
    // SAFETY: by this function's contract, which is that of `with_store`.
    let element = unsafe { with_store(store, |native| table.get(native.objects_mut().as_sys()).get(index)) };
    match element? {
        TableElement::FuncRef(function) => Some(function?.0),
        TableElement::ExternRef(_) => None,
    }
}

/// Tells what an exported table holds at an index: 0 if nothing is there, 1 a function, 2 if there is no such table.
///
/// # Safety
/// The text is as long as said. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_table_entry(
    store: *mut WdStore,
    instance: &WdInstance,
    name: *const u8,
    size: usize,
    index: u32,
    out: &mut Entry,
) -> u32 {
    border::or(0, || {
        // SAFETY: by this function's contract. What describes a function lives as long as its store.
        unsafe {
            let name = border::text(name, size);
            if !matches!(instance.exports.get_extern(&name), Some(Extern::Table(_))) {
                return 2;
            }
            let Some(described) = held(store, instance, &name, index) else { return 0 };
            let described = described.as_ref();
            *out = Entry {
                code: described.func_ptr.addr(),
                trampoline: described.call_trampoline as usize,
                signature: described.type_signature_hash,
            };
            1
        }
    })
}

/// Returns the signature of the function that an exported table holds at an index; null if it holds none.
///
/// # Safety
/// As for [`wd_table_entry`]; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_table_signature(
    store: *mut WdStore,
    instance: &WdInstance,
    name: *const u8,
    size: usize,
    index: u32,
    failure: *mut *mut Failure,
) -> *mut WdBytes {
    // SAFETY: by this function's contract.
    unsafe {
        let name = border::text(name, size);
        let Some(described) = border::or(None, || held(store, instance, &name, index)) else {
            return std::ptr::null_mut();
        };
        border::made(failure, || {
            let hash = described.as_ref().type_signature_hash;
            let kind = with_store(store, |native| native.as_store_ref().engine().as_sys().lookup_signature(hash));
            let kind = kind.ok_or_else(|| Failure::engine("the engine does not know the function's signature"))?;
            Ok(WdBytes::from(signature_text(&kind)))
        })
    }
}
