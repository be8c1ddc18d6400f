use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::words::WordCounter;

/// Bytes read from a file at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// The size of a file in lines, words and bytes, and its SHA-256: what `wc` and `sha256sum` say of it.
///
/// Lines are newline characters. Words are counted as GNU `wc` does in a UTF-8 locale (coreutils up to 9.4, by default):
/// they are divided by white space, which includes the spaces of Unicode, also those that do not break a line, and
/// what holds no printable character is no word.
///
/// ```
/// use fanfare_services::FileStats;
///
/// let stats = FileStats::read(&mut "Grüße aus Köln\n".as_bytes())?;
/// assert_eq!((stats.lines, stats.words, stats.bytes), (1, 3, 18));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStats {
    /// Newline characters.
    pub lines: u64,
    /// Words.
    pub words: u64,
    /// Bytes.
    pub bytes: u64,
    /// SHA-256 of the bytes, as 64 hexadecimal digits.
    pub sha256: String,
}

/// A path that is to be counted: the request of the service `demo.file-stats`.
///
/// JSON holds text and a Unix path holds bytes, so a path that is not UTF-8 is given as the list of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FilePath {
    /// A path in UTF-8.
    Text(String),
    /// Any path of Unix, byte by byte.
    Bytes(Vec<u8>),
}

/// A file could not be counted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileStatsError {
    /// It could not be opened or read.
    #[error("cannot read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a directory, a device or a pipe, which may have no end.
    #[error("{0:?} is not a regular file")]
    NotRegular(PathBuf),
    /// The path is given in bytes that this system has no path for.
    #[error("a path of bytes that are not UTF-8 is only understood on Unix")]
    NotUtf8,
}

impl FileStats {
    /// Counts what a reader yields, up to its end. Memory is bounded whatever the length.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn read(reader: &mut impl Read) -> io::Result<Self> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let (mut lines, mut bytes) = (0, 0);
        let (mut words, mut digest) = (WordCounter::default(), Sha256::new());
        loop {
            let read = match reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => &chunk[..read],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            bytes += read.len() as u64;
            lines += read.iter().filter(|byte| **byte == b'\n').count() as u64;
            words.push(read);
            digest.update(read);
        }
        let sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { lines, words: words.finish(), bytes, sha256 })
    }

    /// Counts a regular file.
    ///
    /// # Errors
    /// [`FileStatsError`], where it cannot be read or is not a regular file.
    pub fn of(path: &Path) -> Result<Self, FileStatsError> {
        let failed = |source| FileStatsError::Read { path: path.to_owned(), source };
        // Looked at before it is opened: to open a pipe that nobody writes to would wait for ever.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(FileStatsError::NotRegular(path.to_owned()));
        }
        let mut file = File::open(path).map_err(failed)?;
        Self::read(&mut file).map_err(failed)
    }
}

impl FilePath {
    /// The path as the system has it.
    ///
    /// # Errors
    /// [`FileStatsError::NotUtf8`] for bytes on a system whose paths are not bytes.
    pub fn to_path(&self) -> Result<PathBuf, FileStatsError> {
        match self {
            Self::Text(text) => Ok(PathBuf::from(text)),
            Self::Bytes(bytes) => from_bytes(bytes),
        }
    }
}

impl From<&Path> for FilePath {
    fn from(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_encoded_bytes().to_vec()),
        }
    }
}

#[cfg(unix)]
fn from_bytes(bytes: &[u8]) -> Result<PathBuf, FileStatsError> {
    use std::os::unix::ffi::OsStrExt;
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(bytes)))
}

#[cfg(not(unix))]
fn from_bytes(bytes: &[u8]) -> Result<PathBuf, FileStatsError> {
    std::str::from_utf8(bytes).map(PathBuf::from).map_err(|_| FileStatsError::NotUtf8)
}
