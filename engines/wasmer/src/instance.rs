//! Instances and their exports.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use wasmer::sys::vm::VMExtern;
use wasmer::{AsStoreMut, Extern, Instance, InstantiationError, Memory, StoreMut, Tag, Value};
use wasmer_types::RawValue;

use crate::border::{self, Failure, Kind};
use crate::calls::{self, WdFunction};
use crate::engine::WdModule;
use crate::rewrite::{FLAG, PRIVATE, START, TABLE};
use crate::store::{self, WdStore, with_store};

/// An instance, which its store keeps. Stores that make its exports importable share the handle.
pub type WdInstance = Arc<Instance>;

/// Returns an export that is not this library's own.
pub fn visible<'a>(instance: &'a Instance, name: &str) -> Option<&'a Extern> {
    if name.starts_with(PRIVATE) { None } else { instance.exports.get_extern(name) }
}

/// Instantiates a module and runs its start function. It imports a list of externals, or, if that is null, by names.
///
/// # Safety
/// The list is as long as said, of externals of the store. See also [`with_store`]; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_instance_new(
    store: *mut WdStore,
    module: &WdModule,
    given: *const *const Extern,
    count: usize,
    failure: *mut *mut Failure,
) -> *mut WdInstance {
    // SAFETY: by this function's contract.
    unsafe {
        border::made(failure, || {
            let imports: Vec<Extern> = if given.is_null() {
                let named = module.imports.iter().map(|(space, name)| store::import(store, space, name));
                named.collect::<Result<_, _>>()?
            } else {
                std::slice::from_raw_parts(given, count).iter().map(|one| (**one).clone()).collect()
            };
            instantiated(store, module, imports)
        })
    }
}

/// Instantiates a module with imports in its order, and runs its start function.
///
/// # Safety
/// The imports are of the store. See also [`with_store`].
pub unsafe fn instantiated(
    store: *mut WdStore,
    module: &WdModule,
    imports: Vec<Extern>,
) -> Result<WdInstance, Failure> {
    if imports.len() != module.imports.len() {
        let text = format!("it has {} imports, and {} externals were given", module.imports.len(), imports.len());
        return Err(Failure::new(Kind::Link, text));
    }
    // SAFETY: by this function's contract.
    unsafe {
        let mut own = Vec::new();
        let imports: Vec<_> = imports.into_iter().map(|one| store::own_import(store, one, &mut own)).collect();
        let instance = with_store(store, |native| {
            Instance::new_by_index(native, &module.module, &imports)
                .map_err(|error| instantiation_failure(native, &error))
        })?;
        if let (false, Some(Extern::Memory(memory))) = (own.is_empty(), instance.exports.get_extern("memory")) {
            store::tell_memory(store, &own, memory);
        }
        if module.checked {
            arm(store, &instance)?;
        }
        if module.starts {
            let start = instance.exports.get_function(START).map_err(Failure::engine)?;
            // It has no values, but a function of the host gets the address of a slot all the same.
            let mut slot = RawValue::default();
            calls::call(&WdFunction::new(store, start), &raw mut slot)?;
        }
        Ok(instance.into())
    }
}

fn instantiation_failure(native: &mut StoreMut<'_>, error: &InstantiationError) -> Failure {
    match error {
        InstantiationError::Start(error) => Failure::of_call(native, error),
        other => Failure::new(Kind::Link, other.to_string()),
    }
}

/// Connects the checks of an instance with its store.
///
/// # Safety
/// See [`with_store`].
unsafe fn arm(store: *mut WdStore, instance: &Instance) -> Result<(), Failure> {
    // SAFETY: by this function's contract.
    unsafe {
        let Some(reached) = (*store).reached.clone() else { return Ok(()) };
        let table = instance.exports.get_table(TABLE).map_err(Failure::engine)?;
        let flag = instance.exports.get_global(FLAG).map_err(Failure::engine)?;
        let flag = with_store(store, |native| {
            table.set(native, 0, Value::FuncRef(Some(reached))).map_err(Failure::engine)?;
            match Extern::Global(flag.clone()).to_vm_extern().unwrap_sys() {
                VMExtern::Global(handle) => {
                    Ok(handle.get(native.objects_mut().as_sys()).vmglobal().as_ptr().cast::<AtomicU32>())
                }
                _ => Err(Failure::engine("the flag is no global")),
            }
        })?;
        // A global lies in its instance, which the store keeps to its end, at a multiple of 16 bytes; an i32 begins there.
        (*store).checks.add(flag.cast_const());
    }
    Ok(())
}

