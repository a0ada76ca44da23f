//! `ragged jobs`: list, show, watch, retry and cancel jobs.

use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::output::{Output, number, printable, render};
use crate::cli::{progress, timestamp};
use clap::Subcommand;
use comfy_table::Cell;
use ragged_client::{Client, Job, JobList, ListOptions, Stage};
use std::time::Duration;

/// How often a watched job is asked about.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Failed documents of a job that people are shown.
const SHOWN_FAILURES: usize = 20;

/// Commands of `ragged jobs`.
#[derive(Subcommand)]
pub enum Command {
    /// List jobs, newest first
    List {
        /// Jobs at most
        #[arg(long, short = 'n', default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show a job and what went wrong with which document
    Get {
        /// Id of the job
        id: String,
    },
    /// Wait until a job has ended; the exit code is 0 when all of it is stored, 6 when a part is, 1 when nothing is
    ///
    /// With --json it prints the job, one line each time that it has changed.
    Watch {
        /// Id of the job
        id: String,
    },
    /// Ingest the failed documents of a job again
    Retry {
        /// Id of the job
        id: String,
    },
    /// Stop a job; what it has stored by then stays
    Cancel {
        /// Id of the job
        id: String,
    },
}

/// Runs a command of `ragged jobs`.
pub async fn run(command: Command, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let client = globals.client()?;
    let job = match command {
        Command::List { limit } => {
            let list = client.list_jobs(ListOptions { limit: Some(limit), cursor: None }).await?;
            output.either(&list, || table(&list, output))?;
            return Ok(Exit::Success);
        }
        Command::Watch { id } => return watch(&globals.patient_client()?, &id, output).await,
        Command::Get { id } => client.get_job(&id).await?,
        Command::Retry { id } => client.retry_job(&id).await?,
        Command::Cancel { id } => client.cancel_job(&id).await?,
    };
    output.either(&job, || describe(&job, output))?;
    Ok(Exit::Success)
}

async fn watch(client: &Client, id: &str, output: &Output) -> Result<Exit, CliError> {
    let mut last: Option<Job> = None;
    let bar = progress::count(output, "ingesting", 0);
    loop {
        let job = client.get_job(id).await?;
        bar.set_length(job.documents);
        bar.set_position(job.done);
        if output.is_json() && last.as_ref() != Some(&job) {
            output.json(&job)?;
        }
        if let Some(exit) = end(&job) {
            bar.finish_and_clear();
            if !output.is_json() {
                output.text(describe(&job, output))?;
            }
            return Ok(exit);
        }
        last = Some(job);
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// How a job has ended, when it has.
fn end(job: &Job) -> Option<Exit> {
    match job.stage {
        Stage::Received | Stage::Parsed | Stage::Chunked | Stage::Embedded => None,
        Stage::Replicated if job.failed.is_empty() => Some(Exit::Success),
        Stage::Replicated => Some(Exit::PartlyFailed),
        Stage::Cancelled if job.done > 0 => Some(Exit::PartlyFailed),
        Stage::Cancelled | Stage::Failed => Some(Exit::Failure),
    }
}

fn table(list: &JobList, output: &Output) -> String {
    if list.jobs.is_empty() {
        return "there is no job".to_owned();
    }
    let mut table = output.table(&["id", "collection", "stage", "documents", "done", "failed", "created", "updated"]);
    for job in &list.jobs {
        table.add_row(vec![
            Cell::new(&job.id),
            Cell::new(&job.collection),
            Cell::new(stage(job)),
            number(job.documents),
            number(job.done),
            number(job.failed.len()),
            Cell::new(timestamp::of_ms(job.created_at_ms)),
            Cell::new(timestamp::of_ms(job.updated_at_ms)),
        ]);
    }
    render(&table)
}

fn describe(job: &Job, output: &Output) -> String {
    let rows = [
        ("id", job.id.clone()),
        ("collection", job.collection.clone()),
        ("stage", stage(job)),
        ("documents", format!("{}, {} done, {} failed", job.documents, job.done, job.failed.len())),
        ("created", timestamp::of_ms(job.created_at_ms)),
        ("updated", timestamp::of_ms(job.updated_at_ms)),
    ];
    let mut lines: Vec<String> =
        rows.iter().map(|(name, value)| format!("{} {value}", output.dim(&format!("{name:<10}")))).collect();
    for failure in job.failed.iter().take(SHOWN_FAILURES) {
        lines.push(format!("  {}: {} ({})", printable(&failure.id), printable(&failure.detail), failure.code));
    }
    if job.failed.len() > SHOWN_FAILURES {
        lines.push(format!("  and {} more; --json shows them all", job.failed.len() - SHOWN_FAILURES));
    }
    lines.join("\n")
}

fn stage(job: &Job) -> String {
    format!("{:?}", job.stage).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ragged_client::DocumentFailure;

    fn job(stage: Stage, done: u64, failed: usize) -> Job {
        let failure = DocumentFailure { id: "d".into(), code: "c".into(), detail: "x".into() };
        Job {
            id: "j".into(),
            collection: "c".into(),
            stage,
            documents: done + failed as u64,
            done,
            failed: vec![failure; failed],
            created_at_ms: 0,
            updated_at_ms: 0,
        }
    }

    #[test]
    fn watching_ends_with_what_became_of_the_documents() {
        assert_eq!(end(&job(Stage::Embedded, 1, 0)), None);
        assert_eq!(end(&job(Stage::Replicated, 2, 0)), Some(Exit::Success));
        assert_eq!(end(&job(Stage::Replicated, 2, 1)), Some(Exit::PartlyFailed));
        assert_eq!(end(&job(Stage::Failed, 0, 2)), Some(Exit::Failure));
        assert_eq!(end(&job(Stage::Cancelled, 0, 0)), Some(Exit::Failure));
        assert_eq!(end(&job(Stage::Cancelled, 1, 0)), Some(Exit::PartlyFailed));
    }

    #[test]
    fn many_failures_are_cut_short_for_people() {
        let text = describe(&job(Stage::Replicated, 1, SHOWN_FAILURES + 5), &Output::new(false, false));
        assert_eq!(text.matches("d: x (c)").count(), SHOWN_FAILURES);
        assert!(text.contains("and 5 more"));
    }
}
