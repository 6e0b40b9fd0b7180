//! Externals as objects: functions, globals, tables, memories and tags of a store, and the references that they hold.
//!
//! A reference to a function is the address of what describes it. One to an object of the host's is a number that the adapter
//! gives: guest code only passes it on, and so does the engine.

use std::ptr;

use wasmer::sys::vm::{
    InternalStoreHandle, StoreObject, TableElement, VMCallerCheckedAnyfunc, VMExceptionObj, VMExtern, VMExternRef,
    VMFuncRef, VMGlobal, VMTable,
};
use wasmer::{AsStoreMut, Extern, Function, Instance, Memory, Module, StoreMut, Type, VMExternToExtern};
use wasmer_types::{GlobalType, Mutability, RawValue};

use crate::border::{self, Failure};
use crate::calls::{WdFunction, described};
use crate::engine::WdBytes;
use crate::host::{letter, signature_text, value_type};
use crate::rewrite::unsigned;
use crate::store::{self, WdStore, with_store};

/// Returns what is importable by a namespace and a name, or null.
///
/// # Safety
/// The texts are as long as said. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_store_external(
    store: *mut WdStore,
    namespace: *const u8,
    namespace_size: usize,
    name: *const u8,
    name_size: usize,
) -> *mut Extern {
    border::or(ptr::null_mut(), || {
        // SAFETY: by this function's contract.
        let found =
            unsafe { store::import(store, &border::text(namespace, namespace_size), &border::text(name, name_size)) };
        found.map_or(ptr::null_mut(), |found| Box::into_raw(Box::new(found)))
    })
}

/// Frees an external's handle; the external stays in its store.
///
/// # Safety
/// It came from this library and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_external_delete(external: *mut Extern) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(external) }
}

/// Returns what an external is: 0 a function, 1 a global, 2 a table, 3 a memory, 4 a tag.
#[unsafe(no_mangle)]
pub extern "C" fn wd_external_kind(external: &Extern) -> u32 {
    match external {
        Extern::Function(_) => 0,
        Extern::Global(_) => 1,
        Extern::Table(_) => 2,
        Extern::Memory(_) => 3,
        Extern::Tag(_) => 4,
    }
}

fn number<T>(handle: InternalStoreHandle<T>) -> u64 {
    // SAFETY: it is documented to be an integer, and declared as one that is transparent; only its name is private.
    unsafe { std::mem::transmute::<InternalStoreHandle<T>, usize>(handle) as u64 }
}

/// Tells two numbers that are equal for two externals of one kind in a store exactly if they are the same external.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_external_key(store: *mut WdStore, external: &Extern, out: &mut [u64; 2]) {
    *out = border::or([0; 2], || match external.to_vm_extern().unwrap_sys() {
        // Each instance that imports a function, and each that refers to it, has a description of its own.
        VMExtern::Function(_) => match external {
            // SAFETY: by this function's contract.
            Extern::Function(function) => unsafe {
                let described = described(store, function);
                let environment = (*described).vmctx.host_env.addr();
                let of_host = (*store).host_functions.contains_key(&environment);
                [environment as u64, if of_host { 0 } else { (*described).func_ptr.addr() as u64 }]
            },
            _ => [0; 2],
        },
        VMExtern::Global(handle) => [number(handle), 0],
        VMExtern::Table(handle) => [number(handle), 0],
        VMExtern::Memory(handle) => [number(handle), 0],
        VMExtern::Tag(handle) => [number(handle), 0],
    });
}

/// Returns a function to be called, or null if an external is none.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_external_function(store: *mut WdStore, external: &Extern) -> *mut WdFunction {
    border::or(ptr::null_mut(), || match external {
        // SAFETY: by this function's contract.
        Extern::Function(function) => Box::into_raw(Box::new(unsafe { WdFunction::new(store, function) })),
        _ => ptr::null_mut(),
    })
}

/// Returns the signature of a function, or null if an external is none.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_external_signature(store: *mut WdStore, external: &Extern) -> *mut WdBytes {
    border::or(ptr::null_mut(), || match external {
        Extern::Function(function) => {
            // SAFETY: by this function's contract.
            let kind = unsafe { with_store(store, |native| function.ty(native)) };
            Box::into_raw(Box::new(WdBytes::from(signature_text(&kind))))
        }
        _ => ptr::null_mut(),
    })
}

/// Returns a memory, or null if an external is none.
#[unsafe(no_mangle)]
pub extern "C" fn wd_external_memory(external: &Extern) -> *mut Memory {
    match external {
        Extern::Memory(memory) => Box::into_raw(Box::new(memory.clone())),
        _ => ptr::null_mut(),
    }
}

/// Returns a memory as an external.
#[unsafe(no_mangle)]
pub extern "C" fn wd_memory_external(memory: &Memory) -> *mut Extern {
    Box::into_raw(Box::new(Extern::Memory(memory.clone())))
}

