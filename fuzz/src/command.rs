//! What the command is given: refused with a reason, or taken.

use std::path::Path;

use crate::configuration::Configuration;
use crate::{durations, invoke};

/// A settings file.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(mistake) = Configuration::parse(text, Path::new("fanfare.toml")) {
        assert!(mistake.to_string().starts_with("fanfare.toml:"), "{mistake}");
    }
    let _ = durations::parse(text);
}

/// A file of targets, and a target of the command line.
pub fn targets(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(target) = invoke::target(text) {
        // It is shown as it may be written.
        assert_eq!(invoke::target(&target).ok().as_ref(), Some(&target));
    }
    let _ = invoke::targets(text);
}
