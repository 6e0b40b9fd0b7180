//! Engines, and the code that they compile.

use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;

use rayon::ThreadPoolBuilder;
use wasmer::sys::vm::VMConfig;
use wasmer::sys::{Cranelift, EngineBuilder, Features, NativeEngineExt};
use wasmer::{Engine, Module};
use wasmer_types::ExportIndex;

use crate::border::{self, Failure};
use crate::checks::Stores;
use crate::limits::{Bounded, Limits};
use crate::rewrite::{self, Refusal};

/// Threads that compile one module: each compilation starts them anew, so more cost more than they save.
const MOST_COMPILING: usize = 4;

/// What an engine can do: bits of `wd_engine_new`.
const INTERRUPTS: u32 = 1;
const THREADS: u32 = 2;
const EXCEPTIONS: u32 = 4;
const SIMD: u32 = 8;
const FORKED: u32 = 16;

/// One engine.
pub struct WdEngine {
    engine: Engine,
    pub interrupts: bool,
    pub stack_bytes: usize,
    pub stores: Stores,
    /// Whether the compiler's own threads may be gone, since the process is a fork of one that had compiled.
    forked: bool,
}

impl WdEngine {
    /// Compiles a module.
    ///
    /// The compiler makes threads for functions each time, but hands trampolines to the process's pool, which a child does not
    /// inherit: it would wait for ever. In a pool of this call's own it does all of it.
    fn compiled(&self, wasm: &[u8]) -> Result<Module, Failure> {
        let compile = || Module::new(&self.engine, wasm).map_err(Failure::engine);
        if self.forked {
            let pool = ThreadPoolBuilder::new().num_threads(1).build().map_err(Failure::engine)?;
            pool.install(compile)
        } else {
            compile()
        }
    }

    /// Returns the same engine, as a store with limits of its own sees it.
    pub fn within(&self, limits: Arc<Limits>) -> Engine {
        let mut engine = self.engine.clone();
        engine.set_tunables(Bounded::new(limits, self.config()));
        engine
    }

    /// Returns how guest code is run.
    pub fn config(&self) -> VMConfig {
        VMConfig { wasm_stack_size: Some(self.stack_bytes) }
    }
}

/// Compiled code.
pub struct WdModule {
    pub module: Module,
    /// What it imports: the namespace and the name of each, in order.
    pub imports: Vec<(String, String)>,
    /// Whether it has checks, and so a flag.
    pub checked: bool,
    /// Whether it has a start function, which is an export.
    pub starts: bool,
}

impl WdModule {
    fn new(module: Module) -> Result<Self, Failure> {
        let imports = module.imports().map(|one| (one.module().to_string(), one.name().to_string())).collect();
        let info = module.info();
        let (checked, start) = (info.exports.contains_key(rewrite::FLAG), info.exports.get(rewrite::START));
        if let Some(ExportIndex::Function(start)) = start {
            let kind = &info.signatures[info.functions[*start]];
            if !kind.params().is_empty() || !kind.results().is_empty() {
                return Err(Failure::engine("the start function has parameters or results"));
            }
        }
        let starts = start.is_some();
        Ok(Self { module, imports, checked, starts })
    }
}

/// Makes an engine that can do what the bits say; guest code runs on stacks of so many bytes.
///
/// # Safety
/// `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_engine_new(can: u32, stack_bytes: usize, failure: *mut *mut Failure) -> *mut WdEngine {
    border::keep_panics();
    // SAFETY: by this function's contract.
    unsafe {
        border::made(failure, || {
            let forked = can & FORKED != 0;
            let threads = if forked { 1 } else { available_parallelism().map_or(1, NonZero::get) };
            let mut config = Cranelift::new();
            config.num_threads(NonZero::new(threads.min(MOST_COMPILING)).expect("one thread at least"));
            let mut features = Features::new();
            features.threads(can & THREADS != 0);
            features.exceptions(can & EXCEPTIONS != 0);
            features.simd(can & SIMD != 0).relaxed_simd(can & SIMD != 0);
            let engine = EngineBuilder::new(config).set_features(Some(features)).engine().into();
            Ok(WdEngine { engine, interrupts: can & INTERRUPTS != 0, stack_bytes, stores: Stores::default(), forked })
        })
    }
}

