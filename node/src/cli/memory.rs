//! `ragged memory`: where the memory of a node is.

use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::output::{Output, render};
use comfy_table::Cell;
use ragged_client::MemoryReport;

/// Shows it.
pub async fn run(globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let report = globals.client()?.memory().await?;
    output.either(&report, || describe(&report, output))?;
    Ok(Exit::Success)
}

fn describe(report: &MemoryReport, output: &Output) -> String {
    let mut table = output.table(&["memory", "MiB", "limit"]);
    let mut row = |what: String, bytes: u64, limit: Option<u64>| {
        table.add_row([
            Cell::new(what),
            Cell::new(mebibytes(bytes)),
            Cell::new(limit.map_or("-".to_owned(), |bytes| mebibytes(bytes).to_string())),
        ]);
    };
    row("resident".into(), report.resident_bytes, Some(report.budget_bytes));
    row("  anonymous".into(), report.anonymous_bytes, None);
    row("    allocated".into(), report.allocated_bytes, None);
    for part in &report.parts {
        row(format!("      {}", part.part.replace('_', " ")), part.bytes, part.limit_bytes);
    }
    row("  mapped files".into(), report.mapped_bytes, None);
    for files in &report.files {
        row(format!("    {}", files.kind.replace('_', " ")), files.bytes, None);
    }
    for gpu in &report.gpus {
        row(format!("GPU {}", gpu.gpu), gpu.used_bytes, Some(gpu.total_bytes));
        row("  encoder".into(), gpu.encoder_bytes, None);
        row("  vectors".into(), gpu.rows_bytes, Some(gpu.rows_limit_bytes));
    }
    let table = render(&table);
    if report.given_back_bytes == 0 {
        return table;
    }
    format!("{table}\n{} MiB of mapped files were given back to keep the budget", mebibytes(report.given_back_bytes))
}

fn mebibytes(bytes: u64) -> u64 {
    (bytes + (1 << 19)) >> 20
}
