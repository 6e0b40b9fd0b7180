//! The border to C: texts in, failures out, and no panic across.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use wasmer::{StoreMut, Tag, Value};
use wasmer_types::TrapCode;

/// What a failure is; the numbers are part of the interface.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The engine refuses, or has failed itself.
    Engine = 0,
    /// A module cannot be linked.
    Link = 1,
    /// Guest code trapped.
    Trap = 2,
    /// Guest code threw an exception that it did not catch.
    Exception = 3,
    /// A host function, or the handler of interrupts, raised.
    Raised = 4,
}

/// No trap has this number.
const NO_CODE: i32 = -1;

/// Why something failed.
pub struct Failure {
    kind: Kind,
    code: i32,
    text: String,
    /// A line for each frame, innermost first: module, NUL, function's index, NUL, function's name or nothing.
    frames: String,
    /// The first value of an uncaught exception, if it is an i32; else -1.
    value: i64,
    /// The tag of an uncaught exception.
    pub tag: Option<Tag>,
}

/// A failure as C sees it; the texts belong to the failure.
#[repr(C)]
pub struct FailureView {
    kind: u32,
    code: i32,
    value: i64,
    text: *const u8,
    text_bytes: usize,
    frames: *const u8,
    frames_bytes: usize,
}

impl Failure {
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        let (text, frames) = (text.into(), String::new());
        Self { kind, code: NO_CODE, text, frames, value: -1, tag: None }
    }

    pub fn engine(error: impl ToString) -> Self {
        Self::new(Kind::Engine, error.to_string())
    }

    pub fn trap(code: TrapCode) -> Self {
        Self { code: code as i32, ..Self::new(Kind::Trap, code.message()) }
    }

    /// Describes how a call into the guest ended.
    pub fn of_call(store: &mut StoreMut<'_>, error: &wasmer::RuntimeError) -> Self {
        let kind = if error.is::<Raised>() {
            Kind::Raised
        } else if error.is_exception() {
            Kind::Exception
        } else {
            Kind::Trap
        };
        let mut failure = Self::new(kind, error.message());
        failure.code = error.clone().to_trap().map_or(NO_CODE, |code| code as i32);
        for frame in error.trace().iter().take(MOST_FRAMES) {
            // A guest names its functions as it likes; what separates frames must not be in a name.
            let name = frame.function_name().unwrap_or_default().replace(['\0', '\n'], "?");
            failure.frames += &format!("{}\0{}\0{name}\n", frame.module_name(), frame.func_index());
        }
        if let Some(exception) = error.to_exception() {
            failure.tag = Some(exception.tag(store));
            if let Some(Value::I32(value)) = exception.payload(store).first() {
                failure.value = i64::from(value.cast_unsigned());
            }
        }
        failure
    }

    pub fn boxed(self) -> *mut Self {
        Box::into_raw(Box::new(self))
    }
}

/// Frames of a stack trace that are told.
const MOST_FRAMES: usize = 20;

/// Stands for the exception that a host function raised, and that waits in Python, on its way through the guest.
#[derive(Debug)]
pub struct Raised;

impl std::fmt::Display for Raised {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("a host function raised")
    }
}

impl std::error::Error for Raised {}

thread_local! {
    /// What the last panic of the thread said, and where.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps what panics say for the failures that they become, instead of printing it.
///
/// The hook is this library's own: a library of C's kind brings its own copy of Rust's run time.
pub fn keep_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            let text = panic.to_string();
            // While a thread ends there may be no place to keep it.
            let _ = PANIC.try_with(|kept| *kept.borrow_mut() = text);
        }));
    });
}

fn described(payload: &(dyn Any + Send)) -> String {
    let kept = PANIC.with(|kept| std::mem::take(&mut *kept.borrow_mut()));
    if !kept.is_empty() {
        return kept.replace('\n', " ");
    }
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_string()
}

/// Runs the body of a function of the interface; a panic is a failure.
pub fn guarded<R>(body: impl FnOnce() -> Result<R, Failure>) -> Result<R, Failure> {
    // Whatever a panic leaves half done is the engine's; the adapter closes the store, as after any error of the engine.
    catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|panic| Err(Failure::engine(format!("the engine failed: {}", described(&*panic)))))
}

/// Returns a new object's address, or null and puts the failure where the caller wants it.
///
/// # Safety
/// `failure` can be written.
pub unsafe fn made<R>(failure: *mut *mut Failure, body: impl FnOnce() -> Result<R, Failure>) -> *mut R {
    match guarded(body) {
        Ok(object) => Box::into_raw(Box::new(object)),
        Err(error) => {
            // SAFETY: by this function's contract.
            unsafe { *failure = error.boxed() };
            std::ptr::null_mut()
        }
    }
}

/// Returns null, or what failed.
pub fn done(body: impl FnOnce() -> Result<(), Failure>) -> *mut Failure {
    guarded(body).map_or_else(Failure::boxed, |()| std::ptr::null_mut())
}

/// Returns what the body of a function of the interface says, or something else if it panics.
pub fn or<R>(otherwise: R, body: impl FnOnce() -> R) -> R {
    guarded(|| Ok(body())).unwrap_or(otherwise)
}

/// Returns the bytes that C passes.
///
/// # Safety
/// `data` points to so many bytes, which stay as they are during the call.
pub unsafe fn bytes<'a>(data: *const u8, size: usize) -> &'a [u8] {
    if size == 0 {
        return &[];
    }
    // SAFETY: by this function's contract.
    unsafe { std::slice::from_raw_parts(data, size) }
}

/// Returns the text that C passes; what is no UTF-8 is replaced.
///
/// # Safety
/// As for [`bytes`].
pub unsafe fn text<'a>(data: *const u8, size: usize) -> std::borrow::Cow<'a, str> {
    // SAFETY: by this function's contract.
    String::from_utf8_lossy(unsafe { bytes(data, size) })
}

/// Frees an object.
///
/// # Safety
/// The pointer is null, or came from [`made`] and is not used again.
pub unsafe fn deleted<R>(object: *mut R) {
    if !object.is_null() {
        // A panic in a destructor has nobody to tell.
        // SAFETY: by this function's contract.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(object) })));
    }
}

/// Describes a failure.
///
/// # Safety
/// Both point to what they say; the texts are read before the failure is deleted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_failure_read(failure: &Failure, out: &mut FailureView) {
    *out = FailureView {
        kind: failure.kind as u32,
        code: failure.code,
        value: failure.value,
        text: failure.text.as_ptr(),
        text_bytes: failure.text.len(),
        frames: failure.frames.as_ptr(),
        frames_bytes: failure.frames.len(),
    };
}

/// Frees a failure.
///
/// # Safety
/// See [`deleted`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wd_failure_delete(failure: *mut Failure) {
    // SAFETY: by this function's contract.
    unsafe { deleted(failure) }
}
