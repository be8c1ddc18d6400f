use std::time::Duration;

use fanfare_worker::{Context, Registration, service};
use serde_json::value::RawValue;

use crate::file_stats::{FilePath, FileStats};
use crate::input_log;

/// The name of [`echo`].
pub const ECHO: &str = "helpers.echo";
/// The name of [`input_logger`].
pub const INPUT_LOGGER: &str = "helpers.input-logger";
/// The name of [`file_stats`].
pub const FILE_STATS: &str = "demo.file-stats";

/// After how long a stock service fails. None of them takes so long, and it is below the broker's consumer time-out.
const TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Makes the registration of a stock service.
type Stock = fn() -> Registration;

/// The stock services by name, for whoever offers some of them. Without [`file_stats`], which reads files of its host: that one
/// is to be asked for.
pub const STOCK: [(&str, Stock); 2] = [(ECHO, echo), (INPUT_LOGGER, input_logger)];

/// The services that come with Fanfare and touch nothing of their host: [`echo`] and [`input_logger`].
pub fn stock() -> impl Iterator<Item = Registration> {
    STOCK.into_iter().map(|(_, registration)| registration())
}

/// `helpers.echo` answers with its payload, byte for byte.
pub fn echo() -> Registration {
    service(ECHO, |_: Context, payload: Box<RawValue>| async move { Ok(payload) }).timeout(TIMEOUT)
}

/// `helpers.input-logger` logs all that it is given, at level `info`: the callback to begin with. The payload is
/// logged as it is, however long.
pub fn input_logger() -> Registration {
    service(INPUT_LOGGER, |context: Context, payload: Box<RawValue>| async move {
        input_log::log(&context, payload.get());
        Ok(())
    })
    .timeout(TIMEOUT)
}

/// `demo.file-stats` takes a path, as a string or as the list of its bytes, and answers with the
/// [`FileStats`] of the file.
///
/// It counts whatever file its worker may read, and tells nothing else of it. It is not among [`STOCK`]: offer it only where whoever
/// can reach the broker may know the size and the SHA-256 of each of these files.
pub fn file_stats() -> Registration {
    service(FILE_STATS, |_: Context, path: FilePath| async move {
        let path = path.to_path()?;
        // Reading files blocks, whatever it is dressed in.
        Ok(tokio::task::spawn_blocking(move || FileStats::of(&path)).await??)
    })
    .timeout(TIMEOUT)
}
