//! Stores: one thread's instances, what they can import, and the borrow of the native store.

use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use wasmer::{AsStoreMut, Extern, Function, Global, Store, StoreMut, Value};

use crate::border::{self, Failure};
use crate::calls;
use crate::checks::Checks;
use crate::engine::WdEngine;
use crate::host::{Callback, HostFunction, WdHost, signature};
use crate::limits::Limits;

/// A store. It lies at one place in memory until it is deleted.
pub struct WdStore {
    store: Store,
    /// The borrow of `store` that the innermost host function under way has lent; null if none is under way.
    lent: *mut StoreMut<'static>,
    names: HashMap<String, HashMap<String, Extern>>,
    host: WdHost,
    pub checks: Arc<Checks>,
    /// What checks call: put into the table of each instance that has them.
    pub reached: Option<Function>,
    pub stack_bytes: usize,
    limits: Arc<Limits>,
}

/// Runs with the native store.
///
/// While guest code runs, the store is borrowed by that call, which has lent the borrow to the host function; a call made
/// by the host function borrows from there. So each borrow is part of the one around it, whatever stores a thread nests.
///
/// # Safety
/// The store exists, and no other thread uses it.
pub unsafe fn with_store<R>(store: *mut WdStore, run: impl FnOnce(&mut StoreMut<'_>) -> R) -> R {
    // SAFETY: the fields are reached one by one, so that none is borrowed as part of the whole. Whoever lent the borrow is
    // in a call that this one is part of, and does not use it before this one has returned: see `lend`.
    unsafe {
        let lent = (*store).lent;
        if lent.is_null() { run(&mut (*store).store.as_store_mut()) } else { run(&mut *lent) }
    }
}

/// Lends a borrow of the native store while something runs, which may use the store by [`with_store`].
///
/// # Safety
/// The borrow is of this store, and by the thread that uses it.
pub unsafe fn lend<R>(store: *mut WdStore, borrow: &mut StoreMut<'_>, run: impl FnOnce() -> R) -> R {
    // SAFETY: the lifetime is only forgotten: the pointer is replaced before the borrow ends.
    unsafe {
        let former = (*store).lent;
        (*store).lent = ptr::from_mut(borrow).cast();
        let result = run();
        (*store).lent = former;
        result
    }
}

/// Returns what a module imports by a name.
///
/// # Safety
/// See [`with_store`].
pub unsafe fn import(store: *mut WdStore, namespace: &str, name: &str) -> Result<Extern, Failure> {
    // SAFETY: by this function's contract; the borrow of the names has ended before the store is used.
    unsafe {
        let found = (*store).names.get(namespace).and_then(|names| names.get(name));
        if let Some(known) = found {
            return Ok(known.clone());
        }
        let Some(function) = (*store).host.find(namespace, name) else {
            let text = format!("unknown import: {namespace}::{name} has not been defined");
            return Err(Failure::new(border::Kind::Link, text));
        };
        let made = calls::host_function(store, &function);
        define(store, namespace, name, made.clone().into());
        Ok(made.into())
    }
}

/// Makes something importable.
///
/// # Safety
/// See [`with_store`].
pub unsafe fn define(store: *mut WdStore, namespace: &str, name: &str, what: Extern) {
    // SAFETY: by this function's contract.
    let names = unsafe { &mut (*store).names };
    if let Some(known) = names.get_mut(namespace) {
        known.insert(name.to_string(), what);
    } else {
        names.insert(namespace.to_string(), HashMap::from([(name.to_string(), what)]));
    }
}

/// Makes a store that can import host functions. `reached` is called by checks, if the engine has any.
///
/// # Safety
/// The callback is there as long as the store; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_store_new(
    engine: &WdEngine,
    host: &WdHost,
    reached: Option<Callback>,
    failure: *mut *mut Failure,
) -> *mut WdStore {
    // SAFETY: by this function's contract.
    unsafe {
        let made = border::made(failure, || {
            let limits = Arc::new(Limits::default());
            Ok(WdStore {
                store: Store::new(engine.within(limits.clone())),
                lent: ptr::null_mut(),
                names: HashMap::new(),
                host: host.clone(),
                checks: Arc::default(),
                reached: None,
                stack_bytes: engine.stack_bytes,
                limits,
            })
        });
        if let (Some(callback), false) = (reached, made.is_null()) {
            engine.stores.add(&(*made).checks.clone());
            (*made).reached = border::or(None, || Some(calls::check_function(made, callback)));
        }
        made
    }
}

/// Frees a store and all that was made in it.
///
/// # Safety
/// It came from [`wd_store_new`], no call into it is under way, and it is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_store_delete(store: *mut WdStore) {
    // SAFETY: by this function's contract. The flags are forgotten before the instances go in which they lie.
    unsafe {
        (*store).checks.end();
        border::deleted(store);
    }
}

/// Bounds what instances made from now on define.
#[unsafe(no_mangle)]
pub extern "C" fn wd_store_limit(store: &WdStore, memory_bytes: u64, table_elements: u64) {
    store.limits.memory_bytes.store(memory_bytes, Ordering::Relaxed);
    store.limits.table_elements.store(table_elements, Ordering::Relaxed);
}

/// Makes a number importable: a global of type i32 that cannot be set.
///
/// # Safety
/// The texts are as long as said. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_store_define_number(
    store: *mut WdStore,
    namespace: *const u8,
    namespace_size: usize,
    name: *const u8,
    name_size: usize,
    value: u32,
) -> *mut Failure {
    border::done(|| {
        // SAFETY: by this function's contract.
        unsafe {
            let made = with_store(store, |native| Global::new(native, Value::I32(value.cast_signed())));
            define(store, &border::text(namespace, namespace_size), &border::text(name, name_size), made.into());
        }
        Ok(())
    })
}

/// Defines a host function in one store.
///
/// # Safety
/// The texts are as long as said; the callback is there as long as the store. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_store_define_host(
    store: *mut WdStore,
    namespace: *const u8,
    namespace_size: usize,
    name: *const u8,
    name_size: usize,
    kind: *const u8,
    kind_size: usize,
    callback: Callback,
) -> *mut Failure {
    border::done(|| {
        // SAFETY: by this function's contract.
        unsafe {
            let kind = signature(&border::text(kind, kind_size))?;
            let made = calls::host_function(store, &HostFunction { kind, callback });
            define(store, &border::text(namespace, namespace_size), &border::text(name, name_size), made.into());
        }
        Ok(())
    })
}
