//! The services that a worker offers: the stock ones, and those of the configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fanfare::services::{self, ExecService, HttpService};
use fanfare::{Registration, Retry, ServiceName};

use crate::configuration::{Configuration, Retries, Service, Stock, Work};
use crate::durations::Written;

/// A command or an endpoint ends at its own time-out and says what it was; the worker's comes so much later, and only says
/// that there is one.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(5);

/// All services by name. `prefetch` is for those that have none of their own.
pub(crate) fn offered(
    file: &Configuration,
    stock: bool,
    prefetch: Option<u16>,
) -> Result<BTreeMap<ServiceName, Registration>> {
    let mut offered = BTreeMap::new();
    if stock {
        for (name, registration) in services::STOCK {
            let name = ServiceName::new(name)?;
            let settings = file.stock.get(&name).cloned().unwrap_or_default();
            offered.insert(name, as_set(registration(), &settings, prefetch));
        }
    }
    if let Some(unknown) =
        file.stock.keys().find(|name| services::STOCK.iter().all(|(is, _)| name.as_str() != *is))
    {
        let all = services::STOCK.map(|(name, _)| name).join(", ");
        bail!("[stock.\"{unknown}\"]: `{unknown}` is not a stock service; there are {all}");
    }
    for (name, service) in &file.services {
        let registration =
            configured(name, service, prefetch).with_context(|| format!("service `{name}`"))?;
        if offered.insert(name.clone(), registration).is_some() {
            bail!(
                "service `{name}` is a stock service: give yours another name, or leave those out with --no-stock"
            );
        }
    }
    Ok(offered)
}

fn configured(name: &ServiceName, service: &Service, prefetch: Option<u16>) -> Result<Registration> {
    let timeout = service.timeout.map_or(services::DEFAULT_TIMEOUT, |timeout| timeout.0);
    if timeout.is_zero() {
        bail!("timeout = \"0s\" would end every invocation at once: give more, or leave it out");
    }
    let registration = match &service.work {
        Work::Exec { command, directory, env } => {
            let mut exec = ExecService::new(command)?.timeout(timeout);
            if let Some(directory) = directory {
                exec = exec.directory(directory);
            }
            exec = env.iter().fold(exec, |exec, (name, value)| exec.variable(name, value));
            Registration::new(name, exec)
        }
        Work::Http(url) => Registration::new(name, HttpService::new(url)?.timeout(timeout)),
    };
    let timeout = Some(Written(timeout.saturating_add(TIMEOUT_MARGIN)));
    let Service { concurrency, prefetch: own, retry, .. } = service;
    let settings = Stock { timeout, concurrency: *concurrency, prefetch: *own, retry: *retry };
    Ok(as_set(registration, &settings, prefetch))
}

fn as_set(mut registration: Registration, settings: &Stock, prefetch: Option<u16>) -> Registration {
    if let Some(timeout) = settings.timeout {
        registration = registration.timeout(timeout.0);
    }
    if let Some(concurrency) = settings.concurrency {
        registration = registration.concurrency(concurrency);
    }
    if let Some(prefetch) = settings.prefetch.or(prefetch) {
        registration = registration.prefetch(prefetch);
    }
    if let Some(retries) = settings.retry {
        registration = registration.retry(policy(retries));
    }
    registration
}

fn policy(Retries { attempts, first_delay, longest_delay }: Retries) -> Retry {
    let mut retry = Retry::exponential(attempts);
    if let Some(first) = first_delay {
        retry = retry.first_delay(first.0);
    }
    if let Some(longest) = longest_delay {
        retry = retry.longest_delay(longest.0);
    }
    retry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(file: &str, stock: bool) -> Result<Vec<String>> {
        let offered = offered(&toml::from_str(file).unwrap(), stock, None)?;
        Ok(offered.into_keys().map(String::from).collect())
    }

    #[test]
    fn configured_services_stand_beside_the_stock_ones() {
        let file = "[services.\"image.resize\"]\nexec = [\"resize\"]";
        assert_eq!(names(file, false).unwrap(), ["image.resize"]);
        let all = ["demo.file-stats", "helpers.echo", "helpers.input-logger", "image.resize"];
        assert_eq!(names(file, true).unwrap(), all);
    }

    #[test]
    fn stock_service_is_not_replaced_by_accident() {
        let file = "[services.\"helpers.echo\"]\nexec = [\"cat\"]";
        assert!(names(file, true).unwrap_err().to_string().contains("is a stock service"));
        assert_eq!(names(file, false).unwrap(), ["helpers.echo"]);
    }

    #[test]
    fn stock_service_is_set_by_its_name_and_by_no_other() {
        let set = "[stock.\"helpers.echo\"]\nretry = { attempts = 3 }";
        assert_eq!(names(set, true).unwrap().len(), 3);
        let error = names("[stock.\"helpers.ecco\"]\nconcurrency = 1", true).unwrap_err().to_string();
        assert!(error.contains("`helpers.ecco` is not a stock service; there are helpers.echo"), "{error}");
    }

    #[test]
    fn service_that_cannot_work_is_named() {
        let error = names("[services.a]\nexec = []", false).unwrap_err();
        assert!(format!("{error:#}").starts_with("service `a`: the command is empty"), "{error:#}");
        let error = names("[services.a]\nexec = [\"x\"]\ntimeout = \"0s\"", false).unwrap_err();
        assert!(format!("{error:#}").starts_with("service `a`: timeout = \"0s\""), "{error:#}");
        let error = names("[services.a]\nhttp = \"ftp://x\"", false).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("service `a`: \"ftp://x\" does not begin with http"),
            "{error:#}"
        );
    }
}