/// Frees an instance's handle; the instance stays in its store.
///
/// # Safety
/// It came from [`wd_instance_new`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_instance_delete(instance: *mut WdInstance) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(instance) }
}

/// Makes all exports of an instance importable.
///
/// # Safety
/// The text is as long as said. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_store_define_instance(
    store: *mut WdStore,
    namespace: *const u8,
    namespace_size: usize,
    instance: &WdInstance,
) -> *mut Failure {
    border::done(|| {
        // SAFETY: by this function's contract.
        unsafe { store::define_exports(store, &border::text(namespace, namespace_size), instance) };
        Ok(())
    })
}

/// Returns an exported function, or null.
///
/// # Safety
/// The text is as long as said. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_instance_function(
    store: *mut WdStore,
    instance: &WdInstance,
    name: *const u8,
    size: usize,
) -> *mut WdFunction {
    border::or(ptr::null_mut(), || {
        // SAFETY: by this function's contract.
        unsafe {
            match instance.exports.get_extern(&border::text(name, size)) {
                Some(Extern::Function(function)) => Box::into_raw(Box::new(WdFunction::new(store, function))),
                _ => ptr::null_mut(),
            }
        }
    })
}

/// Returns an export, or null.
///
/// # Safety
/// The text is as long as said.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_instance_external(instance: &WdInstance, name: *const u8, size: usize) -> *mut Extern {
    border::or(ptr::null_mut(), || {
        // SAFETY: by this function's contract.
        let found = visible(instance, &unsafe { border::text(name, size) });
        found.map_or(ptr::null_mut(), |found| Box::into_raw(Box::new(found.clone())))
    })
}

/// Returns an exported memory, or null.
///
/// # Safety
/// The text is as long as said.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_instance_memory(instance: &WdInstance, name: *const u8, size: usize) -> *mut Memory {
    border::or(ptr::null_mut(), || {
        // SAFETY: by this function's contract.
        match instance.exports.get_extern(&unsafe { border::text(name, size) }) {
            Some(Extern::Memory(memory)) => Box::into_raw(Box::new(memory.clone())),
            _ => ptr::null_mut(),
        }
    })
}

/// Returns an exported tag, or null.
///
/// # Safety
/// The text is as long as said.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_instance_tag(instance: &WdInstance, name: *const u8, size: usize) -> *mut Tag {
    border::or(ptr::null_mut(), || {
        // SAFETY: by this function's contract.
        match instance.exports.get_extern(&unsafe { border::text(name, size) }) {
            Some(Extern::Tag(tag)) => Box::into_raw(Box::new(tag.clone())),
            _ => ptr::null_mut(),
        }
    })
}

/// Frees a tag's handle.
///
/// # Safety
/// It came from [`wd_instance_tag`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_tag_delete(tag: *mut Tag) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(tag) }
}

/// Returns whether an uncaught exception has a tag.
#[unsafe(no_mangle)]
pub extern "C" fn wd_failure_has_tag(failure: &Failure, tag: &Tag) -> bool {
    failure.tag.as_ref() == Some(tag)
}

/// Reads an exported global; false if there is none of that name that is an integer.
///
/// # Safety
/// The text is as long as said. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_instance_global(
    store: *mut WdStore,
    instance: &WdInstance,
    name: *const u8,
    size: usize,
    out: &mut u64,
) -> bool {
    border::or(false, || {
        // SAFETY: by this function's contract.
        let Some(Extern::Global(global)) = instance.exports.get_extern(&unsafe { border::text(name, size) }) else {
            return false;
        };
        // SAFETY: by this function's contract.
        match unsafe { with_store(store, |native| global.get(native)) } {
            Value::I32(value) => *out = u64::from(value.cast_unsigned()),
            Value::I64(value) => *out = value.cast_unsigned(),
            _ => return false,
        }
        true
    })
}
