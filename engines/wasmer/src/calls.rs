//! Calls into the guest, and out of it.

use std::ptr;

use wasmer::{AsStoreMut, Function, FunctionEnv, FunctionEnvMut, RuntimeError, Value};
use wasmer_types::{RawValue, TrapCode};

use crate::border::{self, Failure, Raised};
use crate::host::{Callback, HostFunction};
use crate::stack;
use crate::store::{WdStore, lend, with_store};

/// A store's address, for functions that belong to the store and so do not outlive it.
#[derive(Clone, Copy)]
struct Home(*mut WdStore);

// SAFETY: the functions that hold it are called by the thread that uses the store.
unsafe impl Send for Home {}
// SAFETY: as above.
unsafe impl Sync for Home {}

impl Home {
    /// Calls a callback with the store lent; whether it raised is its result.
    fn call(
        self,
        env: &mut FunctionEnvMut<'_, ()>,
        callback: Callback,
        slots: &mut [RawValue],
    ) -> Result<(), RuntimeError> {
        let (data, count) = (slots.as_mut_ptr(), slots.len());
        // SAFETY: the store is the one whose guest code called, in this thread; the callback is there as long as the store.
        let ending = unsafe {
            lend(self.0, &mut env.as_store_mut(), || callback(ptr::null_mut(), ptr::null_mut(), data, count))
        };
        if ending.is_null() { Ok(()) } else { Err(RuntimeError::user(Box::new(Raised))) }
    }
}

/// Slots that a call needs without an allocation.
const FEW: usize = 16;

/// Makes a host function in a store.
///
/// # Safety
/// See [`with_store`].
pub unsafe fn host_function(store: *mut WdStore, function: &HostFunction) -> Function {
    let (home, callback, kind) = (Home(store), function.callback, function.kind.clone());
    let results = kind.results().to_vec();
    // SAFETY: by this function's contract.
    unsafe {
        with_store(store, |native| {
            let env = FunctionEnv::new(native, ());
            let called = move |mut env: FunctionEnvMut<'_, ()>, arguments: &[Value]| {
                let count = arguments.len().max(results.len());
                let (mut few, mut many) = ([RawValue::default(); FEW], Vec::new());
                let slots = if count <= FEW {
                    &mut few[..]
                } else {
                    many.resize(count, RawValue::default());
                    &mut many[..]
                };
                for (slot, argument) in slots.iter_mut().zip(arguments) {
                    *slot = argument.as_raw(&env);
                }
                home.call(&mut env, callback, &mut slots[..count])?;
                let typed = results.iter().zip(slots.iter());
                Ok(typed.map(|(kind, slot)| Value::from_raw(&mut env, *kind, *slot)).collect())
            };
            Function::new_with_env(native, &env, kind, called)
        })
    }
}

/// Makes the function that the checks of a store call. Its type is known, so exceptions of the guest pass it too.
///
/// # Safety
/// See [`with_store`].
pub unsafe fn check_function(store: *mut WdStore, callback: Callback) -> Function {
    let home = Home(store);
    // SAFETY: by this function's contract.
    unsafe {
        let checks = (*store).checks.clone();
        with_store(store, |native| {
            let env = FunctionEnv::new(native, ());
            let called = move |mut env: FunctionEnvMut<'_, ()>| {
                if !checks.begin() {
                    return Ok(());
                }
                let result = home.call(&mut env, callback, &mut []);
                checks.handled();
                result
            };
            Function::new_typed_with_env(native, &env, called)
        })
    }
}

/// Calls a function of the guest: arguments are taken from the slots, results put there.
///
/// # Safety
/// The function is one of the store, and there are as many slots as it has arguments or results, whichever are more.
/// See also [`with_store`].
pub unsafe fn call(store: *mut WdStore, function: &Function, slots: &mut [RawValue]) -> Result<(), Failure> {
    // SAFETY: by this function's contract.
    unsafe {
        let most = (*store).stack_bytes;
        stack::bounded(most, Err(Failure::trap(TrapCode::StackOverflow)), || {
            with_store(store, |native| match function.call_raw(native, slots.to_vec()) {
                Ok(values) => {
                    for (slot, value) in slots.iter_mut().zip(&values) {
                        *slot = value.as_raw(native);
                    }
                    Ok(())
                }
                Err(error) => Err(Failure::of_call(native, &error)),
            })
        })
    }
}

/// Calls a function of the guest; see [`call`]. Returns null always; a failure is put where the caller wants it.
///
/// # Safety
/// See [`call`]; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_call(
    store: *mut WdStore,
    function: &Function,
    slots: *mut RawValue,
    count: usize,
    failure: *mut *mut Failure,
) -> *mut Failure {
    // SAFETY: by this function's contract.
    unsafe {
        if let Err(error) = border::guarded(|| call(store, function, std::slice::from_raw_parts_mut(slots, count))) {
            *failure = error.boxed();
        }
    }
    ptr::null_mut()
}

/// Frees a function's handle; the function stays in its store.
///
/// # Safety
/// It came from this library and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_function_delete(function: *mut Function) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(function) }
}
