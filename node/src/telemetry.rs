//! Logs: text for people or JSON for machines, on standard error.

use crate::config::{Log, LogFormat};
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Libraries that would say what is of interest only to those who work on them. The operator's own directives come after.
const QUIET_LIBRARIES: &str = "openraft=error,tantivy=warn,hyper=warn,hyper_util=warn,ractor=warn,tokenizers=warn";

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.filter` is not understood.
    #[error("log.filter: {0}")]
    Filter(String),
    /// Something in this process logs already.
    #[error("logging was set up twice")]
    Twice,
}

/// Sends the events of this process to standard error, and panics with them.
pub fn start(log: &Log) -> Result<(), TelemetryError> {
    let directives = format!("{QUIET_LIBRARIES},{}", log.filter);
    let filter = EnvFilter::builder().parse(directives).map_err(|error| TelemetryError::Filter(error.to_string()))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(true).try_init(),
    };
    started.map_err(|_| TelemetryError::Twice)?;
    log_panics();
    Ok(())
}

/// A panic is caught where it matters (a request, an actor); what it said must reach the log in the log's own format.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let message = text.unwrap_or("a panic that is not text");
        let backtrace = std::backtrace::Backtrace::capture();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        match backtrace.status() {
            std::backtrace::BacktraceStatus::Captured => tracing::error!(location, thread, %backtrace, "panic: {message}"),
            _ => tracing::error!(location, thread, "panic: {message}"),
        }
    }));
}
