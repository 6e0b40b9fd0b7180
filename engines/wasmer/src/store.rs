//! Stores: one thread's instances, what they can import, and the borrow of the native store.

use std::collections::HashMap;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use wasmer::sys::vm::VMConfig;
use wasmer::{AsStoreMut, Extern, Function, Global, Memory, Store, StoreMut, Value};

use crate::border::{self, Failure};
use crate::calls;
use crate::checks::Checks;
use crate::engine::WdEngine;
use crate::exceptions;
use crate::host::{Callback, HostFunction, WdHost, signature};
use crate::instance::{WdInstance, visible};
use crate::limits::Limits;
use crate::rewrite::PRIVATE;

/// What is importable from a namespace.
#[derive(Default)]
struct Namespace {
    /// All exports of this instance, but for the names below.
    instance: Option<WdInstance>,
    names: HashMap<String, Extern>,
}

impl Namespace {
    fn find(&self, name: &str) -> Option<&Extern> {
        self.names.get(name).or_else(|| visible(self.instance.as_ref()?, name))
    }
}

/// A store. It lies at one place in memory until it is deleted.
pub struct WdStore {
    store: Store,
    names: HashMap<String, Namespace>,
    host: WdHost,
    /// The functions of the host that were made here, by the address of what their code gets first.
    pub host_functions: HashMap<usize, Function>,
    /// Those of them that belong to who calls them, by the same address.
    of_callers: HashMap<usize, HostFunction>,
    /// The memories that such functions were told of.
    #[expect(clippy::vec_box, reason = "the functions have their addresses")]
    memories: Vec<Box<Memory>>,
    /// The functions that references were turned into, by the reference.
    pub referred: HashMap<usize, Function>,
    pub checks: Arc<Checks>,
    /// What checks call: put into the table of each instance that has them.
    pub reached: Option<Function>,
    /// Calls into the guest that are under way, one inside the other.
    running: u32,
    pub config: VMConfig,
    pub stack_bytes: usize,
    limits: Arc<Limits>,
}

/// Runs with the native store. No guest code runs meanwhile: calls into the guest use no borrow of the store, so that functions of
/// the host, which they call, can use it.
///
/// # Safety
/// The store exists, and no other thread uses it; what runs calls no guest code, and does not do this again.
pub unsafe fn with_store<R>(store: *mut WdStore, run: impl FnOnce(&mut StoreMut<'_>) -> R) -> R {
    // SAFETY: the field is reached by itself, so that the rest of the store can be used meanwhile.
    unsafe { run(&mut (*store).store.as_store_mut()) }
}

/// A call into the guest that is under way.
pub struct Running(*mut WdStore);

impl Running {
    /// Begins a call into a store's guest code.
    ///
    /// # Safety
    /// See [`with_store`]; the store outlives what this returns.
    pub unsafe fn begin(store: *mut WdStore) -> Self {
        // SAFETY: by this function's contract.
        unsafe { (*store).running += 1 };
        Self(store)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: by the contract of `begin`; the guest code that the call ran has left its stack.
        unsafe {
            (*self.0).running -= 1;
            if (*self.0).running == 0 {
                with_store(self.0, exceptions::forget);
            }
        }
    }
}

/// Returns what a module imports by a name.
///
/// # Safety
/// See [`with_store`].
pub unsafe fn import(store: *mut WdStore, namespace: &str, name: &str) -> Result<Extern, Failure> {
    // SAFETY: by this function's contract; the borrow of the names has ended before the store is used.
    unsafe {
        let found = (*store).names.get(namespace).and_then(|names| names.find(name));
        if let Some(known) = found {
            return Ok(known.clone());
        }
        let Some(function) = (*store).host.find(namespace, name) else {
            let text = format!("unknown import: {namespace}::{name} has not been defined");
            return Err(Failure::new(border::Kind::Link, text));
        };
        let made = calls::host_function(store, &function).1;
        define(store, namespace, name, made.clone().into());
        Ok(made.into())
    }
}

/// Returns what an instance imports in place of something; if that is a function that belongs to who calls it, a function of
/// the instance's own, whose address is added to a list.
///
/// # Safety
/// See [`with_store`].
pub unsafe fn own_import(store: *mut WdStore, import: Extern, own: &mut Vec<usize>) -> Extern {
    // SAFETY: by this function's contract.
    unsafe {
        let Extern::Function(function) = &import else { return import };
        if (*store).of_callers.is_empty() {
            return import;
        }
        let address = (*calls::described(store, function)).vmctx.host_env.addr();
        let Some(function) = (*store).of_callers.get(&address).cloned() else { return import };
        let (address, made) = calls::host_function(store, &function);
        (*store).of_callers.insert(address, function);
        own.push(address);
        made.into()
    }
}

/// Tells functions of an instance's own of its memory.
///
/// # Safety
/// The addresses are those of [`own_import`]. See also [`with_store`].
pub unsafe fn tell_memory(store: *mut WdStore, own: &[usize], memory: &Memory) {
    // SAFETY: by this function's contract.
    unsafe {
        let memory = Box::new(memory.clone());
        for address in own {
            calls::tell_memory(*address, &raw const *memory);
        }
        (*store).memories.push(memory);
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
        known.names.insert(name.to_string(), what);
    } else {
        let names_of = HashMap::from([(name.to_string(), what)]);
        names.insert(namespace.to_string(), Namespace { instance: None, names: names_of });
    }
}

/// Makes all exports of an instance importable. The first instance of a namespace is kept as it is: most are asked for little.
///
/// # Safety
/// See [`with_store`].
pub unsafe fn define_exports(store: *mut WdStore, namespace: &str, instance: &WdInstance) {
    // SAFETY: by this function's contract.
    let names = unsafe { &mut (*store).names };
    if let Some(known) = names.get_mut(namespace) {
        let exports = instance.exports.iter().filter(|(name, _)| !name.starts_with(PRIVATE));
        known.names.extend(exports.map(|(name, export)| (name.clone(), export.clone())));
    } else {
        let made = Namespace { instance: Some(instance.clone()), names: HashMap::new() };
        names.insert(namespace.to_string(), made);
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
                names: HashMap::new(),
                host: host.clone(),
                host_functions: HashMap::new(),
                of_callers: HashMap::new(),
                memories: Vec::new(),
                referred: HashMap::new(),
                checks: Arc::default(),
                reached: None,
                running: 0,
                config: engine.config(),
                stack_bytes: engine.stack_bytes,
                limits,
            })
        });
        let (Some(callback), false) = (reached, made.is_null()) else { return made };
        match border::guarded(|| Ok(calls::check_function(made, callback))) {
            Ok(function) => {
                (*made).reached = Some(function);
                engine.stores.add(&(*made).checks);
                made
            }
            Err(error) => {
                *failure = error.boxed();
                border::deleted(made);
                ptr::null_mut()
            }
        }
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

/// Defines a host function in one store. It belongs to who calls it: each instance that imports it has one of its own, which
/// gets the memory that the instance exports as `memory`, or null if it exports none.
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
            let function = HostFunction { kind, callback };
            let (address, made) = calls::host_function(store, &function);
            (*store).of_callers.insert(address, function);
            define(store, &border::text(namespace, namespace_size), &border::text(name, name_size), made.into());
        }
        Ok(())
    })
}
