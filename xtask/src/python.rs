//! Python with pika, for the tests in which another language serves and invokes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{environment, process, say};

/// What the tests are written against.
const PIKA: &str = "pika>=1.3,<2";

/// How long the client may take to download on a slow line.
const LIMIT: Duration = Duration::from_secs(180);

/// A Python that can import pika.
pub(crate) struct Python {
    program: String,
    /// A folder to import pika from, where the Python itself does not have it.
    path: Option<PathBuf>,
}

impl Python {
    /// Finds one, or makes one under the target folder, which later runs find.
    pub(crate) fn provide() -> Result<Self> {
        let system = environment::variable("FANFARE_TEST_PYTHON").unwrap_or_else(|| "python3".to_owned());
        if !environment::works(&system, &["--version"]) && environment::can_install() {
            environment::install(&["python3", "python3-venv"])?;
        }
        ensure!(environment::works(&system, &["--version"]), "no Python: install python3 and python3-venv");

        let folder = environment::target().join("python");
        let of_venv = folder.join("bin/python").display().to_string();
        let venv = Self { program: of_venv, path: None };
        let beside = Self { program: system.clone(), path: Some(folder.join("packages")) };
        let known = [Self { program: system.clone(), path: None }, venv, beside];
        if let Some(python) = known.into_iter().find(Self::imports_pika) {
            return Ok(python);
        }

        say("giving Python the AMQP client pika");
        if !environment::works(&system, &["-c", "import ensurepip, venv"])
            && !environment::works(&system, &["-m", "pip", "--version"])
            && environment::can_install()
        {
            environment::install(&["python3-venv"])?;
        }
        let python = Self::with_venv(&system, &folder).or_else(|error| {
            // Debian's Python has no venv where python3-venv is not installed, but may have pip.
            Self::with_packages_beside(&system, &folder.join("packages")).with_context(|| {
                format!("cannot install pika: install python3-venv, or pika itself ({error:#})")
            })
        })?;
        ensure!(python.imports_pika(), "pika is installed in {}, but does not import", folder.display());
        Ok(python)
    }

    /// The environment variables with which tests run it.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let path = self.path.as_ref().map(|path| ("PYTHONPATH", path.display().to_string()));
        std::iter::once(("FANFARE_TEST_PYTHON", self.program.clone())).chain(path).collect()
    }

    fn with_venv(system: &str, folder: &Path) -> Result<Self> {
        process::output(Command::new(system).args(["-m", "venv"]).arg(folder), LIMIT)?;
        let program = folder.join("bin/python").display().to_string();
        process::output(Command::new(&program).args(["-m", "pip", "install", "--quiet", PIKA]), LIMIT)?;
        Ok(Self { program, path: None })
    }

    fn with_packages_beside(system: &str, folder: &Path) -> Result<Self> {
        let mut pip = Command::new(system);
        pip.args(["-m", "pip", "install", "--quiet", PIKA, "--target"]).arg(folder);
        process::output(&mut pip, LIMIT)?;
        Ok(Self { program: system.to_owned(), path: Some(folder.to_owned()) })
    }

    fn imports_pika(&self) -> bool {
        let mut command = Command::new(&self.program);
        command.args(["-c", "import pika"]).envs(self.variables());
        process::output(&mut command, LIMIT).is_ok()
    }
}

impl std::fmt::Display for Python {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Python with pika at {}", self.program)
    }
}
