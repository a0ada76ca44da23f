//! Progress bars on standard error; hidden when it is no terminal, and with `--json` or `--quiet`.

use crate::cli::output::Output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// How often a bar moves on its own, so that people see that the command lives.
const TICK: Duration = Duration::from_millis(200);

const COUNT: &str = "{msg} [{bar:40}] {human_pos}/{human_len} {per_sec} {eta}";
const BYTES: &str = "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
const ENDLESS_BYTES: &str = "{msg} {spinner} {bytes} {bytes_per_sec}";

/// A bar that counts things.
pub fn count(output: &Output, what: &'static str, total: u64) -> ProgressBar {
    bar(output, what, Some(total), COUNT)
}

/// A bar that counts bytes; without a total it only says how many there were.
pub fn bytes(output: &Output, what: &'static str, total: Option<u64>) -> ProgressBar {
    bar(output, what, total, if total.is_some() { BYTES } else { ENDLESS_BYTES })
}

fn bar(output: &Output, what: &'static str, total: Option<u64>, template: &str) -> ProgressBar {
    if !output.is_chatty() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr()).with_message(what);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(TICK);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid_and_machines_see_no_bar() {
        for template in [COUNT, BYTES, ENDLESS_BYTES] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
        assert!(count(&Output::new(true, false), "x", 1).is_hidden());
        assert!(count(&Output::new(false, true), "x", 1).is_hidden());
    }
}
