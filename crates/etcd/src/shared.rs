//! What threads share with whoever may stop them, at once where they wait.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

#[derive(Debug, Default)]
pub(crate) struct Shared<T> {
    state: Mutex<State<T>>,
    stopped: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct State<T> {
    pub stopped: bool,
    pub value: T,
}

impl<T> Shared<T> {
    /// Whoever held it before and panicked left a whole value.
    pub fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn stop(&self) {
        self.state().stopped = true;
        self.stopped.notify_all();
    }

    /// Waits so long, or until stopped: then true.
    pub fn wait(&self, time: Duration) -> bool {
        let waited = self
            .stopped
            .wait_timeout_while(self.state(), time, |state| !state.stopped);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.stopped
    }
}
