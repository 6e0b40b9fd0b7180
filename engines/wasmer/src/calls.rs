//! Calls into the guest, and out of it.
//!
//! They are made of what `wasmer::Function` is made of, and leave out what it does on top: copies of all values, by way of a
//! type that tells kinds of values apart, and notes of which store runs, which only its own functions of the host read.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::Arc;

use wasmer::sys::vm::{
    InternalStoreHandle, MaybeInstanceOwned, VMCallerCheckedAnyfunc, VMContext, VMDynamicFunctionContext, VMExtern,
    VMFunction, VMFunctionBody, VMFunctionContext, VMFunctionKind, VMTrampoline, on_host_stack, raise_user_trap,
    wasmer_call_trampoline,
};
use wasmer::{AsStoreMut, Extern, Function, FunctionType, Memory, StoreMut, VMExternToExtern};
use wasmer_types::{RawValue, TrapCode};

use crate::border::{self, Failure, Raised};
use crate::checks::Checks;
use crate::host::{Callback, HostFunction};
use crate::stack;
use crate::store::{Running, WdStore, with_store};

/// What a function of the host calls.
struct HostCall {
    store: *mut WdStore,
    callback: Callback,
    slots: usize,
    memory: *const Memory,
}

impl HostCall {
    /// Calls the callback on the thread's own stack; it raised if this is not null.
    unsafe fn run(&self, slots: *mut RawValue) -> bool {
        // SAFETY: by the contract of callbacks; the store is the one whose guest code calls, in the thread that uses it.
        on_host_stack(|| unsafe { !(self.callback)(self.memory, self.store, slots, self.slots).is_null() })
    }
}

/// A [`HostCall`] behind the address of [`called`], where the engine's trampolines for functions of any signature look for it.
type Called = VMDynamicFunctionContext<HostCall>;

/// What the engine's trampolines call.
unsafe extern "C-unwind" fn called(function: *const Called, slots: *mut RawValue) {
    // SAFETY: the trampolines pass what they were given, and as many slots as the signature has.
    unsafe {
        if (*function).ctx.run(slots) {
            // Nothing here has a destructor: what raised leaves the stack without them.
            raise_user_trap(Box::new(Raised));
        }
    }
}

/// What a call by the host calls, see [`WdFunction`]: the function itself, whose trampolines belong to modules that import it.
unsafe extern "C" fn called_by_host(function: *mut VMContext, _code: *const VMFunctionBody, slots: *mut RawValue) {
    // SAFETY: as above.
    unsafe { called(function.cast(), slots) }
}

/// A check's call.
struct Check {
    call: HostCall,
    checks: Arc<Checks>,
}

/// What checks call. Its signature is known, so it needs no trampoline.
unsafe extern "C-unwind" fn checked(function: *const Check) {
    let run = || {
        // SAFETY: as above.
        unsafe {
            if !(*function).checks.begin() {
                return false;
            }
            let raised = (*function).call.run(ptr::null_mut());
            (*function).checks.handled();
            raised
        }
    };
    if on_host_stack(run) {
        // SAFETY: guest code called, and nothing here has a destructor.
        unsafe { raise_user_trap(Box::new(Raised)) }
    }
}

/// A check is called by guest code alone.
unsafe extern "C" fn checked_by_host(_function: *mut VMContext, _code: *const VMFunctionBody, _slots: *mut RawValue) {}

/// Makes a function whose code gets the address of some data first.
fn made<D: Any>(
    native: &mut StoreMut<'_>,
    signature: FunctionType,
    (kind, code, call_trampoline): (VMFunctionKind, *const VMFunctionBody, VMTrampoline),
    mut data: Box<D>,
) -> (usize, Function) {
    let type_signature_hash = native.engine().as_sys().register_signature(&signature);
    let address = &raw mut *data;
    let vmctx = VMFunctionContext { host_env: address.cast() };
    let anyfunc = VMCallerCheckedAnyfunc { func_ptr: code, type_signature_hash, vmctx, call_trampoline };
    let anyfunc = MaybeInstanceOwned::Host(Box::new(UnsafeCell::new(anyfunc)));
    let function = VMFunction { anyfunc, signature, kind, host_data: data };
    let handle = InternalStoreHandle::new(native.objects_mut().as_sys_mut(), function);
    match VMExtern::Function(handle).to_extern(native) {
        Extern::Function(function) => (address.expose_provenance(), function),
        _ => unreachable!("a function is a function"),
    }
}

