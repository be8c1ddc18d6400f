//! The files under a folder, and the keys that their targets have.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fanfare::TargetKey;
use fanfare_protocol::limits::KEY_BYTES;
use walkdir::WalkDir;

use crate::table::shown;

/// What there is to count.
#[derive(Debug)]
pub(super) struct Files {
    /// The files, by name.
    pub(super) entries: Vec<Entry>,
    /// What could not be looked into.
    pub(super) missed: Vec<Missed>,
}

/// A file, and the key of its target.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: PathBuf,
    pub(super) key: TargetKey,
}

/// A folder that could not be read, so that nobody knows which files are in it.
#[derive(Debug)]
pub(super) struct Missed {
    pub(super) path: PathBuf,
    pub(super) reason: String,
}

impl Files {
    /// Finds what `find PATH -type f` finds: regular files only, and no symbolic link is followed, not even PATH itself.
    pub(super) fn under(path: &Path) -> Result<Self> {
        // As a command line's other mistakes, this is better told before anything else is done.
        std::fs::symlink_metadata(path).with_context(|| format!("cannot look at {}", shown(path)))?;
        let mut files = Self { entries: Vec::new(), missed: Vec::new() };
        let mut taken = BTreeSet::new();
        let walk = WalkDir::new(path).follow_links(false).follow_root_links(false).sort_by_file_name();
        for found in walk {
            match found {
                Ok(entry) if entry.file_type().is_file() => {
                    let path = entry.into_path();
                    let key = key_of(&path, &mut taken);
                    files.entries.push(Entry { path, key });
                }
                Ok(_) => {}
                Err(error) => {
                    let path = error.path().unwrap_or(path).to_owned();
                    let reason =
                        error.into_io_error().unwrap_or_else(|| io::Error::other("it contains itself"));
                    files.missed.push(Missed { path, reason: reason.to_string() });
                }
            }
        }
        Ok(files)
    }
}

/// The path, where it can be a key. Else the end of what can be shown of it with a number after it, which makes it a key
/// that no other file has.
fn key_of(path: &Path, taken: &mut BTreeSet<String>) -> TargetKey {
    /// Bytes that stay free for the number.
    const ROOM: usize = 24;
    let plain = path.to_str().filter(|path| TargetKey::new(*path).is_ok() && !taken.contains(*path));
    let key = plain.map_or_else(
        || {
            let shown: String = path
                .to_string_lossy()
                .chars()
                .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
                .collect();
            let end = &shown[shown.ceil_char_boundary(shown.len().saturating_sub(KEY_BYTES - ROOM))..];
            let numbered = (1u64..).map(|number| format!("{end} #{number}"));
            numbered.into_iter().find(|key| !taken.contains(key)).expect("the numbers do not end")
        },
        str::to_owned,
    );
    taken.insert(key.clone());
    TargetKey::new(key).expect("it has no control characters and is short enough")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    fn keys(paths: &[&[u8]]) -> Vec<String> {
        let mut taken = BTreeSet::new();
        paths.iter().map(|path| key_of(Path::new(OsStr::from_bytes(path)), &mut taken).to_string()).collect()
    }

    #[test]
    fn path_is_the_key_where_it_can_be() {
        let path = "größe/日本語/a b.txt";
        assert_eq!(keys(&[path.as_bytes()]), [path]);
    }

    #[test]
    fn every_file_has_a_key_of_its_own() {
        let long = "d/".repeat(200);
        let other = "e/".repeat(10) + &long;
        let wide = "ä".repeat(200);
        let paths: [&[u8]; 8] = [
            b"a\xff",
            b"a\xfe",
            "a\u{fffd}".as_bytes(),
            b"a\n",
            "a\u{fffd} #9".as_bytes(),
            long.as_bytes(),
            other.as_bytes(),
            wide.as_bytes(),
        ];
        let keys = keys(&paths);
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), paths.len(), "{keys:?}");
        assert!(keys.iter().all(|key| TargetKey::new(key.as_str()).is_ok()), "{keys:?}");
    }
}
