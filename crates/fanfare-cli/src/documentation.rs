//! docs/configuration.md names every setting that there is, and none that there is not.

use std::collections::BTreeSet;
use std::path::Path;

use clap::CommandFactory;

use crate::arguments::Arguments;
use crate::configuration::Configuration;
use crate::{settings, variables};

const PAGE: &str = include_str!("../../../docs/configuration.md");

/// The cells of the page's tables.
fn rows() -> impl Iterator<Item = Vec<&'static str>> {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
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
