//! Gives memory that is free back to the system.
//!
//! Beside large pieces, glibc's allocator returns by itself only what lies at the end of a heap. What messages of many fan-outs take lies
//! across each other there, so a coordinator would stay nearly as large as it was at its busiest. `malloc_trim` returns every page that is
//! free, wherever it lies.

use std::io;
use std::thread;
use std::time::Duration;

/// How often: one walk through what is free, a few milliseconds where that is 100 MB.
pub(crate) const EVERY: Duration = Duration::from_secs(10);

/// Does so for as long as the process lives.
pub(crate) fn give_back_regularly() -> io::Result<()> {
    let give_back_for_ever = || {
        loop {
            thread::sleep(EVERY);
            give_back();
        }
    };
    thread::Builder::new().name("memory".to_owned()).spawn(give_back_for_ever)?;
    Ok(())
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "glibc has no other way, and no crate wraps it")]
fn give_back() {
    // SAFETY: it takes no pointer, may be called from any thread (malloc_trim(3)), and leaves alone what is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators do so by themselves, or cannot be told to.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
const fn give_back() {}