/// Makes a host function in a store; returns the address of what its code gets first as well.
///
/// # Safety
/// See [`with_store`].
pub unsafe fn host_function(store: *mut WdStore, function: &HostFunction) -> (usize, Function) {
    let kind = function.kind.clone();
    let slots = kind.params().len().max(kind.results().len());
    let call = HostCall { store, callback: function.callback, slots, memory: ptr::null() };
    let data = Box::new(Called { address: called as *const VMFunctionBody, ctx: call });
    // SAFETY: by this function's contract. The address of its code is filled in by the engine, when a module imports it.
    unsafe {
        let code = (VMFunctionKind::Dynamic, ptr::null(), called_by_host as VMTrampoline);
        let (address, made) = with_store(store, |native| made(native, kind, code, data));
        (*store).host_functions.insert(address, made.clone());
        (address, made)
    }
}

/// Has a host function's callback get a memory.
///
/// # Safety
/// The address is one of [`host_function`], of a store that keeps the memory. See also [`with_store`].
pub unsafe fn tell_memory(address: usize, memory: *const Memory) {
    // SAFETY: by this function's contract.
    unsafe { (*ptr::with_exposed_provenance_mut::<Called>(address)).ctx.memory = memory };
}

/// Makes the function that the checks of a store call.
///
/// # Safety
/// See [`with_store`].
pub unsafe fn check_function(store: *mut WdStore, callback: Callback) -> Function {
    // SAFETY: by this function's contract.
    unsafe {
        let call = HostCall { store, callback, slots: 0, memory: ptr::null() };
        let data = Box::new(Check { call, checks: (*store).checks.clone() });
        let code = (VMFunctionKind::Static, checked as *const VMFunctionBody, checked_by_host as VMTrampoline);
        with_store(store, |native| made(native, FunctionType::new([], []), code, data)).1
    }
}

/// A function of a store, as calls need it: what lies here is looked up once. It is not used after its store.
pub struct WdFunction {
    store: *mut WdStore,
    environment: VMFunctionContext,
    trampoline: VMTrampoline,
    code: *const VMFunctionBody,
}

impl WdFunction {
    /// Returns a function of a store.
    ///
    /// # Safety
    /// See [`with_store`].
    pub unsafe fn new(store: *mut WdStore, function: &Function) -> Self {
        // SAFETY: by this function's contract; what describes a function lives as long as the store.
        unsafe {
            let described = *described(store, function);
            let (environment, trampoline) = (described.vmctx, described.call_trampoline);
            Self { store, environment, trampoline, code: described.func_ptr }
        }
    }
}

/// Returns what describes a function: at an address that does not change.
///
/// # Safety
/// See [`with_store`].
pub unsafe fn described(store: *mut WdStore, function: &Function) -> *mut VMCallerCheckedAnyfunc {
    let VMExtern::Function(handle) = Extern::Function(function.clone()).to_vm_extern().unwrap_sys() else {
        unreachable!("a function is a function");
    };
    // SAFETY: by this function's contract.
    unsafe { with_store(store, |native| handle.get(native.objects_mut().as_sys()).anyfunc.as_ptr().as_ptr()) }
}

/// Calls a function of the guest: arguments are taken from the slots, results put there.
///
/// # Safety
/// There are as many slots as the function has arguments or results, whichever are more. See also [`with_store`].
pub unsafe fn call(function: &WdFunction, slots: *mut RawValue) -> Result<(), Failure> {
    // SAFETY: by this function's contract. The trampoline is the one of the function's signature: it reads all arguments
    // before the first instruction of the guest, and writes all results after the last. Nothing borrows the store.
    unsafe {
        let WdFunction { store, environment, trampoline, code } = *function;
        let _running = Running::begin(store);
        stack::bounded((*store).stack_bytes, Err(Failure::trap(TrapCode::StackOverflow)), || {
            wasmer_call_trampoline(None, &(*store).config, environment, trampoline, code, slots.cast())
                .map_err(|trap| with_store(store, |native| Failure::of_call(native, &trap.into())))
        })
    }
}

/// Calls a function of the guest; see [`call`]. Returns null always; a failure is put where the caller wants it.
///
/// # Safety
/// See [`call`]; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_call(
    function: &WdFunction,
    slots: *mut RawValue,
    _count: usize,
    failure: *mut *mut Failure,
) -> *mut Failure {
    // SAFETY: by this function's contract.
    unsafe {
        if let Err(error) = border::guarded(|| call(function, slots)) {
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
pub unsafe extern "C" fn wd_function_delete(function: *mut WdFunction) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(function) }
}
