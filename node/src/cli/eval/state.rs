//! Keeps the last run of a dataset and a collection.

use super::report::Report;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// The file of a dataset and a collection.
pub struct State {
    path: PathBuf,
}

impl State {
    /// The place of a dataset and a collection; none when there is no home folder.
    pub fn of(dataset: &Path, collection: &str) -> Option<State> {
        let folder = folder(std::env::var_os("XDG_STATE_HOME"), std::env::var_os("HOME"))?;
        Some(State::within(&folder, dataset, collection))
    }

    fn within(folder: &Path, dataset: &Path, collection: &str) -> State {
        // The same folder by another path is the same dataset. The node does not count: a fix is compared across restarts and ports.
        let dataset = dataset.canonicalize().unwrap_or_else(|_| dataset.to_owned());
        let mut hash = Sha256::new();
        hash.update(dataset.as_os_str().as_encoded_bytes());
        hash.update([0]); // a path has no zero byte: nothing else adds up to the same
        hash.update(collection.as_bytes());
        let name: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        State { path: folder.join(format!("{name}.json")) }
    }

    /// The last run; none when there was none or when it cannot be read any more.
    pub fn load(&self) -> Option<Report> {
        serde_json::from_slice(&std::fs::read(&self.path).ok()?).ok()
    }

    /// Keeps a run instead of the last one. Modes that were not measured this time are kept from before.
    pub fn save(&self, report: &Report) -> io::Result<()> {
        let mut kept = report.clone();
        if let Some(last) = self.load() {
            for (name, result) in last.modes {
                kept.modes.entry(name).or_insert(result);
            }
        }
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // Renamed into place: a run that is interrupted leaves the last one whole.
        let unfinished = self.path.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::write(&unfinished, serde_json::to_vec_pretty(&kept)?)?;
        std::fs::rename(&unfinished, &self.path)
    }
}

/// `$XDG_STATE_HOME/ragged/eval`, or `~/.local/state/ragged/eval`; the XDG specification ignores relative paths.
fn folder(state_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let state_home = state_home.map(PathBuf::from).filter(|path| path.is_absolute());
    let home = home.filter(|home| !home.is_empty()).map(|home| PathBuf::from(home).join(".local/state"));
    Some(state_home.or(home)?.join("ragged/eval"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::eval::metrics::Measures;
    use crate::cli::eval::report::ModeResult;
    use std::collections::BTreeMap;

    fn report(modes: &[(&str, f64)]) -> Report {
        let result =
            |ndcg_at_10: f64| ModeResult { measures: Measures { ndcg_at_10, ..Measures::default() }, change: None, took_s: 1.0 };
        let modes: BTreeMap<String, ModeResult> = modes.iter().map(|(name, ndcg)| (name.to_string(), result(*ndcg))).collect();
        Report::new(Path::new("d"), "c", 1, modes)
    }

    #[test]
    fn the_last_run_of_each_mode_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::within(&folder.path().join("new"), Path::new("/d"), "c");
        assert!(state.load().is_none());
        state.save(&report(&[("dense", 0.1), ("text", 0.2)])).unwrap();
        state.save(&report(&[("dense", 0.3)])).unwrap();
        let kept = state.load().unwrap();
        assert_eq!(kept.modes["dense"].measures.ndcg_at_10, 0.3);
        assert_eq!(kept.modes["text"].measures.ndcg_at_10, 0.2);
        assert!(State::within(&folder.path().join("new"), Path::new("/d"), "other").load().is_none());
        std::fs::write(&state.path, "{").unwrap();
        assert!(state.load().is_none());
    }

    #[test]
    fn the_folder_is_that_of_the_xdg_specification() {
        let path = |text: &str| Some(OsString::from(text));
        assert_eq!(folder(path("/s"), path("/h")), Some("/s/ragged/eval".into()));
        assert_eq!(folder(path("relative"), path("/h")), Some("/h/.local/state/ragged/eval".into()));
        assert_eq!(folder(None, None), None);
    }
}
