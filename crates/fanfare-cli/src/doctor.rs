//! `fanfare doctor`: looks at everything that Fanfare needs, and says what to do about what is wrong.

mod checks;
#[cfg(test)]
mod denying;
mod finding;
mod harm;
mod patterns;
mod policies;

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use fanfare::{CoordinatorLimits, ServiceName};
use fanfare_broker::consumer_timeout;

use self::checks::Examination;
use self::finding::{Finding, Verdict};
use crate::exit::{Exit, Failure, print, print_json};
use crate::management::{Management, ManagementUrl};
use crate::services;
use crate::settings::Settings;

#[derive(Debug, Args)]
#[command(after_help = "\
Each line begins with what was found: ok, note (worth knowing), warn (works, but look at it),
WRONG (does not work), unknown (the broker does not tell), or denied (this user may not look). Below
it stands what to do. Nothing is changed, but for one queue that is declared, used and deleted to try
the permissions, and a message that coordinators and workers are sent to see whether they hear it.

Examples:
  fanfare doctor --broker amqp://localhost
  fanfare doctor --service image.resize,order.enriched --json

Exit codes: 0 nothing is wrong; 1 something is; 2 bad input; 3 no broker; 5 nothing is wrong as far as
this user may look, and something was denied")]
pub(crate) struct DoctorArguments {
    /// Looks at the queue of this service too; repeatable, or divided by commas. The stock services and those of fanfare.toml
    /// are looked at anyway
    #[arg(long = "service", value_name = "NAME", value_delimiter = ',')]
    services: Vec<ServiceName>,

    /// RabbitMQ's management API, which alone tells about policies [default: port 15672 of the broker, unless that is
    /// reached through TLS]
    #[arg(long, env = "FANFARE_MANAGEMENT", value_name = "URL")]
    management: Option<ManagementUrl>,

    /// Prints one line of JSON in place of the text
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: DoctorArguments, settings: &Settings) -> Result<Exit, Failure> {
    let stock = services::offered(&settings.file, true, None).map_err(Failure::bad_input)?;
    let services: BTreeSet<ServiceName> = stock.into_keys().chain(arguments.services).collect();
    let fanfare = settings.fanfare("doctor")?;
    let renewal = settings.file.coordinator.renewal.map_or(CoordinatorLimits::default().renewal, |it| it.0);
    let consumer_timeout = settings.consumer_timeout.unwrap_or(consumer_timeout::DEFAULT);
    let examination = Examination { fanfare: &fanfare, renewal, consumer_timeout, shards: settings.shards };
    let management =
        settings.broker_address()?.and_then(|broker| Management::of(&broker, arguments.management.as_ref()));
    let mut teller = Teller { wrong: false, denied: false, findings: arguments.json.then(Vec::new) };
    let examined = examine(&examination, services, management.as_ref(), &mut teller).await;
    fanfare.close().await;
    let exit = examined?;
    if let Some(findings) = teller.findings {
        print_json(&BTreeMap::from([("findings", findings)]))?;
    }
    Ok(exit)
}

async fn examine(
    examination: &Examination<'_>,
    services: BTreeSet<ServiceName>,
    management: Option<&Management>,
    teller: &mut Teller,
) -> Result<Exit, Failure> {
    let server = examination.server().await;
    let unreachable = server.verdict == Verdict::Wrong;
    teller.tell(server)?;
    teller.tell_all(checks::password_in_sight(
        std::env::args_os().map(|given| given.to_string_lossy().into_owned()),
    ))?;
    if unreachable {
        return Ok(Exit::NoBroker);
    }
    teller.tell_all(examination.permissions().await)?;
    teller.tell_all(examination.user_id().await)?;
    teller.tell_all(examination.coordinators().await)?;
    teller.tell_all(examination.shards().await)?;
    teller.tell_all(examination.cancelling().await)?;
    for service in &services {
        teller.tell_all(examination.service(service).await)?;
    }
    teller.tell_all(examination.left_behind().await)?;
    teller
        .tell_all(policies::examine(management, examination.fanfare, &services, examination.shards).await)?;
    teller.tell_all(examination.what_the_broker_does_not_tell().await)?;
    Ok(match teller {
        Teller { wrong: true, .. } => Exit::Failed,
        Teller { denied: true, .. } => Exit::Unknown,
        _ => Exit::Done,
    })
}

/// Prints findings as they come, or keeps them for the end, and remembers whether one is wrong, or was denied.
struct Teller {
    wrong: bool,
    denied: bool,
    findings: Option<Vec<Finding>>,
}

impl Teller {
    fn tell(&mut self, finding: Finding) -> Result<(), Failure> {
        self.wrong |= finding.verdict == Verdict::Wrong;
        self.denied |= finding.verdict == Verdict::Denied;
        match &mut self.findings {
            Some(findings) => findings.push(finding),
            None => print(finding)?,
        }
        Ok(())
    }

    fn tell_all(&mut self, findings: impl IntoIterator<Item = Finding>) -> Result<(), Failure> {
        findings.into_iter().try_for_each(|finding| self.tell(finding))
    }
}
