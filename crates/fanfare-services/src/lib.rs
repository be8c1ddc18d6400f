//! Stock services of Fanfare, and services that are configured instead of written.
//!
//! [`stock()`] lists the services that come with Fanfare. [`ExecService`] and [`HttpService`] make a service of a program or of a
//! URL, so that a worker pool can be built from a configuration file:
//!
//! ```
//! use fanfare_services::{ExecService, HttpService};
//! use fanfare_worker::Registration;
//!
//! let resize = Registration::new("image.resize", ExecService::new(["python3", "resize.py"])?).concurrency(4);
//! let notify = Registration::new("user.notify", HttpService::new("http://localhost:8080/notify")?);
//! # drop((resize, notify));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![doc(test(attr(deny(warnings))))]

use std::time::Duration;

mod answer;
mod exec;
mod file_stats;
mod http;
mod input_log;
mod invoked;
mod stock;
mod words;

pub use answer::NotJson;
pub use exec::{EmptyCommand, ExecError, ExecService};
pub use file_stats::{FilePath, FileStats, FileStatsError};
pub use http::{HttpError, HttpService, InvalidUrl};
pub use stock::{ECHO, FILE_STATS, INPUT_LOGGER, STOCK, echo, file_stats, input_logger, stock};

/// How long a configured service may take unless it says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
