//! The services that a worker offers: the stock ones, and those of the configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Error, Result};
use fanfare::services::{self, ExecService, HttpService};
use fanfare::{Registration, Retry, ServiceName};

use crate::configuration::{Configuration, ConfigurationError, Retries, Service, Stock, Work};
use crate::durations::Written;

/// A command or an endpoint ends at its own time-out and says what it was; the worker's comes so much later, and only says
/// that there is one.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(5);

/// Finds what the file says of services that nobody could run, whether or not they are offered here.
pub(crate) fn check(file: &Configuration) -> Result<(), ConfigurationError> {
    for (name, service) in &file.services {
        let at = |key| ["services", name.as_str(), key];
        let (key, wrong) = match &service.work {
            Work::Exec { command, .. } => ("exec", ExecService::new(command).err().map(Error::new)),
            Work::Http(url) => ("http", HttpService::check(url).err().map(Error::new)),
        };
        if let Some(error) = wrong {
            return Err(file.mistake(&at(key), format_args!("{error:#}")));
        }
        check_retry(file, &at("retry"), service.retry)?;
    }
    for (name, stock) in &file.stock {
        let all = [services::ECHO, services::INPUT_LOGGER, services::FILE_STATS];
        if !all.contains(&name.as_str()) {
            let all = all.join(", ");
            let mistake = format_args!("`{name}` is not a stock service; there are {all}");
            return Err(file.mistake(&["stock", name.as_str()], mistake));
        }
        check_retry(file, &["stock", name.as_str(), "retry"], stock.retry)?;
    }
    Ok(())
}

fn check_retry(
    file: &Configuration,
    key: &[&str],
    retries: Option<Retries>,
) -> Result<(), ConfigurationError> {
    let broken = retries.and_then(|retries| policy(retries).broken_rule());
    broken.map_or(Ok(()), |rule| Err(file.mistake(key, rule)))
}

/// All services by name. `prefetch` is for those that have none of their own.
pub(crate) fn offered(
    file: &Configuration,
    stock: bool,
    prefetch: Option<u16>,
) -> Result<BTreeMap<ServiceName, Registration>> {
    let mut offered = BTreeMap::new();
    if stock {
        // One reads files of its host, and is served only where the file has a table for it.
        let asked = file.stock.keys().any(|name| name.as_str() == services::FILE_STATS);
        let file_stats =
            asked.then_some((services::FILE_STATS, services::file_stats as fn() -> Registration));
        for (name, registration) in services::STOCK.into_iter().chain(file_stats) {
            let name = ServiceName::new(name)?;
            let settings = file.stock.get(&name).cloned().unwrap_or_default();
            offered.insert(name, as_set(registration(), &settings, prefetch));
        }
    }
    for (name, service) in &file.services {
        let registration =
            configured(name, service, prefetch).with_context(|| format!("service `{name}`"))?;
        if offered.insert(name.clone(), registration).is_some() {
            let mistake = format_args!(
                "`{name}` is a stock service: give yours another name, or leave those out with --no-stock"
            );
            return Err(file.mistake(&["services", name.as_str()], mistake).into());
        }
    }
    Ok(offered)
}

fn configured(name: &ServiceName, service: &Service, prefetch: Option<u16>) -> Result<Registration> {
    let timeout = service.timeout.map_or(services::DEFAULT_TIMEOUT, |timeout| timeout.0);
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
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Configuration {
        Configuration::parse(text, Path::new("fanfare.toml")).unwrap()
    }

    fn names(file: &str, stock: bool) -> Result<Vec<String>> {
        let offered = offered(&parse(file), stock, None)?;
        Ok(offered.into_keys().map(String::from).collect())
    }

    #[test]
    fn configured_services_stand_beside_the_stock_ones() {
        let file = "[services.\"image.resize\"]\nexec = [\"resize\"]";
        assert_eq!(names(file, false).unwrap(), ["image.resize"]);
        let all = ["helpers.echo", "helpers.input-logger", "image.resize"];
        assert_eq!(names(file, true).unwrap(), all);
    }

    #[test]
    fn files_of_the_host_are_read_only_where_the_file_asks_for_it() {
        let all = ["helpers.echo", "helpers.input-logger"];
        assert_eq!(names("", true).unwrap(), all);
        let asked = "[stock.\"demo.file-stats\"]";
        assert_eq!(names(asked, true).unwrap(), [&["demo.file-stats"], &all[..]].concat());
        assert!(names(asked, false).unwrap().is_empty());
    }

    #[test]
    fn stock_service_is_not_replaced_by_accident() {
        let file = "[services.\"helpers.echo\"]\nexec = [\"cat\"]";
        let error = names(file, true).unwrap_err().to_string();
        assert!(error.starts_with("fanfare.toml:1:1: `helpers.echo` is a stock service"), "{error}");
        assert_eq!(names(file, false).unwrap(), ["helpers.echo"]);
    }

    #[test]
    fn service_that_nobody_could_run_is_refused_with_its_line() {
        for (text, expected) in [
            ("[services.a]\nexec = []", "2:8: the command is empty: give the program and its arguments"),
            ("[services.a]\n\nhttp = \"ftp://x\"", "3:8: \"ftp://x\" does not begin with http"),
            ("[services]\na = { exec = [\"\"] }", "2:14: the command is empty"),
            ("[services.a]\nexec = [\"x\"]\nretry = { attempts = 0 }", "3:9: 0 attempts would never run it"),
            (
                "[services.a]\nexec = [\"x\"]\n[services.a.retry]\nattempts = 2\nlongest_delay = \"2d\"",
                "3:1: a longest wait of 172800s is above the most",
            ),
            (
                "[stock.\"helpers.echo\"]\nretry = { attempts = 2, first_delay = \"9ms\" }",
                "2:9: a first wait of 9ms",
            ),
            (
                "\n[stock.\"helpers.ecco\"]",
                "2:1: `helpers.ecco` is not a stock service; there are helpers.echo",
            ),
        ] {
            let error = check(&parse(text)).unwrap_err().to_string();
            assert!(error.starts_with(&format!("fanfare.toml:{expected}")), "{text}: {error}");
        }
        check(&parse("[stock.\"helpers.echo\"]\nretry = { attempts = 3 }")).unwrap();
    }
}
