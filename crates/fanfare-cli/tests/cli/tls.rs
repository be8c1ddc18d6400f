//! The settings for `amqps://`, on RabbitMQ behind a relay that speaks TLS.

// One copy of what makes certificates serves the tests of two crates.
#[path = "../../../fanfare-broker/tests/support/tls.rs"]
mod authority;

use std::fs;
use std::path::Path;

use self::authority::{Authority, TlsRelay};
use crate::support::{Ended, broker, run, split};

/// Runs the doctor, which needs a connection before anything else, and gives back how that went.
fn connect(directory: &Path, arguments: &[&str]) -> Ended {
    let prefix = format!("cli-tls-{}", std::process::id());
    run(directory, &[&["doctor", "--prefix", &prefix], arguments].concat())
}

fn assert_connected(ended: &Ended) {
    assert!(ended.stdout.starts_with("ok      broker: RabbitMQ"), "{ended:?}");
}

fn assert_refused(ended: &Ended, reason: &str) {
    assert_eq!(ended.exit, 3, "{ended:?}");
    assert!(ended.stdout.to_lowercase().contains(reason), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_authority_and_client_certificate_come_from_flags_and_from_the_file() {
    let authority = Authority::new();
    let relay = TlsRelay::start(&broker(), &authority, Some(&authority)).await;
    let directory = tempfile::tempdir().unwrap();
    let client = authority.client();
    let [ca, certificate, key] =
        [authority.file(), client.certificate, client.key].map(|path| path.to_str().unwrap().to_owned());
    let flags = ["--broker", &relay.url, "--ca-certificate", &ca];
    let with_client = ["--client-certificate", &certificate, "--client-key", &key];
    assert_connected(&connect(directory.path(), &[&flags[..], &with_client[..]].concat()));
    assert_refused(&connect(directory.path(), &flags), "");

    let file = format!(
        "broker = {:?}\n[tls]\nca_certificate = {ca:?}\nclient_certificate = {certificate:?}\nclient_key = {key:?}\n",
        relay.url
    );
    fs::write(directory.path().join("fanfare.toml"), file).unwrap();
    assert_connected(&connect(directory.path(), &[]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_authority_and_wrong_host_name_are_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let relay = TlsRelay::start(&broker(), &authority, None).await;
    let directory = tempfile::tempdir().unwrap();
    let (ca, unknown) = (authority.file(), other.file());
    let (ca, unknown) = (ca.to_str().unwrap(), unknown.to_str().unwrap());
    let elsewhere = relay.url.replace("localhost:", "127.0.0.1:");
    assert_connected(&connect(directory.path(), &["--broker", &relay.url, "--ca-certificate", ca]));
    for (url, ca) in [(&relay.url, unknown), (&elsewhere, ca)] {
        assert_refused(&connect(directory.path(), &["--broker", url, "--ca-certificate", ca]), "certificate");
    }
    assert_refused(&connect(directory.path(), &["--broker", &relay.url]), "certificate");
}
