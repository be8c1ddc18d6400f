//! What operators are told that this process is.

use rustix::system::uname;

/// Its host and process.
pub(crate) fn name() -> String {
    format!("{}:{}", uname().nodename().to_string_lossy(), std::process::id())
}
