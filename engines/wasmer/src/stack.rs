//! How much of a thread's native stack a chain of calls has used.
//!
//! Guest code runs on stacks of its own, which end in a guard page. Host functions, and calls that they make back into the
//! guest, run on the thread's stack, and nothing stops them there: so each call into the guest looks how far it is from the
//! thread's outermost one.

use std::cell::Cell;
use std::hint::black_box;

thread_local! {
    /// Where the stack was at the thread's outermost call into the guest; 0 without one.
    static OUTERMOST: Cell<usize> = const { Cell::new(0) };
}

/// Notes, also after a panic, that the thread's outermost call has ended.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        OUTERMOST.set(0);
    }
}

/// Runs a call into the guest, unless the calls around it have used more than so many bytes of the stack.
pub fn bounded<R>(most: usize, refused: R, call: impl FnOnce() -> R) -> R {
    let marker = 0_u8;
    let here = black_box(&raw const marker).addr();
    let outermost = OUTERMOST.get();
    if outermost == 0 {
        OUTERMOST.set(here);
        let _ended = Ended;
        call()
    } else if outermost.abs_diff(here) > most {
        refused
    } else {
        call()
    }
}
