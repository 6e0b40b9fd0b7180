//! Wasmer, compiling with Cranelift, behind a C interface: what the engine seam of `wasix-dl` asks of an engine.
//!
//! The interface is made for `ctypes`: addresses and numbers in and out, no structure but [`border::FailureView`].
//! Values of calls lie in slots of 16 bytes, each value in the first bytes of its slot. What can fail returns a pointer
//! to a [`border::Failure`], or takes the address where to put one; null means that all went well. No panic leaves a
//! function: it is caught at the border and becomes a failure.
//!
//! Who calls keeps these rules, which are those of the Python adapter:
//!
//! * A pointer that a function of this library returned is used until the function that deletes it is called, once.
//! * An engine, a module, a set of host functions and a shared memory may be used by several threads at once. A store, and
//!   all that was made in it, is used by one thread at a time.
//! * A store is not deleted while a call into it is under way.

mod border;
mod calls;
mod checks;
mod engine;
mod exceptions;
mod externals;
mod host;
mod instance;
mod limits;
mod lists;
mod memory;
mod reflect;
mod rewrite;
mod stack;
mod store;

/// Counts changes of this interface; the adapter refuses a library that has another number.
const INTERFACE: u32 = 3;

/// What compiled code depends on: this crate's version and that of the engine, as a text that ends with NUL.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " over wasmer 7.4.2\0");

/// Returns the version of the library and of the engine in it.
#[unsafe(no_mangle)]
pub extern "C" fn wd_version() -> *const u8 {
    VERSION.as_ptr()
}

/// Returns the number of this interface.
#[unsafe(no_mangle)]
pub extern "C" fn wd_interface() -> u32 {
    INTERFACE
}