/// Returns a reference to a function, which lives as long as the store; 0 and a failure if there can be none.
///
/// # Safety
/// See [`with_store`]; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_function_reference(
    store: *mut WdStore,
    external: &Extern,
    failure: *mut *mut Failure,
) -> usize {
    let made = border::guarded(|| {
        let Extern::Function(function) = external else { return Err(Failure::engine("it is no function")) };
        // SAFETY: by this function's contract.
        unsafe {
            let described = described(store, function);
            if (*described).func_ptr.is_null() {
                give_code(store, function)?;
            }
            Ok(described.expose_provenance())
        }
    });
    made.unwrap_or_else(|error| {
        // SAFETY: by this function's contract.
        unsafe { *failure = error.boxed() };
        0
    })
}

/// Has the engine give a function of the host code that guest code can call: it takes that of a module that imports it.
///
/// # Safety
/// See [`with_store`].
unsafe fn give_code(store: *mut WdStore, function: &Function) -> Result<(), Failure> {
    // SAFETY: by this function's contract.
    unsafe {
        with_store(store, |native| {
            let kind = function.ty(native);
            let module = Module::new(&native.engine().clone(), importer(kind.params(), kind.results()));
            let module = module.map_err(Failure::engine)?;
            Instance::new_by_index(native, &module, &[function.clone().into()]).map_err(Failure::engine)?;
            Ok(())
        })
    }
}

/// Returns a module that imports a function and nothing else.
fn importer(params: &[Type], results: &[Type]) -> Vec<u8> {
    let mut kind = vec![1, 0x60];
    for types in [params, results] {
        unsigned(types.len() as u64, &mut kind);
        kind.extend(types.iter().map(|one| match one {
            Type::I32 => 0x7f,
            Type::I64 => 0x7e,
            Type::F32 => 0x7d,
            Type::F64 => 0x7c,
            Type::V128 => 0x7b,
            Type::FuncRef => 0x70,
            Type::ExternRef => 0x6f,
            Type::ExceptionRef => 0x69,
        }));
    }
    let mut wasm = b"\0asm\x01\0\0\0\x01".to_vec();
    unsigned(kind.len() as u64, &mut wasm);
    wasm.extend(kind);
    wasm.extend([2, 5, 1, 0, 0, 0, 0]); // one import, without names, of that type
    wasm
}

/// Returns the function that a reference stands for.
///
/// # Safety
/// The reference is one of the store, not null. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_reference_function(store: *mut WdStore, reference: usize) -> *mut Extern {
    border::or(ptr::null_mut(), || {
        // SAFETY: by this function's contract.
        let function = unsafe { referred(store, reference) };
        Box::into_raw(Box::new(Extern::Function(function)))
    })
}

/// Returns the function that a reference stands for; the same one each time, since the store keeps all that are made.
///
/// # Safety
/// The reference is one of the store, not null. See also [`with_store`].
pub unsafe fn referred(store: *mut WdStore, reference: usize) -> Function {
    // SAFETY: by this function's contract.
    unsafe {
        let described = ptr::with_exposed_provenance_mut::<VMCallerCheckedAnyfunc>(reference);
        if let Some(known) = (*store).host_functions.get(&(*described).vmctx.host_env.addr()) {
            return known.clone();
        }
        if let Some(known) = (*store).referred.get(&reference) {
            return known.clone();
        }
        let made =
            with_store(store, |native| wasmer::Value::from_raw(native, Type::FuncRef, RawValue { funcref: reference }));
        let wasmer::Value::FuncRef(Some(function)) = made else { unreachable!("it is no null") };
        (*store).referred.insert(reference, function.clone());
        function
    }
}

fn global(external: &Extern) -> Option<InternalStoreHandle<VMGlobal>> {
    match external.to_vm_extern().unwrap_sys() {
        VMExtern::Global(handle) => Some(handle),
        _ => None,
    }
}

/// Makes a global of a value.
///
/// # Safety
/// A reference in the value is one of the store. See also [`with_store`]; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_global_new(
    store: *mut WdStore,
    kind: u8,
    mutable: bool,
    value: &RawValue,
    failure: *mut *mut Failure,
) -> *mut Extern {
    // SAFETY: by this function's contract.
    unsafe {
        border::made(failure, || {
            let mutability = if mutable { Mutability::Var } else { Mutability::Const };
            let global = VMGlobal::new(GlobalType::new(value_type(kind)?, mutability));
            global.vmglobal().as_mut().val = *value;
            Ok(with_store(store, |native| {
                let handle = InternalStoreHandle::new(native.objects_mut().as_sys_mut(), global);
                VMExtern::Global(handle).to_extern(native)
            }))
        })
    }
}

/// Tells a global's value, whether it can change, and the letter of its type; 0 if an external is no global.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_global_read(
    store: *mut WdStore,
    external: &Extern,
    value: &mut RawValue,
    mutable: &mut bool,
) -> u32 {
    border::or(0, || {
        let Some(handle) = global(external) else { return 0 };
        // SAFETY: by this function's contract.
        unsafe {
            with_store(store, |native| {
                let global = handle.get(native.objects_mut().as_sys());
                *value = global.vmglobal().as_ref().val;
                *mutable = global.ty().mutability == Mutability::Var;
                letter(global.ty().ty) as u32
            })
        }
    })
}

