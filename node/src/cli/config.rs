//! `ragged config`: the effective configuration of a node.

use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::output::{Output, render};
use crate::cli::settings;
use crate::config::{Config, Key, Kind, Sources};
use clap::Args;
use comfy_table::Cell;
use serde::Serialize;

const AFTER_HELP: &str = "\
Examples:
  ragged config
  ragged config --default > ragged.toml
  RAGGED_HTTP_LISTEN=127.0.0.1:7500 ragged config --json | jq '.keys[] | select(.origin != \"default\")'";

/// Width of the comments of a printed file.
const COMMENT_COLUMNS: usize = 100;

/// Arguments of `ragged config`.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// Print a configuration file with every key, its default and its meaning, commented out
    #[arg(long)]
    default: bool,
}

#[derive(Serialize)]
struct Report {
    keys: Vec<Setting>,
}

#[derive(Serialize)]
struct Setting {
    key: &'static str,
    value: String,
    unit: &'static str,
    origin: String,
    variable: String,
    default: &'static str,
    meaning: &'static str,
}

/// Prints the configuration.
pub fn run(arguments: Arguments, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let report = if arguments.default { defaults()? } else { effective(globals)? };
    if output.is_json() {
        output.json(&report)?;
    } else if arguments.default {
        output.text(file(&report).trim_end())?;
    } else {
        output.text(table(&report, output))?;
    }
    Ok(Exit::Success)
}

fn effective(globals: &Globals) -> Result<Report, CliError> {
    let loaded = settings::load(globals, Vec::new())?;
    let setting = |key: &Key| {
        let value = loaded.config.value(key.path).unwrap_or_default();
        let value = if key.kind == Kind::Secret && !value.is_empty() { "(secret)".to_owned() } else { value };
        let origin = loaded.origins.get(key.path).cloned().unwrap_or_else(|| "default".to_owned());
        describe(key, value, origin)
    };
    Ok(Report { keys: Config::describe().iter().map(setting).collect() })
}

/// The defaults as they are on this machine: without a file, and without variables other than those that name the home.
fn defaults() -> Result<Report, CliError> {
    let mut sources = Sources::from_environment(None, Vec::new())?;
    sources.variables.retain(|(name, _)| !name.starts_with("RAGGED_"));
    // An empty file instead of one that may lie in the working folder.
    let config = Config::load(&Sources { file: Some("/dev/null".into()), ..sources })?.config;
    let setting = |key: &Key| {
        let value = config.value(key.path).unwrap_or_else(|| key.default.to_owned());
        describe(key, value, "default".to_owned())
    };
    Ok(Report { keys: Config::describe().iter().map(setting).collect() })
}

fn describe(key: &Key, value: String, origin: String) -> Setting {
    let Key { path, default, unit, meaning, .. } = *key;
    Setting { key: path, value, unit, origin, variable: key.variable(), default, meaning }
}

fn table(report: &Report, output: &Output) -> String {
    let mut table = output.table(&["key", "value", "unit", "from"]);
    for setting in &report.keys {
        table.add_row([setting.key, &setting.value, setting.unit, &setting.origin].map(Cell::new));
    }
    render(&table)
}

/// A TOML file that changes nothing until a line of it is uncommented.
fn file(report: &Report) -> String {
    // Keys of no section must stand before the first one.
    let (in_section, top): (Vec<_>, Vec<_>) = report.keys.iter().partition(|setting| setting.key.contains('.'));
    let mut text = "# Configuration of a ragged node. Every line is commented out and shows the default.\n".to_owned();
    let mut open = "";
    for setting in top.into_iter().chain(in_section) {
        let (section, name) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
        if section != open {
            text.push_str(&format!("\n[{section}]\n"));
            open = section;
        }
        text.push('\n');
        for line in wrap(setting.meaning, COMMENT_COLUMNS) {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&format!("# {}.\n", counts(setting)));
        text.push_str(&format!("#{name} = {}\n", toml_value(setting)));
    }
    text
}

fn counts(setting: &Setting) -> String {
    let unit = if setting.unit.is_empty() { String::new() } else { format!("In {}. ", setting.unit) };
    let default = if setting.default == setting.value { String::new() } else { format!("Default: {}. ", setting.default) };
    format!("{unit}{default}Variable {}", setting.variable)
}

fn toml_value(setting: &Setting) -> String {
    let is_bare = setting.value.parse::<u64>().is_ok() || setting.value.parse::<bool>().is_ok();
    if is_bare { setting.value.clone() } else { toml::Value::String(setting.value.clone()).to_string() }
}

fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > columns {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_file_is_toml_with_every_key_once_it_is_uncommented() {
        let text = file(&defaults().unwrap());
        assert!(
            text.parse::<toml::Table>().unwrap().values().all(|section| section.as_table().is_some_and(|keys| keys.is_empty()))
        );
        let is_setting = |line: &str| line.starts_with('#') && !line.starts_with("# ");
        let uncommented: String =
            text.lines().map(|line| if is_setting(line) { &line[1..] } else { line }).map(|line| format!("{line}\n")).collect();
        let table: toml::Table = uncommented.parse().unwrap();
        for key in Config::describe() {
            let mut value = Some(&toml::Value::Table(table.clone())).cloned();
            for part in key.path.split('.') {
                value = value.and_then(|inner| inner.get(part).cloned());
            }
            assert!(value.is_some(), "{} is missing in\n{text}", key.path);
        }
    }

    #[test]
    fn lines_wrap_between_words() {
        assert_eq!(wrap("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("toolongword b", 5), ["toolongword", "b"]);
    }
}
