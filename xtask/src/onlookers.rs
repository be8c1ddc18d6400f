//! What tests look at Fanfare with: a browser, and Prometheus.

use anyhow::Result;

use crate::{environment, say};

/// A program that some tests need, and what to do without it.
struct Onlooker {
    program: &'static str,
    packages: &'static [&'static str],
    /// The variable that tells the tests where it is.
    variable: &'static str,
    /// The variable that tells them to do without it.
    left_out: &'static str,
    tests: &'static str,
}

const ALL: [Onlooker; 2] = [
    Onlooker {
        program: "chromedriver",
        packages: &["chromium", "chromium-driver"],
        variable: "FANFARE_TEST_CHROMEDRIVER",
        left_out: "FANFARE_TEST_NO_BROWSER",
        tests: "the tests that look at a page",
    },
    Onlooker {
        program: "prometheus",
        packages: &["prometheus"],
        variable: "FANFARE_TEST_PROMETHEUS",
        left_out: "FANFARE_TEST_NO_PROMETHEUS",
        tests: "the tests that ask Prometheus",
    },
];

/// Installs what is missing where that is possible, and returns the variables with which tests find it.
pub(crate) fn provide() -> Result<Vec<(&'static str, String)>> {
    ALL.iter().map(Onlooker::provide).collect()
}

impl Onlooker {
    fn provide(&self) -> Result<(&'static str, String)> {
        if let Some(given) = environment::variable(self.variable) {
            return Ok((self.variable, given));
        }
        if !self.works() && environment::can_install() {
            environment::install(self.packages)?;
        }
        if self.works() {
            return Ok((self.variable, self.program.to_owned()));
        }
        let packages = self.packages.join(" and ");
        say(format_args!("WARNING: {} are left out: they need Debian's {packages}", self.tests));
        Ok((self.left_out, "1".to_owned()))
    }

    fn works(&self) -> bool {
        environment::works(self.program, &["--version"])
    }
}
