//! What this machine is: where the repository lies, what is installed, what may be installed.

use std::ffi::OsString;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{process, say};

/// How long a package may take to download and install on a slow line.
const INSTALL_LIMIT: Duration = Duration::from_secs(600);

/// Below the range from which Linux and macOS draw the ports of outgoing connections: a client that connects
/// to a broker while it restarts could otherwise be given the broker's own port.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The root of this repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository")
}

/// Where cargo builds, and where tests may leave what they want to find again.
pub(crate) fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| OsString::from("target")))
}

/// The cargo that runs this program, in the root of this repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root());
    command
}

/// An environment variable that is set to something.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Whether `program` can be started with `arguments` and reports success.
pub(crate) fn works(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    process::run(command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()), Duration::from_secs(20))
        .is_ok()
}

/// Whether Debian packages can be installed: the machine has `apt-get` and this process is root.
pub(crate) fn can_install() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/usr/bin/apt-get").exists()
}

/// Installs Debian packages. Services that they bring are not started.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    say(format_args!("installing Debian's {}", packages.join(", ")));
    let _policy = NoServices::set()?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(arguments);
        // Broken off half-way, it would leave a package database that needs repair.
        process::output_undisturbed(&mut command, INSTALL_LIMIT).map(drop)
    };
    apt(&["update", "-qq"])?;
    apt(&[&["install", "-y", "-qq", "--no-install-recommends"], packages].concat())
        .with_context(|| format!("cannot install {}", packages.join(", ")))
}

/// The file that Debian's packages ask whether they may start a service. It says no while this is alive.
struct NoServices {
    mine: bool,
}

impl NoServices {
    const FILE: &str = "/usr/sbin/policy-rc.d";

    fn set() -> Result<Self> {
        let mine = !Path::new(Self::FILE).exists();
        if mine {
            let mut options = std::fs::OpenOptions::new();
            let file = options.write(true).create_new(true).mode(0o755).open(Self::FILE);
            file.and_then(|mut file| file.write_all(b"#!/bin/sh\nexit 101\n"))
                .with_context(|| format!("cannot write {}", Self::FILE))?;
        }
        Ok(Self { mine })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.mine {
            let _ = std::fs::remove_file(Self::FILE);
        }
    }
}

/// A loopback port that nobody listens on, and that was not handed out before.
pub(crate) fn free_port() -> Result<u16> {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let size = PORTS.end - PORTS.start;
    // Far from where a process that was started at the same time begins.
    let offset = (std::process::id().wrapping_mul(101) % u32::from(size)) as u16;
    for _ in 0..size {
        let step = TRIED.fetch_add(1, Ordering::Relaxed) % size;
        let port = PORTS.start + (offset + step) % size;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {} and {}", PORTS.start, PORTS.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_distinct() {
        assert_ne!(free_port().unwrap(), free_port().unwrap());
    }
}
