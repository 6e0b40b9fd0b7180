//! Interrupts: the flags that the checks in rewritten modules read.
//!
//! Each instance of a rewritten module has a flag and a table with one function (see `rewrite`). An interrupt sets the
//! flags of all instances of all stores of an engine. The first check that sees one calls the function, which clears the
//! flags of its store and runs the store's handler. An interrupt during the handler waits until it has returned.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Where a flag lies: in an instance of a store that clears the list before it is freed.
struct Flag(*const AtomicU32);

// SAFETY: a flag is only reached under the lock of its `Checks`, and not after `Checks::end`, which takes that lock.
unsafe impl Send for Flag {}

#[derive(Default)]
struct State {
    flags: Vec<Flag>,
    requested: bool,
    handling: bool,
}

impl State {
    fn set(&self, value: u32) {
        for flag in &self.flags {
            // SAFETY: the store that the flag lies in has not been freed, see `Flag`. Guest code reads the flag without
            // synchronization, as any word of 4 bytes: it sees the old value or the new one.
            unsafe { &*flag.0 }.store(value, Ordering::Relaxed);
        }
    }
}

/// The flags of one store.
#[derive(Default)]
pub struct Checks {
    state: Mutex<State>,
}

impl Checks {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the store's guest code call its handler soon.
    pub fn request(&self) {
        let mut state = self.state();
        let asked_before = std::mem::replace(&mut state.requested, true);
        // Who waits for a thread asks again and again; the flags are set from the first time on.
        if !state.handling && !asked_before {
            state.set(1);
        }
    }

    /// Adds the flag of a new instance.
    ///
    /// # Safety
    /// The flag is there until [`Checks::end`].
    pub unsafe fn add(&self, flag: *const AtomicU32) {
        let mut state = self.state();
        if state.requested && !state.handling {
            // SAFETY: by this function's contract.
            unsafe { &*flag }.store(1, Ordering::Relaxed);
        }
        state.flags.push(Flag(flag));
    }

    /// Clears the flags; returns whether the handler is to run, which is not under way.
    pub fn begin(&self) -> bool {
        let mut state = self.state();
        if state.handling {
            return false;
        }
        state.handling = true;
        state.requested = false;
        state.set(0);
        true
    }

    /// Notes that the handler has returned.
    pub fn handled(&self) {
        let mut state = self.state();
        state.handling = false;
        if state.requested {
            state.set(1);
        }
    }

    /// Forgets all flags, before the store is freed.
    pub fn end(&self) {
        self.state().flags.clear();
    }
}

/// The stores of an engine that can be interrupted.
#[derive(Default)]
pub struct Stores {
    checks: Mutex<Vec<Weak<Checks>>>,
}

impl Stores {
    pub fn add(&self, checks: &Arc<Checks>) {
        let mut known = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|one| one.strong_count() > 0);
        known.push(Arc::downgrade(checks));
    }

    /// Interrupts all stores.
    pub fn interrupt(&self) {
        // The list is copied, so that a new store never waits for a store whose flags are being set.
        let known = self.checks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for checks in known.iter().filter_map(Weak::upgrade) {
            checks.request();
        }
    }
}
