//! Linear memories, of one store and shared by all.

use std::sync::{Mutex, MutexGuard, PoisonError};

use wasmer::{AsStoreRef, Engine, Memory, MemoryType, SharedMemory, Store};

use crate::border::{self, Failure};
use crate::engine::WdEngine;
use crate::limits::Limits;
use crate::store::{self, WdStore, with_store};

/// Growth was refused.
const REFUSED: i64 = -1;

/// A shared memory, and a store of its own in which the host looks at it.
pub struct WdShared {
    shared: SharedMemory,
    own: Mutex<(Store, Memory)>,
    base: usize,
}

impl WdShared {
    fn new(engine: Engine, shared: SharedMemory) -> Self {
        let mut own = Store::new(engine);
        let memory = shared.clone().attach(&mut own);
        let base = memory.view(&own).data_ptr().addr();
        Self { shared, own: Mutex::new((own, memory)), base }
    }

    fn own(&self) -> MutexGuard<'_, (Store, Memory)> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a shared memory.
///
/// # Safety
/// `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_shared_new(
    engine: &WdEngine,
    minimum: u32,
    maximum: u32,
    failure: *mut *mut Failure,
) -> *mut WdShared {
    // SAFETY: by this function's contract.
    unsafe {
        border::made(failure, || {
            let engine = engine.within(Limits::default().into());
            let mut first = Store::new(engine.clone());
            let kind = MemoryType::new(minimum, Some(maximum), true);
            let memory = Memory::new(&mut first, kind).map_err(Failure::engine)?;
            let shared = memory.as_shared(&first).ok_or_else(|| Failure::engine("the memory is not shared"))?;
            Ok(WdShared::new(engine, shared))
        })
    }
}

/// Returns the shared memory that an instance exports; null, without a failure, if it is not shared.
///
/// # Safety
/// See [`with_store`]; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_memory_shared(
    store: *mut WdStore,
    memory: &Memory,
    failure: *mut *mut Failure,
) -> *mut WdShared {
    // SAFETY: by this function's contract.
    unsafe {
        let found = border::or(None, || {
            with_store(store, |native| {
                let shared = memory.ty(native).shared.then(|| memory.as_shared(native)).flatten()?;
                Some((native.as_store_ref().engine().clone(), shared))
            })
        });
        let Some((engine, shared)) = found else { return std::ptr::null_mut() };
        border::made(failure, || Ok(WdShared::new(engine, shared)))
    }
}

/// Frees a reference to a shared memory.
///
/// # Safety
/// It came from this library and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_shared_delete(memory: *mut WdShared) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(memory) }
}

/// Returns the address of a shared memory's first byte, which does not change.
#[unsafe(no_mangle)]
pub extern "C" fn wd_shared_data(memory: &WdShared) -> usize {
    memory.base
}

/// Returns the size of a shared memory in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn wd_shared_size(memory: &WdShared) -> u64 {
    border::or(0, || {
        let own = memory.own();
        own.1.view(&own.0).data_size()
    })
}

/// Grows a shared memory by pages; returns the former size in pages, or -1.
#[unsafe(no_mangle)]
pub extern "C" fn wd_shared_grow(memory: &WdShared, pages: u32) -> i64 {
    border::or(REFUSED, || {
        let mut own = memory.own();
        let (store, memory) = &mut *own;
        memory.grow(store, pages).map_or(REFUSED, |former| i64::from(former.0))
    })
}

/// Makes a shared memory importable.
///
/// # Safety
/// The texts are as long as said. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_store_define_shared(
    store: *mut WdStore,
    namespace: *const u8,
    namespace_size: usize,
    name: *const u8,
    name_size: usize,
    memory: &WdShared,
) -> *mut Failure {
    border::done(|| {
        // SAFETY: by this function's contract.
        unsafe {
            let attached = with_store(store, |native| memory.shared.clone().attach(native));
            store::define(
                store,
                &border::text(namespace, namespace_size),
                &border::text(name, name_size),
                attached.into(),
            );
        }
        Ok(())
    })
}

/// Makes a memory of one store. A negative maximum is none.
///
/// # Safety
/// See [`with_store`]; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_memory_new(
    store: *mut WdStore,
    minimum: u32,
    maximum: i64,
    failure: *mut *mut Failure,
) -> *mut Memory {
    // SAFETY: by this function's contract.
    unsafe {
        border::made(failure, || {
            let kind = MemoryType::new(minimum, u32::try_from(maximum).ok(), false);
            with_store(store, |native| Memory::new(native, kind)).map_err(Failure::engine)
        })
    }
}

/// Frees a memory's handle; the memory stays in its store.
///
/// # Safety
/// It came from this library and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_memory_delete(memory: *mut Memory) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(memory) }
}

/// Returns the address of a memory's first byte.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_memory_data(store: *mut WdStore, memory: &Memory) -> usize {
    // SAFETY: by this function's contract.
    border::or(0, || unsafe { with_store(store, |native| memory.view(native).data_ptr().addr()) })
}

/// Returns the size of a memory in bytes.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_memory_size(store: *mut WdStore, memory: &Memory) -> u64 {
    // SAFETY: by this function's contract.
    border::or(0, || unsafe { with_store(store, |native| memory.view(native).data_size()) })
}

/// Grows a memory by pages; returns the former size in pages, or -1.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_memory_grow(store: *mut WdStore, memory: &Memory, pages: u32) -> i64 {
    // SAFETY: by this function's contract.
    border::or(REFUSED, || unsafe {
        with_store(store, |native| memory.grow(native, pages).map_or(REFUSED, |former| i64::from(former.0)))
    })
}

/// Makes a memory of a store importable in it.
///
/// # Safety
/// The texts are as long as said. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_store_define_memory(
    store: *mut WdStore,
    namespace: *const u8,
    namespace_size: usize,
    name: *const u8,
    name_size: usize,
    memory: &Memory,
) -> *mut Failure {
    border::done(|| {
        // SAFETY: by this function's contract.
        unsafe {
            store::define(
                store,
                &border::text(namespace, namespace_size),
                &border::text(name, name_size),
                memory.clone().into(),
            );
        }
        Ok(())
    })
}
