//! The model that tests use: where `make setup` puts it, or `RAGGED_MODEL_DIR`.

use std::path::PathBuf;

/// Its folder; none, and a line that says so, when it is not there.
pub(crate) fn model_dir() -> Option<PathBuf> {
    let folder = std::env::var_os("RAGGED_MODEL_DIR").map(PathBuf::from).or_else(|| {
        let home = PathBuf::from(std::env::var_os("HOME")?);
        Some(
            std::env::var_os("XDG_DATA_HOME")
                .map_or(home.join(".local/share"), PathBuf::from)
                .join("ragged/models/all-MiniLM-L6-v2"),
        )
    })?;
    if !folder.join("model.safetensors").exists() {
        eprintln!("SKIPPED: there is no model in {}; `make setup` fetches it", folder.display());
        return None;
    }
    Some(folder)
}