/// Frees an engine.
///
/// # Safety
/// It came from [`wd_engine_new`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_engine_delete(engine: *mut WdEngine) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(engine) }
}

/// Has each store of the engine that runs guest code call its handler soon.
#[unsafe(no_mangle)]
pub extern "C" fn wd_engine_interrupt(engine: &WdEngine) {
    border::or((), || engine.stores.interrupt());
}

/// Compiles a module, whose code is known by a name.
///
/// # Safety
/// The texts are as long as said; `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_module_new(
    engine: &WdEngine,
    wasm: *const u8,
    size: usize,
    name: *const u8,
    name_size: usize,
    failure: *mut *mut Failure,
) -> *mut WdModule {
    // SAFETY: by this function's contract.
    unsafe {
        border::made(failure, || {
            let (wasm, name) = (border::bytes(wasm, size), border::text(name, name_size));
            let changed = match rewrite::rewritten(wasm, &name, engine.interrupts) {
                Ok(changed) => changed,
                Err(Refusal::Malformed) => wasm.to_vec(),
                Err(Refusal::PrivateName) => {
                    let text = format!("a name that it exports begins with {:?}, which is reserved", rewrite::PRIVATE);
                    return Err(Failure::engine(text));
                }
            };
            engine.compiled(&changed).and_then(WdModule::new)
        })
    }
}

/// Frees code; instances keep what they need of it.
///
/// # Safety
/// It came from [`wd_module_new`] or [`wd_module_deserialize`] and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_module_delete(module: *mut WdModule) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(module) }
}

/// Returns the size in bytes of the machine code of a module's functions.
#[unsafe(no_mangle)]
pub extern "C" fn wd_module_bytes(module: &WdModule) -> usize {
    border::or(0, || {
        let artifact = module.module.sys_artifact();
        let extents = artifact.and_then(|code| code.finished_function_extents());
        extents.map_or(0, |extents| extents.iter().map(|(_, one)| one.length).sum())
    })
}

/// Returns whether a module has checks for interrupts.
#[unsafe(no_mangle)]
pub extern "C" fn wd_module_is_checked(module: &WdModule) -> bool {
    module.checked
}

/// Bytes that the library hands out.
pub struct WdBytes(Box<[u8]>);

impl From<Vec<u8>> for WdBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into_boxed_slice())
    }
}

impl From<String> for WdBytes {
    fn from(text: String) -> Self {
        Self(text.into_bytes().into_boxed_slice())
    }
}

/// Serializes code.
///
/// # Safety
/// `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_module_serialize(module: &WdModule, failure: *mut *mut Failure) -> *mut WdBytes {
    // SAFETY: by this function's contract.
    unsafe {
        border::made(failure, || {
            let bytes = module.module.serialize().map_err(Failure::engine)?;
            Ok(WdBytes(bytes.to_vec().into_boxed_slice()))
        })
    }
}

/// Tells where bytes are; returns their number.
#[unsafe(no_mangle)]
pub extern "C" fn wd_bytes_read(bytes: &WdBytes, data: &mut *const u8) -> usize {
    *data = bytes.0.as_ptr();
    bytes.0.len()
}

/// Frees bytes.
///
/// # Safety
/// They came from this library and are not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_bytes_delete(bytes: *mut WdBytes) {
    // SAFETY: by this function's contract.
    unsafe { border::deleted(bytes) }
}

/// Loads code that [`wd_module_serialize`] of this version of the library returned on a machine of this kind.
///
/// # Safety
/// The bytes are such code: they are run. `failure` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_module_deserialize(
    engine: &WdEngine,
    code: *const u8,
    size: usize,
    failure: *mut *mut Failure,
) -> *mut WdModule {
    // SAFETY: by this function's contract; the form that checks notices bytes that are nothing like code.
    unsafe {
        border::made(failure, || {
            let code = border::bytes(code, size).to_vec();
            Module::deserialize(&engine.engine, code).map_err(Failure::engine).and_then(WdModule::new)
        })
    }
}
