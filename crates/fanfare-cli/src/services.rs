//! The services that a worker offers: the stock ones, and those of the configuration.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use fanfare::services::{self, ExecService, HttpService};
use fanfare::{Registration, ServiceName};

use crate::configuration::{Configuration, Service, Work};

/// All services by name. `prefetch` is for those that have none of their own.
pub(crate) fn offered(
    file: &Configuration,
    stock: bool,
    prefetch: Option<u16>,
) -> Result<BTreeMap<ServiceName, Registration>> {
    let mut offered = BTreeMap::new();
    if stock {
        for (name, registration) in services::STOCK {
            offered.insert(ServiceName::new(name)?, with_prefetch(registration(), prefetch));
        }
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
    let mut registration = match &service.work {
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
    if let Some(concurrency) = service.concurrency {
        registration = registration.concurrency(concurrency);
    }
    Ok(with_prefetch(registration, service.prefetch.or(prefetch)))
}

fn with_prefetch(registration: Registration, prefetch: Option<u16>) -> Registration {
    match prefetch {
        Some(prefetch) => registration.prefetch(prefetch),
        None => registration,
    }
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
    fn service_that_cannot_work_is_named() {
        let error = names("[services.a]\nexec = []", false).unwrap_err();
        assert!(format!("{error:#}").starts_with("service `a`: the command is empty"), "{error:#}");
        let error = names("[services.a]\nhttp = \"ftp://x\"", false).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("service `a`: \"ftp://x\" does not begin with http"),
            "{error:#}"
        );
    }
}