/// Sets a global, which can change, to a value of its type.
///
/// # Safety
/// A reference in the value is one of the store. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_global_write(store: *mut WdStore, external: &Extern, value: &RawValue) {
    border::or((), || {
        let Some(handle) = global(external) else { return };
        // SAFETY: by this function's contract.
        unsafe {
            with_store(store, |native| {
                handle.get(native.objects_mut().as_sys()).vmglobal().as_mut().val = *value;
            });
        }
    });
}

/// Runs with a table; None if an external is none.
unsafe fn with_table<R>(store: *mut WdStore, external: &Extern, run: impl FnOnce(&mut VMTable) -> R) -> Option<R> {
    border::or(None, || {
        let VMExtern::Table(handle) = external.to_vm_extern().unwrap_sys() else { return None };
        // SAFETY: by the contract of the function that calls.
        unsafe { with_store(store, |native| Some(run(handle.get_mut(native.objects_mut().as_sys_mut())))) }
    })
}

/// Returns the element of a table that a reference is.
///
/// # Safety
/// It is null, or a reference of the store.
unsafe fn element(table: &VMTable, reference: RawValue) -> TableElement {
    // SAFETY: by this function's contract.
    unsafe {
        match table.ty().ty {
            Type::ExternRef => TableElement::ExternRef(VMExternRef::from_raw(reference)),
            _ => TableElement::FuncRef(VMFuncRef::from_raw(reference)),
        }
    }
}

/// Returns the reference that an element of a table is; 0 for null.
fn reference(element: TableElement) -> RawValue {
    let made = match element {
        TableElement::FuncRef(function) => function.map(VMFuncRef::into_raw),
        TableElement::ExternRef(object) => object.map(VMExternRef::into_raw),
    };
    made.unwrap_or(RawValue { funcref: 0 })
}

/// Returns the letter of the type of a table's elements; 0 if an external is no table.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_table_type(store: *mut WdStore, external: &Extern) -> u32 {
    // SAFETY: by this function's contract.
    unsafe { with_table(store, external, |table| letter(table.ty().ty) as u32).unwrap_or(0) }
}

/// Returns the number of a table's elements.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_table_size(store: *mut WdStore, external: &Extern) -> u32 {
    // SAFETY: by this function's contract.
    unsafe { with_table(store, external, |table| table.size()).unwrap_or(0) }
}

/// Tells an element of a table; false if there is none.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_table_read(store: *mut WdStore, external: &Extern, index: u32, out: &mut RawValue) -> bool {
    // SAFETY: by this function's contract.
    let found = unsafe { with_table(store, external, |table| table.get(index)) };
    match found.flatten() {
        Some(element) => {
            *out = reference(element);
            true
        }
        None => false,
    }
}

/// Sets an element of a table; false if there is none.
///
/// # Safety
/// The value is null or a reference of the store, of the table's type. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_table_write(store: *mut WdStore, external: &Extern, index: u32, value: &RawValue) -> bool {
    // SAFETY: by this function's contract.
    unsafe { with_table(store, external, |table| table.set(index, element(table, *value)).is_ok()).unwrap_or(false) }
}

/// Grows a table by elements of a value; returns the former size, or -1.
///
/// # Safety
/// As for [`wd_table_write`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_table_grow(store: *mut WdStore, external: &Extern, count: u32, value: &RawValue) -> i64 {
    // SAFETY: by this function's contract.
    let former = unsafe { with_table(store, external, |table| table.grow(count, element(table, *value))) };
    former.flatten().map_or(-1, i64::from)
}

/// Returns the references to objects of the host's that a store holds, 8 bytes each: those in its tables, its globals, and the
/// exceptions that were thrown. While no guest code of the store runs, there are no others.
///
/// # Safety
/// See [`with_store`]; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_store_objects(store: *mut WdStore, failure: *mut *mut Failure) -> *mut WdBytes {
    // SAFETY: by this function's contract.
    unsafe { border::made(failure, || Ok(with_store(store, |native| WdBytes::from(objects(native))))) }
}

unsafe fn objects(native: &mut StoreMut<'_>) -> Vec<u8> {
    let objects = native.objects_mut().as_sys();
    let mut found = Vec::new();
    for table in VMTable::list(objects).iter().filter(|table| table.ty().ty == Type::ExternRef) {
        found.extend((0..table.size()).filter_map(|index| table.get(index)).map(reference));
    }
    for global in objects.iter_globals().filter(|global| global.ty().ty == Type::ExternRef) {
        // SAFETY: a global lies in its instance, which lives as long as the store.
        found.push(unsafe { global.vmglobal().as_ref().val });
    }
    for exception in VMExceptionObj::list(objects) {
        let types = exception.tag().get(objects).signature.params();
        // SAFETY: what an exception carries is as many values as its tag has parameters, and does not change.
        let values = unsafe { exception.payload().as_ref() };
        found.extend(types.iter().zip(values).filter(|(kind, _)| **kind == Type::ExternRef).map(|(_, one)| *one));
    }
    // SAFETY: each is a reference to an object, or null, and no other value.
    found.into_iter().flat_map(|one| unsafe { one.externref }.to_ne_bytes()).collect()
}
