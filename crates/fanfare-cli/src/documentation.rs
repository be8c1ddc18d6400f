//! docs/configuration.md names every setting that there is, and docs/telemetry.md every series, and neither what there is not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;

use clap::CommandFactory;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use crate::arguments::Arguments;
use crate::configuration::Configuration;
use crate::{monitor, settings, variables};

const PAGE: &str = include_str!("../../../docs/configuration.md");

/// The cells of the page's tables.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    rows_of(PAGE)
}

fn rows_of(page: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let rows = page.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    rows.map(|row| row.split('|').map(str::trim).collect())
}

/// What stands between backticks.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The example of the whole file.
fn example() -> &'static str {
    PAGE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap()
}

/// The fields of a table, which the parser lists for one that it does not know.
fn fields(table: &str) -> Option<Vec<String>> {
    let header = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
    let error = toml::from_str::<Configuration>(&format!("{header}unknown = 1")).unwrap_err();
    let expected = error.message().strip_prefix("unknown field `unknown`, expected ")?;
    Some(code(expected).map(str::to_owned).collect())
}

/// The keys in a table and below, where it is one, or a map of tables.
fn keys(table: &str) -> Vec<String> {
    let (inside, shown) = match fields(table) {
        Some(fields) => (fields, table.to_owned()),
        None => match fields(&format!("{table}.a")) {
            Some(_) => return keys(&format!("{table}.a")),
            None => return vec![table.replace(".a.", ".<name>.")],
        },
    };
    let below = inside.iter().map(|field| format!("{shown}.{field}").trim_start_matches('.').to_owned());
    below.flat_map(|key| keys(&key)).collect()
}

/// The keys that are set in a table.
fn set(table: &toml::Table, path: &str) -> Vec<String> {
    let nested = |(name, value): (&String, &toml::Value)| {
        let name = if ["services.", "stock."].contains(&path) { "<name>" } else { name };
        match value.as_table().filter(|_| name != "env") {
            Some(below) => set(below, &format!("{path}{name}.")),
            None => vec![format!("{path}{name}")],
        }
    };
    table.iter().flat_map(nested).collect()
}

#[test]
fn page_has_every_key_of_the_file_and_no_other() {
    let keys: BTreeSet<String> = keys("").into_iter().collect();
    assert!(keys.contains("worker.stock") && keys.contains("services.<name>.retry.attempts"), "{keys:?}");
    let documented: BTreeSet<String> = rows().flat_map(|row| code(row[0])).map(str::to_owned).collect();
    assert_eq!(documented, keys);
}

#[test]
fn page_has_every_variable_beside_its_flag_and_no_other() {
    let command = Arguments::command();
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        for argument in command.get_arguments() {
            let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) else { continue };
            let (flag, variable) = (format!("--{flag}"), variable.to_str().unwrap());
            let is_here = |row: Vec<&str>| {
                row.len() > 2
                    && code(row[1]).any(|code| code == flag)
                    && code(row[2]).any(|code| code == variable)
            };
            assert!(rows().any(is_here), "{flag} and {variable} of {} are missing", command.get_name());
        }
    }
    let known = variables::known();
    let named = PAGE.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
    for variable in named.filter(|word| word.starts_with("FANFARE_") && *word != "FANFARE_") {
        assert!(known.contains(variable), "{variable} does not exist");
    }
}

#[test]
fn example_is_taken_and_sets_every_key() {
    let configuration = Configuration::parse(example(), Path::new("docs/configuration.md")).unwrap();
    settings::checked(configuration).unwrap();
    let set: BTreeSet<String> = set(&example().parse().unwrap(), "").into_iter().collect();
    assert_eq!(set, keys("").into_iter().collect());
}

/// Collects what is described and registered.
#[derive(Default)]
struct Series {
    described: Mutex<BTreeSet<(String, &'static str, String)>>,
    labels: Mutex<BTreeMap<String, BTreeMap<String, BTreeSet<String>>>>,
}

impl Series {
    fn describe(&self, name: &KeyName, kind: &'static str, meaning: &SharedString) {
        self.described.lock().unwrap().insert((name.as_str().to_owned(), kind, meaning.to_string()));
    }

    fn register(&self, key: &Key) {
        let mut labels = self.labels.lock().unwrap();
        let series = labels.entry(key.name().to_owned()).or_default();
        for label in key.labels() {
            series.entry(label.key().to_owned()).or_default().insert(label.value().to_owned());
        }
    }
}

impl Recorder for Series {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, meaning: SharedString) {
        self.describe(&name, "counter", &meaning);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, meaning: SharedString) {
        self.describe(&name, "gauge", &meaning);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, meaning: SharedString) {
        self.describe(&name, "histogram", &meaning);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        self.register(key);
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        self.register(key);
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        self.register(key);
        Histogram::noop()
    }
}

#[test]
fn page_has_every_series_with_its_type_its_labels_and_its_meaning() {
    let series = Series::default();
    metrics::with_local_recorder(&series, || monitor::describe("worker"));
    let rows: Vec<_> = rows_of(include_str!("../../../docs/telemetry.md"))
        .filter(|row| row[0].starts_with("`fanfare_"))
        .map(|row| (row[0].trim_matches('`').to_owned(), row))
        .collect();
    let documented: BTreeSet<(String, &str, String)> =
        rows.iter().map(|(name, row)| (name.clone(), row[1], row[3].to_owned())).collect();
    assert_eq!(documented, series.described.into_inner().unwrap());
    // Series with the label `service` begin with their services.
    for (name, labels) in series.labels.into_inner().unwrap() {
        let (_, row) = rows.iter().find(|(documented, _)| *documented == name).unwrap();
        let known: BTreeSet<&str> = code(row[2]).collect();
        for (label, values) in
            labels.iter().filter(|(label, _)| !["version", "role"].contains(&label.as_str()))
        {
            let written: BTreeSet<&str> = values.iter().map(String::as_str).chain([label.as_str()]).collect();
            assert_eq!(written, known, "{name}");
        }
    }
}
