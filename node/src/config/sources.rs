//! Where the values of a configuration come from.

use crate::config::error::ConfigError;
use std::path::{Path, PathBuf};

/// The file that is read when neither `--config` nor `RAGGED_CONFIG` names one, if it is there.
pub const DEFAULT_FILE: &str = "ragged.toml";

/// `RAGGED_*` variables that are not keys of the node: they name the file, or belong to the commands that talk to a node, to `make`
/// or to the tests. Every other `RAGGED_*` variable must be that of a key.
pub const OTHER_VARIABLES: &[(&str, &str)] = &[
    ("RAGGED_CONFIG", "the configuration file to read"),
    ("RAGGED_URL", "addresses of the nodes that the commands talk to"),
    ("RAGGED_KEY", "key that the commands use"),
    ("RAGGED_KEY_FILE", "file with the key that the commands use"),
    ("RAGGED_RUN_ONCE", "makes `make run` end after its demonstration"),
    ("RAGGED_BENCH_COLLECTION", "collection that `make bench` uses"),
    ("RAGGED_SHARED", "folder with the data of the tests and benchmarks"),
    ("RAGGED_KILL_ROUNDS", "how often the test of sudden ends kills its node"),
    #[cfg(feature = "mutants")]
    ("RAGGED_MUTANT", "known bugs that are switched on, in a build for tests"),
    #[cfg(feature = "failpoints")]
    ("RAGGED_FAILPOINTS", "points at which the node is killed, in a build for tests"),
    #[cfg(feature = "failpoints")]
    ("RAGGED_FAILPOINTS_FILE", "file with points at which the running node is killed, in a build for tests"),
];

/// Where the values of a configuration come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`, when it was given.
    pub file: Option<PathBuf>,
    /// The environment.
    pub variables: Vec<(String, String)>,
    /// Flags: path of the key (as in [`KEYS`](super::key::KEYS)) and value.
    pub flags: Vec<(&'static str, String)>,
}

impl Sources {
    /// The environment of this process, with `--config` and further flags.
    pub fn from_environment(file: Option<PathBuf>, flags: Vec<(&'static str, String)>) -> Result<Sources, ConfigError> {
        let mut variables = Vec::new();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else { continue };
            let wanted = name.starts_with("RAGGED_") || name == "HOME" || name == "XDG_DATA_HOME";
            if !wanted {
                continue;
            }
            match value.into_string() {
                Ok(value) => variables.push((name, value)),
                Err(_) => return Err(ConfigError::VariableNotText(name)),
            }
        }
        Ok(Sources { file, variables, flags })
    }

    /// A variable that is set to something.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Where the defaults of the folders begin: `$XDG_DATA_HOME/ragged`, or `~/.local/share/ragged`.
    pub fn data_home(&self) -> Option<PathBuf> {
        let base = match (self.variable("XDG_DATA_HOME"), self.variable("HOME")) {
            // The XDG specification: a relative path is to be ignored.
            (Some(data_home), _) if Path::new(data_home).is_absolute() => PathBuf::from(data_home),
            (_, Some(home)) => Path::new(home).join(".local/share"),
            _ => return None,
        };
        Some(base.join("ragged"))
    }

    /// The file to read, when there is one.
    pub fn file(&self) -> Option<PathBuf> {
        let named = self.file.clone().or_else(|| self.variable("RAGGED_CONFIG").map(PathBuf::from));
        named.or_else(|| Path::new(DEFAULT_FILE).is_file().then(|| PathBuf::from(DEFAULT_FILE)))
    }
}
