//! Programs of the system that the harness is made of.

use anyhow::{Context, Result, ensure};
use std::process::{Command, Stdio};

/// Whether this process may do everything.
pub fn is_root() -> bool {
    // SAFETY: takes no arguments, and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Keeps what is mounted from now on to this process and its children. Another process that copied the mounts meanwhile, as every container that starts
/// does, would keep a disk alive that was unmounted here, and it would come back as it was. To be called before there are threads.
pub fn keep_mounts_private() -> Result<()> {
    // SAFETY: takes a number, and pointers to strings that end with 0 or are null.
    let answers = unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        [
            libc::unshare(libc::CLONE_NEWNS),
            libc::mount(c"none".as_ptr(), c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()),
        ]
    };
    ensure!(answers == [0, 0], "the mounts cannot be kept private: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Whether a command can be run, and succeeds.
pub fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let status = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs a command that must succeed; what it printed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("the program `{program}` cannot be run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
