use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::state::State;

/// The one server that all clients share: its state, and a task that lets time pass.
pub(super) struct Server {
    this: Weak<Server>,
    state: Mutex<State>,
    alarm_changed: Arc<Notify>,
    clock: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    pub(super) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            state: Mutex::default(),
            alarm_changed: Arc::default(),
            clock: Mutex::default(),
        })
    }

    /// Takes one step.
    pub(super) fn with<T>(&self, step: impl FnOnce(&mut State, Instant) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.next_alarm();
        let result = step(&mut state, Instant::now());
        let after = state.next_alarm();
        drop(state);
        if after != before {
            self.set_clock();
        }
        result
    }

    /// Tells the clock of another alarm. It starts with the first one, since a server can be made outside of a runtime, and
    /// again where the runtime that it ran on is gone.
    fn set_clock(&self) {
        self.alarm_changed.notify_one();
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if clock.as_ref().is_none_or(JoinHandle::is_finished)
            && let Ok(runtime) = Handle::try_current()
        {
            let run = run_clock(Weak::clone(&self.this), Arc::clone(&self.alarm_changed));
            *clock = Some(runtime.spawn(run));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.alarm_changed.notify_one();
    }
}

/// Rings the alarms until the server is gone.
async fn run_clock(server: Weak<Server>, alarm_changed: Arc<Notify>) {
    loop {
        let Some(alive) = server.upgrade() else { return };
        let next = alive.with(|state, now| {
            state.ring(now);
            state.next_alarm()
        });
        drop(alive);
        match next {
            Some(at) => {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep_until(at) => {}
                    () = alarm_changed.notified() => {}
                }
            }
            None => alarm_changed.notified().await,
        }
    }
}
