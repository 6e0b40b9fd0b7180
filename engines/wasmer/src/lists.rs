//! Imports of an instance that is to be made, by their positions: functions of a table, what is known by name, numbers, and
//! exports of another instance. Whoever has them by position need not name them, and nothing need export them by name.

use std::ptr;

use wasmer::sys::vm::{InternalStoreHandle, TableElement, VMExtern, VMTable};
use wasmer::{AsStoreMut, Extern, Global, StoreMut, Value};

use crate::border::{self, Failure, Kind};
use crate::engine::WdModule;
use crate::externals::referred;
use crate::instance::{WdInstance, instantiated, visible};
use crate::store::{self, WdStore, with_store};

/// The imports of one instance; those that are not known yet are none.
pub struct WdList(Vec<Option<Extern>>);

impl WdList {
    fn set(&mut self, position: u32, import: Extern) -> Result<(), Failure> {
        let count = self.0.len();
        let place = self.0.get_mut(position as usize);
        *place.ok_or_else(|| Failure::engine(format!("there is no import {position} of {count}")))? = Some(import);
        Ok(())
    }
}

/// Makes a list of so many imports, none of which is known.
#[unsafe(no_mangle)]
pub extern "C" fn wd_list_new(count: u32) -> *mut WdList {
    border::or(ptr::null_mut(), || Box::into_raw(Box::new(WdList(vec![None; count as usize]))))
}

/// Frees a list.
///
/// # Safety
/// It came from [`wd_list_new`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_list_delete(list: *mut WdList) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(list) }
}

/// Returns the reference to the function that a table holds at an index.
fn element(native: &mut StoreMut<'_>, table: InternalStoreHandle<VMTable>, base: u32, index: u32) -> Option<usize> {
    match table.get(native.objects_mut().as_sys()).get(base.checked_add(index)?)? {
        TableElement::FuncRef(function) => Some(function?.0.as_ptr().expose_provenance()),
        TableElement::ExternRef(_) => None,
    }
}

/// Takes functions from a table: of each, its position among the imports, and its index, counted from `base` on.
///
/// # Safety
/// There are `count` positions and indices. The external is one of the store. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_list_functions(
    store: *mut WdStore,
    list: &mut WdList,
    table: &Extern,
    base: u32,
    positions: *const u32,
    indices: *const u32,
    count: usize,
) -> *mut Failure {
    border::done(|| {
        let VMExtern::Table(table) = table.to_vm_extern().unwrap_sys() else {
            return Err(Failure::engine("it is no table"));
        };
        if count == 0 {
            return Ok(()); // the addresses may be null then
        }
        // SAFETY: by this function's contract.
        let (positions, indices) =
            unsafe { (std::slice::from_raw_parts(positions, count), std::slice::from_raw_parts(indices, count)) };
        for (number, (position, index)) in positions.iter().zip(indices).enumerate() {
            // SAFETY: by this function's contract.
            let found = unsafe { with_store(store, |native| element(native, table, base, *index)) };
            let Some(reference) = found else {
                return Err(Failure::new(Kind::Link, format!("the table holds no function for import {number}")));
            };
            // SAFETY: by this function's contract; what a table of the store holds is a reference of the store.
            list.set(*position, unsafe { referred(store, reference) }.into())?;
        }
        Ok(())
    })
}

/// Takes what is importable by a namespace and a name.
///
/// # Safety
/// The texts are as long as said. See also [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_list_named(
    store: *mut WdStore,
    list: &mut WdList,
    position: u32,
    namespace: *const u8,
    namespace_size: usize,
    name: *const u8,
    name_size: usize,
) -> *mut Failure {
    border::done(|| {
        // SAFETY: by this function's contract.
        let found =
            unsafe { store::import(store, &border::text(namespace, namespace_size), &border::text(name, name_size)) };
        list.set(position, found?)
    })
}

/// Makes a global of type i32, for this import alone.
///
/// # Safety
/// See [`with_store`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_list_number(
    store: *mut WdStore,
    list: &mut WdList,
    position: u32,
    mutable: bool,
    value: u32,
) -> *mut Failure {
    border::done(|| {
        let value = Value::I32(value.cast_signed());
        let make = |native: &mut StoreMut<'_>| {
            if mutable { Global::new_mut(native, value) } else { Global::new(native, value) }
        };
        // SAFETY: by this function's contract.
        let made = unsafe { with_store(store, make) };
        list.set(position, made.into())
    })
}

/// Takes what an instance of the same store exports.
///
/// # Safety
/// The text is as long as said.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_list_export(
    list: &mut WdList,
    position: u32,
    instance: &WdInstance,
    name: *const u8,
    name_size: usize,
) -> *mut Failure {
    border::done(|| {
        // SAFETY: by this function's contract.
        let name = unsafe { border::text(name, name_size) };
        let found = visible(instance, &name);
        let found = found.ok_or_else(|| Failure::new(Kind::Link, format!("nothing generated is called {name}")))?;
        list.set(position, found.clone())
    })
}

/// Instantiates a module with the imports of a list, and runs its start function; the list is empty then.
///
/// # Safety
/// What the list holds is of the store. See also [`with_store`]; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_instance_listed(
    store: *mut WdStore,
    module: &WdModule,
    list: &mut WdList,
    failure: *mut *mut Failure,
) -> *mut WdInstance {
    // SAFETY: by this function's contract.
    unsafe {
        border::made(failure, || {
            let mut imports = Vec::with_capacity(list.0.len());
            for (position, import) in std::mem::take(&mut list.0).into_iter().enumerate() {
                let text = || Failure::new(Kind::Link, format!("nothing is given for import {position}"));
                imports.push(import.ok_or_else(text)?);
            }
            instantiated(store, module, imports)
        })
    }
}
