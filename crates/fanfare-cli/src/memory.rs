//! Gives memory that is free back to the system.
//!
//! Beside large pieces, glibc's allocator returns by itself only what lies at the end of a heap. What messages of many fan-outs take lies
//! across each other there, so a coordinator would stay nearly as large as it was at its busiest. `malloc_trim` returns every page that is
//! free, wherever it lies.

use std::io;
use std::thread;
use std::time::Duration;

/// How often.
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

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use super::*;

    /// Resident memory of this process, in KiB.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn what_lies_free_between_what_is_in_use_goes_back() {
        const PIECES: usize = 64 * 1024;
        let before = resident();
        let mut held: Vec<Option<Box<[u8]>>> =
            (0..PIECES).map(|_| Some(vec![1; 1024].into_boxed_slice())).collect();
        // One in 64 stays, so that the allocator has nothing to give back at the end of its heap.
        held.iter_mut()
            .enumerate()
            .filter(|(place, _)| place % 64 != 63)
            .for_each(|(_, piece)| drop(piece.take()));
        let full = resident().saturating_sub(before);
        give_back();
        let left = resident().saturating_sub(before);
        assert!(left < full / 2, "{left} KiB of {full} are left");
        assert_eq!(held.iter().flatten().count(), PIECES / 64);
    }
}
