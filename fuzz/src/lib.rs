//! What the fuzz targets feed, and what must hold whatever they are fed.
//!
//! Each file of `fuzz_targets` hands its bytes to one function of [`decoders`], [`events`] or [`world`], which panics where a
//! promise is broken. The corpus beside it holds one input for each thing worth knowing, named after it; `cargo xtask fuzz`
//! starts from there.

pub mod command;
pub mod decoders;
pub mod events;
mod reader;
mod text;
pub mod world;

/// The model of a broker and coordinators that the fan-in's own tests use, and what it is built of.
#[path = "../../crates/fanfare-fanin/tests/fanin/model.rs"]
#[allow(dead_code, reason = "some of it is for tests that are not here")]
mod model;
#[path = "../../crates/fanfare-fanin/tests/fanin/samples.rs"]
#[allow(dead_code, reason = "some of it is for tests that are not here")]
mod samples;

/// The command's parsers, whose own crate is a program and has nothing to link with.
#[path = "../../crates/fanfare-cli/src/configuration/mod.rs"]
#[allow(dead_code, reason = "here settings are read, and used nowhere")]
mod configuration;
#[path = "../../crates/fanfare-cli/src/durations.rs"]
mod durations;
#[path = "../../crates/fanfare-cli/src/logging"]
mod logging {
    mod format;

    pub(crate) use self::format::Format;
}
#[path = "../../crates/fanfare-cli/src/monitor"]
mod monitor {
    mod address;

    pub(crate) use self::address::Address;
}
#[path = "../../crates/fanfare-cli/src/numbers.rs"]
#[allow(dead_code, reason = "here no command line is read")]
mod numbers;
#[path = "../../crates/fanfare-cli/src/table.rs"]
#[allow(dead_code, reason = "here nothing is printed")]
mod table;
#[path = "../../crates/fanfare-cli/src/invoke"]
#[allow(dead_code, reason = "here targets are read, and invoked nowhere")]
mod invoke {
    mod file;
    mod target;

    /// The targets of a file, as a person is shown them.
    pub(crate) fn targets(text: &str) -> Result<Vec<String>, Vec<anyhow::Error>> {
        Ok(file::parse(text)?.iter().map(ToString::to_string).collect())
    }

    /// A target of the command line, as a person is shown it.
    pub(crate) fn target(text: &str) -> anyhow::Result<String> {
        text.parse::<target::Given>().map(|target| target.to_string())
    }
}
