//! The node's configuration as the commands need it: to run it, to print it, and to find the key in its data folder.

use crate::cli::error::CliError;
use crate::cli::globals::Globals;
use crate::config::{Config, ConfigError, Loaded, Sources};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Name of the file in the data folder that the first start of a node writes.
const KEY_FILE: &str = "admin.key";

/// A file with a key is shorter than this.
const KEY_BYTES_MAX: u64 = 4096;

/// Reads the node's configuration, with the options that every command has and further flags.
pub fn load(globals: &Globals, mut flags: Vec<(&'static str, String)>) -> Result<Loaded, ConfigError> {
    if let Some(data_dir) = &globals.data_dir {
        flags.push(("data_dir", data_dir.clone()));
    }
    Config::load(&Sources::from_environment(globals.config.clone(), flags)?)
}

/// The key to talk with: the one that was given, else that of the data folder when all the nodes are on this machine.
///
/// The key of the data folder opens everything. It is never sent anywhere else without being asked for.
pub fn key(globals: &Globals, endpoints: &[String]) -> Result<Option<String>, CliError> {
    if let Some(key) = globals.key.as_deref().map(str::trim).filter(|key| !key.is_empty()) {
        return Ok(Some(key.to_owned()));
    }
    if let Some(path) = globals.key_file.as_deref().filter(|path| !path.as_os_str().is_empty()) {
        return read_key(path).map(Some);
    }
    if !endpoints.iter().all(|endpoint| is_this_machine(endpoint)) {
        return Ok(None);
    }
    let path = load(globals, Vec::new())?.config.data_dir.join(KEY_FILE);
    match read_key(&path) {
        Err(CliError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

fn read_key(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(KEY_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(|source| CliError::io(format!("cannot read the key in {}", path.display()), source))?;
    let key = text.trim();
    if key.is_empty() || text.len() as u64 > KEY_BYTES_MAX || key.contains(char::is_whitespace) {
        return Err(CliError::Usage(format!("{} does not hold a key", path.display())));
    }
    Ok(key.to_owned())
}

fn is_this_machine(endpoint: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(endpoint) else { return false };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn globals(data_dir: &Path) -> Globals {
        let data_dir = Some(data_dir.to_str().unwrap().to_owned());
        Globals { endpoints: Vec::new(), key: None, key_file: None, config: None, data_dir, json: false, quiet: false }
    }

    fn local() -> Vec<String> {
        vec!["http://127.0.0.1:7400".to_owned(), "http://[::1]:1".to_owned(), "http://localhost".to_owned()]
    }

    #[test]
    fn the_key_of_the_data_folder_is_found_and_never_leaves_this_machine() {
        let folder = tempfile::tempdir().unwrap();
        let globals = globals(folder.path());
        assert_eq!(key(&globals, &local()).unwrap(), None);
        std::fs::write(folder.path().join(KEY_FILE), "secret\n").unwrap();
        assert_eq!(key(&globals, &local()).unwrap().as_deref(), Some("secret"));
        for elsewhere in ["http://10.0.0.1:7400", "http://127.0.0.1.example.org", "http://localhost.example.org"] {
            let mut endpoints = local();
            endpoints.push(elsewhere.to_owned());
            assert_eq!(key(&globals, &endpoints).unwrap(), None, "{elsewhere}");
        }
    }

    #[test]
    fn a_key_that_is_given_comes_first_and_a_key_file_must_hold_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("k");
        std::fs::write(&file, " from-file \n").unwrap();
        let mut globals = globals(folder.path());
        globals.key_file = Some(file.clone());
        let elsewhere = ["http://10.0.0.1".to_owned()];
        assert_eq!(key(&globals, &elsewhere).unwrap().as_deref(), Some("from-file"));
        globals.key = Some("given".to_owned());
        assert_eq!(key(&globals, &elsewhere).unwrap().as_deref(), Some("given"));
        globals.key = Some(String::new()); // an empty variable is none
        for wrong in ["", "two words", &"x".repeat(5000)] {
            std::fs::write(&file, wrong).unwrap();
            let error = key(&globals, &elsewhere).unwrap_err();
            assert!(matches!(error, CliError::Usage(_)), "{error:?}");
        }
        globals.key_file = Some(folder.path().join("missing"));
        assert!(matches!(key(&globals, &elsewhere), Err(CliError::Io { .. })));
    }
}
