//! Functions of the host that modules can import.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use wasmer::{FunctionType, Memory, Type};
use wasmer_types::RawValue;

use crate::border::{self, Failure};
use crate::store::WdStore;

/// A function of the host: it reads its arguments from slots and writes its results to them. It gets as many slots as it
/// has arguments or results, whichever are more. It returns null, or anything else if it raised. It must not unwind. Its
/// first argument is null, except for a function that belongs to who calls it, see `wd_store_define_host`; the second one is the
/// store whose guest code calls.
pub type Callback =
    unsafe extern "C" fn(*const Memory, *mut WdStore, slots: *mut RawValue, count: usize) -> *mut c_void;

/// A function of the host and its signature.
#[derive(Clone)]
pub struct HostFunction {
    pub kind: FunctionType,
    pub callback: Callback,
}

/// The functions of one program, by namespace and name.
#[derive(Default)]
pub struct HostFunctions {
    functions: Mutex<HashMap<String, HashMap<String, HostFunction>>>,
}

impl HostFunctions {
    pub fn find(&self, namespace: &str, name: &str) -> Option<HostFunction> {
        let functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        functions.get(namespace)?.get(name).cloned()
    }
}

/// A set of host functions, which stores share.
pub type WdHost = Arc<HostFunctions>;

/// Returns the value type that a letter stands for: `i` i32, `I` i64, `f` f32, `F` f64, `v` v128, `x` externref, `r`
/// funcref, `n` exnref.
pub fn value_type(letter: u8) -> Result<Type, Failure> {
    match letter {
        b'i' => Ok(Type::I32),
        b'I' => Ok(Type::I64),
        b'f' => Ok(Type::F32),
        b'F' => Ok(Type::F64),
        b'v' => Ok(Type::V128),
        b'x' => Ok(Type::ExternRef),
        b'r' => Ok(Type::FuncRef),
        b'n' => Ok(Type::ExceptionRef),
        _ => Err(Failure::engine("a value of this type cannot be passed to the host")),
    }
}

/// Returns the letter of a value type.
pub fn letter(kind: Type) -> char {
    match kind {
        Type::I32 => 'i',
        Type::I64 => 'I',
        Type::F32 => 'f',
        Type::F64 => 'F',
        Type::V128 => 'v',
        Type::ExternRef => 'x',
        Type::FuncRef => 'r',
        Type::ExceptionRef => 'n',
    }
}

/// Returns the signature that a text stands for: the letters of the parameters, a colon, those of the results.
pub fn signature(text: &str) -> Result<FunctionType, Failure> {
    let (parameters, results) = text.split_once(':').ok_or_else(|| Failure::engine("a signature has a colon"))?;
    let types = |letters: &str| letters.bytes().map(value_type).collect::<Result<Vec<_>, _>>();
    Ok(FunctionType::new(types(parameters)?, types(results)?))
}

/// Returns the text of a signature; see [`signature`].
pub fn signature_text(kind: &FunctionType) -> String {
    let letters = |types: &[Type]| types.iter().map(|one| letter(*one)).collect::<String>();
    format!("{}:{}", letters(kind.params()), letters(kind.results()))
}

/// Makes an empty set of host functions.
#[unsafe(no_mangle)]
pub extern "C" fn wd_host_new() -> *mut WdHost {
    Box::into_raw(Box::default())
}

/// Frees a set of host functions; stores keep it as long as they need it.
///
/// # Safety
/// It came from [`wd_host_new`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_host_delete(host: *mut WdHost) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(host) }
}

/// Defines a function, for stores that have not imported one of this name.
///
/// # Safety
/// The texts are as long as said. The callback is there as long as the set and every store that uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_host_define(
    host: &WdHost,
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
        let (namespace, name, kind) = unsafe {
            (border::text(namespace, namespace_size), border::text(name, name_size), border::text(kind, kind_size))
        };
        let function = HostFunction { kind: signature(&kind)?, callback };
        let mut functions = host.functions.lock().unwrap_or_else(PoisonError::into_inner);
        functions.entry(namespace.into_owned()).or_default().insert(name.into_owned(), function);
        Ok(())
    })
}
