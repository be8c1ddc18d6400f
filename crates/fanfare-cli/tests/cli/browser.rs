//! A headless Chromium, driven through the WebDriver protocol.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::http::ask;

/// One window. It closes with its browser when this is dropped.
pub(crate) struct Browser {
    driver: Child,
    address: String,
    session: String,
}

/// What somebody likes a page to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scheme {
    Light,
    Dark,
}

impl Scheme {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Light => "light",
            Self::Dark => "dark",
        }
    }
}

impl Browser {
    /// None where this run is told to do without, which it says.
    pub(crate) fn start() -> Option<Self> {
        if std::env::var_os("FANFARE_TEST_NO_BROWSER").is_some() {
            #[expect(clippy::print_stdout, reason = "a test that is left out says so")]
            {
                println!(
                    "left out: FANFARE_TEST_NO_BROWSER is set, so there is no browser to look at the page with"
                );
            }
            return None;
        }
        let program = std::env::var("FANFARE_TEST_CHROMEDRIVER")
            .expect("this test drives Chromium: run `cargo xtask test`, or set FANFARE_TEST_NO_BROWSER");
        let mut driver = Command::new(program)
            .arg("--port=0")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            said += &format!("{line}\n");
            Some(line.split_once("started successfully on port ")?.1.trim_end_matches('.').to_owned())
        });
        let port = port.unwrap_or_else(|| panic!("chromedriver does not say where it listens: {said}"));
        let mut browser = Self { driver, address: format!("127.0.0.1:{port}"), session: String::new() };
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
        ];
        let capabilities = json!({ "alwaysMatch": { "goog:chromeOptions": { "args": arguments } } });
        let session = browser.post("", json!({ "capabilities": capabilities }));
        browser.session = format!("/{}", session["sessionId"].as_str().unwrap());
        Some(browser)
    }

    pub(crate) fn open(&self, url: &str) {
        self.post("/url", json!({ "url": url }));
    }

    /// What an expression comes to in the page. The driver is not bound by the page's policy.
    pub(crate) fn value_of(&self, expression: &str) -> Value {
        self.post("/execute/sync", json!({ "script": format!("return {expression}"), "args": [] }))
    }

    /// Gives the page a size, and a liking for light or dark.
    pub(crate) fn shows(&self, width: u32, height: u32, scheme: Scheme) {
        let liking = json!([{ "name": "prefers-color-scheme", "value": scheme.as_str() }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": liking }));
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", size);
    }

    /// The page as a WebP.
    pub(crate) fn picture(&self) -> Vec<u8> {
        let taken = self.devtools("Page.captureScreenshot", json!({ "format": "webp", "quality": 80 }));
        BASE64_STANDARD.decode(taken["data"].as_str().unwrap()).unwrap()
    }

    fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.post("/goog/cdp/execute", json!({ "cmd": command, "params": parameters }))
    }

    /// The texts of the cells in the rows of a table's body; the one that says that there is none is left out.
    pub(crate) fn rows(&self, table: &str) -> Vec<Vec<String>> {
        let rows = format!(
            "[...document.getElementById('{table}').rows].filter(row => !row.querySelector('.empty')).map(row => [...row.cells].map(it => it.textContent))"
        );
        serde_json::from_value(self.value_of(&rows)).unwrap()
    }

    fn post(&self, command: &str, body: Value) -> Value {
        let answer =
            ask(&self.address, "POST", &format!("/session{}{command}", self.session), &body.to_string());
        assert_eq!(answer.status, 200, "{command}: {}", answer.body);
        serde_json::from_str::<Value>(&answer.body).unwrap()["value"].take()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() && !std::thread::panicking() {
            ask(&self.address, "DELETE", &format!("/session{}", self.session), "");
        }
        // With the browser, where nobody has told that to end.
        let _ = kill_process_group(Pid::from_child(&self.driver), Signal::KILL);
        let _ = self.driver.wait();
    }
}
