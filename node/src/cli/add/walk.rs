//! Finds the files to add.

use super::Failure;
use crate::cli::error::CliError;
use ragged_client::Format;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use walkdir::{DirEntry, WalkDir};

/// A file to add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// Id of its document.
    pub id: String,
    /// How it is written.
    pub format: Format,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Files {
    /// To be added, in the order of their paths.
    pub files: Vec<Found>,
    /// Files of other kinds.
    pub skipped: u64,
    /// What could not be read, and files whose ids are taken.
    pub failed: Vec<Failure>,
    ids: HashSet<String>,
}

/// Finds the files below paths. The ids begin with the prefix.
///
/// # Errors
/// [`CliError::Usage`] for a path that does not exist, and for a folder without `recursive`: nothing has been done then.
pub fn find(paths: &[PathBuf], recursive: bool, prefix: &str) -> Result<Files, CliError> {
    let mut found = Files::default();
    for root in paths {
        let metadata = std::fs::metadata(root).map_err(|error| CliError::Usage(format!("{}: {error}", root.display())))?;
        if metadata.is_dir() && !recursive {
            return Err(CliError::Usage(format!("{} is a folder: add --recursive to take what is in it", root.display())));
        }
        found.walk(root, prefix);
    }
    Ok(found)
}

impl Files {
    fn walk(&mut self, root: &Path, prefix: &str) {
        // Links are followed; walkdir reports a link that leads to a folder above it as an error instead of following it.
        let walk = WalkDir::new(root).follow_links(true).sort_by_file_name();
        for entry in walk.into_iter().filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry)) {
            match entry {
                Ok(entry) if entry.file_type().is_file() => self.take(root, entry.path(), prefix),
                Ok(entry) if entry.file_type().is_dir() => {}
                Ok(_) => self.skipped += 1, // sockets and the like
                Err(error) => {
                    let path = error.path().unwrap_or(root).to_owned();
                    let is_loop = error.loop_ancestor().is_some();
                    let code = if is_loop { "link_loop" } else { "unreadable" };
                    let cause = error.into_io_error().map(|error| error.to_string());
                    self.fail(&path, code, cause.unwrap_or_else(|| "a link to a folder that it is in".to_owned()));
                }
            }
        }
    }

    fn take(&mut self, root: &Path, path: &Path, prefix: &str) {
        let Some(format) = format_of(path) else {
            self.skipped += 1;
            return;
        };
        let relative = path.strip_prefix(root).ok().filter(|relative| !relative.as_os_str().is_empty());
        let Some(name) = relative.map(Path::as_os_str).or_else(|| path.file_name()).and_then(OsStr::to_str) else {
            self.fail(path, "invalid_utf8", "the name of the file is not valid UTF-8".to_owned());
            return;
        };
        let id = format!("{prefix}{name}");
        if self.ids.insert(id.clone()) {
            self.files.push(Found { path: path.to_owned(), id, format });
        } else {
            self.fail(path, "duplicate_id", format!("another file is added as {id} already; --prefix keeps folders apart"));
        }
    }

    fn fail(&mut self, path: &Path, code: &str, detail: String) {
        self.failed.push(Failure { path: path.display().to_string(), code: code.to_owned(), detail });
    }
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}

/// How a file is written, by the end of its name; none for kinds that are not taken.
fn format_of(path: &Path) -> Option<Format> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "txt" | "text" => Some(Format::Plain),
        "md" | "markdown" => Some(Format::Markdown),
        "html" | "htm" => Some(Format::Html),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn ids(found: &Files) -> Vec<&str> {
        found.files.iter().map(|file| file.id.as_str()).collect()
    }

    fn failures(found: &Files) -> Vec<&str> {
        found.failed.iter().map(|failure| failure.code.as_str()).collect()
    }

    #[test]
    fn a_folder_gives_its_texts_and_counts_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir_all(root.join("sub/.git")).unwrap();
        for name in ["b.MD", "a.txt", "sub/c.html", "sub/d.pdf", "sub/Makefile", "sub/.git/e.md", ".hidden.md"] {
            fs::write(root.join(name), "x").unwrap();
        }
        let found = find(&[root.to_owned()], true, "p/").unwrap();
        assert_eq!(ids(&found), ["p/a.txt", "p/b.MD", "p/sub/c.html"]);
        assert_eq!(found.files[1].format, Format::Markdown);
        assert_eq!((found.skipped, failures(&found).len()), (2, 0));
        assert!(matches!(find(&[root.to_owned()], false, ""), Err(CliError::Usage(_))));
        assert!(matches!(find(&[root.join("missing")], true, ""), Err(CliError::Usage(_))));
    }

    #[test]
    fn a_file_that_was_named_is_known_by_its_name_and_doubles_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        for root in [&one, &other] {
            fs::create_dir(root).unwrap();
            fs::write(root.join("a.md"), "x").unwrap();
        }
        let found = find(&[one.join("a.md"), other.clone(), one], true, "").unwrap();
        assert_eq!(ids(&found), ["a.md"]);
        assert_eq!(failures(&found), ["duplicate_id", "duplicate_id"]);
    }

    #[test]
    fn links_are_followed_and_loops_end() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("sub")).unwrap();
        fs::write(root.join("sub/a.md"), "x").unwrap();
        symlink(root, root.join("sub/up")).unwrap();
        symlink(root.join("sub/a.md"), root.join("link.md")).unwrap();
        symlink(root.join("nowhere"), root.join("broken.md")).unwrap();
        let found = find(&[root.to_owned()], true, "").unwrap();
        assert_eq!(ids(&found), ["link.md", "sub/a.md"]);
        let mut codes = failures(&found);
        codes.sort_unstable();
        assert_eq!(codes, ["link_loop", "unreadable"]);
    }

    #[test]
    fn a_name_that_is_not_utf_8_is_reported() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(OsStr::from_bytes(b"\xff.md")), "x").unwrap();
        let found = find(&[folder.path().to_owned()], true, "").unwrap();
        assert_eq!(failures(&found), ["invalid_utf8"]);
    }
}
