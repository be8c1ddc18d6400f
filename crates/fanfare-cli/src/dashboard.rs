//! `fanfare dashboard`: a page that shows what all coordinators tell.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::Args;
use fanfare_broker::Readiness;

use crate::exit::{Exit, Failure, print};
use crate::monitor::{Address, Monitor, Subject};
use crate::settings::Settings;
use crate::signals::Signals;

/// Where the page is, unless somebody says where.
const DEFAULT: Address = Address(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9466));

#[derive(Debug, Args)]
#[command(after_help = "\
Prints the page's address and serves it until SIGTERM or SIGINT. It asks all coordinators, as `fanfare
status` does: every 2 s while somebody looks at the page, once for all who do, and not at all while
nobody does. Nothing can be changed there. There is no login: bind it to the local host, or to a
network that only those reach who may read exceptions, CIDs and names of services.

Examples:
  fanfare dashboard
  fanfare dashboard --broker amqp://operator@broker.internal/fanfare --listen 127.0.0.1:8080

Exit codes: 0 stopped; 2 bad input")]
pub(crate) struct DashboardArguments {
    /// Where the page is served: an IP address and a port [default: 127.0.0.1:9466]
    #[arg(long, env = "FANFARE_LISTEN", value_name = "ADDRESS")]
    listen: Option<Address>,
}

pub(crate) async fn run(arguments: DashboardArguments, settings: &Settings) -> Result<Exit, Failure> {
    let fanfare = settings.fanfare("dashboard")?;
    let signals = Signals::listen()?;
    let subject = Subject {
        role: "dashboard",
        broker: Arc::clone(fanfare.broker()),
        readiness: Readiness::default(),
        coordinator: None,
        operator: Some(settings.operator(&fanfare)),
    };
    let monitor = Monitor::start(arguments.listen.unwrap_or(DEFAULT), subject).await?;
    print(format_args!("http://{}/", monitor.address()))?;
    signals.first().await;
    fanfare.close().await;
    Ok(Exit::Done)
}
