//! RabbitMQ's management API, with which tests set up what the doctor is to find.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fanfare_broker::amqp::Address;

use crate::http::ask_with;
use crate::support::broker;

/// The management API of the broker of the tests, for the user of the tests.
pub(crate) struct Management {
    pub(crate) url: String,
    broker: Address,
}

impl Management {
    /// None where this run is told to do without, which it says.
    pub(crate) fn of_the_broker() -> Option<Self> {
        if std::env::var_os("FANFARE_TEST_NO_MANAGEMENT").is_some() {
            #[expect(clippy::print_stdout, reason = "a test that is left out says so")]
            {
                println!("left out: FANFARE_TEST_NO_MANAGEMENT is set, so there is no management API to ask");
            }
            return None;
        }
        let url = std::env::var("FANFARE_TEST_MANAGEMENT");
        let url = url.expect(
            "this test asks RabbitMQ's management API: run `cargo xtask test`, or set FANFARE_TEST_NO_MANAGEMENT",
        );
        Some(Self { url, broker: broker().parse().unwrap() })
    }

    /// Sets a policy for the queues whose names match a pattern, until it is dropped.
    pub(crate) fn policy(&self, name: &str, pattern: &str, definition: &str) -> Entry<'_> {
        let path = format!("/api/policies/{}/{name}", self.virtual_host());
        let policy = format!(r#"{{"pattern":"{pattern}","apply-to":"queues","definition":{definition}}}"#);
        Entry::put(self, path, &policy)
    }

    /// Adds a user, who may do nothing in the virtual host but log in, until it is dropped.
    pub(crate) fn user(&self, name: &str, password: &str) -> Entry<'_> {
        let user = Entry::put(
            self,
            format!("/api/users/{name}"),
            &format!(r#"{{"password":"{password}","tags":""}}"#),
        );
        let path = format!("/api/permissions/{}/{name}", self.virtual_host());
        self.ask("PUT", &path, r#"{"configure":"^$","write":"^$","read":"^$"}"#);
        user
    }

    fn virtual_host(&self) -> String {
        self.broker.virtual_host().replace('/', "%2F")
    }

    fn ask(&self, method: &str, path: &str, body: &str) {
        let address = self.url.strip_prefix("http://").unwrap();
        let credentials = STANDARD.encode(format!("{}:{}", self.broker.user(), self.broker.password()));
        let headers = format!("Host: {address}\r\nAuthorization: Basic {credentials}");
        let answer = ask_with(&headers, address, method, path, body);
        assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
    }
}

/// Something at the broker that lives as long as this.
pub(crate) struct Entry<'a> {
    management: &'a Management,
    path: String,
}

impl<'a> Entry<'a> {
    fn put(management: &'a Management, path: String, body: &str) -> Self {
        management.ask("PUT", &path, body);
        Self { management, path }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.management.ask("DELETE", &self.path, "");
    }
}
