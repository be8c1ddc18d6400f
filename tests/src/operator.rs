use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::process::Command;
use tokio::sync::Mutex;

/// Those who change a broker's settings share one, so they take turns.
static TURN: Mutex<()> = Mutex::const_new(());

/// What undoes all that a test may have set.
const DEFAULTS: [&[&str]; 2] = [
    &["set_vm_memory_high_watermark", "0.4"],
    &[
        "eval",
        "application:set_env(rabbit, consumer_timeout, 1800000), \
         application:set_env(rabbit, channel_tick_interval, 60000).",
    ],
];

/// Whoever runs the broker that tests may restart and set as they like: its `rabbitmqctl`.
#[derive(Debug, Clone)]
pub struct Operator {
    url: String,
    control: String,
}

impl Operator {
    /// Runs a test that changes settings of a broker of its own, one such test at a time, and undoes what it has set,
    /// however it ended.
    ///
    /// # Panics
    /// Where there is no such broker and nobody said that there is none.
    pub async fn run<F: Future<Output = ()>>(test: impl FnOnce(Self) -> F) {
        if std::env::var_os("FANFARE_TEST_NO_RESTART").is_some() {
            #[expect(clippy::print_stdout, reason = "a test that is left out says so")]
            {
                println!("left out: FANFARE_TEST_NO_RESTART is set, so there is no broker to set up");
            }
            return;
        }
        let _turn = TURN.lock().await;
        let variable = |name: &str| {
            std::env::var(name).unwrap_or_else(|_| {
                panic!("this test sets up a RabbitMQ and needs {name}: run `cargo xtask test`, or set FANFARE_TEST_NO_RESTART")
            })
        };
        let operator = Self {
            url: variable("FANFARE_TEST_RESTART_BROKER"),
            control: variable("FANFARE_TEST_RESTART_CONTROL"),
        };
        let outcome = AssertUnwindSafe(test(operator.clone())).catch_unwind().await;
        for default in DEFAULTS {
            operator.control(default).await;
        }
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }

    /// The broker's URL, for a user who may do everything.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL for another user, in another virtual host.
    #[must_use]
    pub fn url_of(&self, user: &str, password: &str, virtual_host: &str) -> String {
        let (_, rest) = self.url.rsplit_once('@').unwrap_or_else(|| self.url.split_at(self.url.len()));
        let host = rest.split('/').next().unwrap_or(rest);
        format!("amqp://{user}:{password}@{host}/{virtual_host}")
    }

    /// Runs `rabbitmqctl` with arguments, and returns what it printed.
    ///
    /// # Panics
    /// Where it fails.
    pub async fn control(&self, arguments: &[&str]) -> String {
        shell(&format!("{} -q", self.control), arguments).await
    }
}

/// Runs shell words with arguments, and returns what was printed.
///
/// # Panics
/// Where they fail.
pub(crate) async fn shell(words: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{words} \"$@\""), "sh"]).args(arguments).stdin(std::process::Stdio::null());
    let output = command.output().await.expect("`sh` can be run");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "`{words}` {arguments:?}: {}: {stdout}{stderr}", output.status);
    stdout
}
