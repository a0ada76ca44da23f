//! `ragged documents`: list, show and delete documents.

use crate::cli::error::{CliError, Exit, exit_of_many};
use crate::cli::globals::Globals;
use crate::cli::output::{Output, count, number, printable, render};
use crate::cli::timestamp;
use clap::{Args, Subcommand};
use comfy_table::Cell;
use ragged_client::{Client, ClientError, Document, DocumentList, Filter, ListOptions};
use serde::Serialize;

/// Documents that are asked for at a time.
const PAGE: u32 = 1000;

/// The same with their texts, which a node gives fewer of at a time.
const PAGE_WITH_TEXT: u32 = 100;

/// Commands of `ragged documents`.
#[derive(Subcommand)]
pub enum Command {
    /// List the documents of a collection
    List(List),
    /// Show a document with its text
    Get(Get),
    /// Delete documents, by id or by a filter
    Delete(Delete),
}

const LIST_AFTER_HELP: &str = "\
With --json it prints one document a line, so that any number can be listed.

Examples:
  ragged documents list --collection notes
  ragged documents list --collection notes --all --text --json > backup.ndjson";

/// Arguments of `ragged documents list`.
#[derive(Args)]
#[command(after_help = LIST_AFTER_HELP)]
pub struct List {
    /// Name of the collection
    #[arg(long, short)]
    collection: String,
    /// Documents at most
    #[arg(long, short = 'n', default_value_t = 100, conflicts_with = "all")]
    limit: u64,
    /// All documents
    #[arg(long)]
    all: bool,
    /// With their texts (with --json)
    #[arg(long, requires = "json")]
    text: bool,
}

/// Arguments of `ragged documents get`.
#[derive(Args)]
pub struct Get {
    /// Id of the document
    id: String,
    /// Name of the collection
    #[arg(long, short)]
    collection: String,
}

const DELETE_AFTER_HELP: &str = "\
Examples:
  ragged documents delete intro.md setup.md --collection notes
  ragged documents delete --filter '{\"must\": [{\"field\": \"year\", \"lt\": 2020}]}' --collection notes";

/// Arguments of `ragged documents delete`.
#[derive(Args)]
#[command(after_help = DELETE_AFTER_HELP)]
pub struct Delete {
    /// Ids of the documents
    #[arg(required_unless_present = "filter", conflicts_with = "filter")]
    ids: Vec<String>,
    /// Delete every document whose metadata passes this filter
    #[arg(long, value_name = "JSON", value_parser = parse_filter)]
    filter: Option<Filter>,
    /// Name of the collection
    #[arg(long, short)]
    collection: String,
}

/// Reads a filter.
pub fn parse_filter(text: &str) -> Result<Filter, String> {
    serde_json::from_str(text).map_err(|error| format!("this is not a filter: {error}"))
}

#[derive(Serialize, Default)]
struct Deleted {
    deleted: u64,
    failed: Vec<Failure>,
    token: String,
}

#[derive(Serialize)]
struct Failure {
    id: String,
    detail: String,
}

/// Runs a command of `ragged documents`.
pub async fn run(command: Command, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let client = globals.client()?;
    match command {
        Command::List(list) => list.run(&client, output).await,
        Command::Get(get) => {
            let document = client.get_document(&get.collection, &get.id).await?;
            output.either(&document, || describe(&document, output))?;
            Ok(Exit::Success)
        }
        Command::Delete(delete) => delete.run(&client, output).await,
    }
}

impl List {
    async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        let page_max = if self.text { PAGE_WITH_TEXT } else { PAGE };
        let mut left = if self.all { u64::MAX } else { self.limit };
        let mut cursor = None;
        while left > 0 {
            let limit = Some(page_max.min(u32::try_from(left).unwrap_or(u32::MAX)));
            let first = cursor.is_none();
            let page = client.list_documents(&self.collection, ListOptions { limit, cursor }, self.text).await?;
            print(&page, first, output)?;
            left -= (page.documents.len() as u64).min(left);
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(Exit::Success);
            }
        }
        output.note("there are more; --all lists them");
        Ok(Exit::Success)
    }
}

fn print(page: &DocumentList, first: bool, output: &Output) -> Result<(), CliError> {
    if output.is_json() {
        return page.documents.iter().try_for_each(|document| output.json(document));
    }
    let mut table = output.table(&["id", "title", "chunks", "version", "updated"]);
    for document in &page.documents {
        table.add_row(vec![
            Cell::new(printable(&document.id)),
            Cell::new(printable(document.title.as_deref().unwrap_or(""))),
            number(document.chunks),
            number(document.version),
            Cell::new(timestamp::of_ms(document.updated_at_ms)),
        ]);
    }
    let text = render(&table);
    match (first, page.documents.is_empty()) {
        (true, true) => output.text("there is no document"),
        (false, true) => Ok(()),
        (true, false) => output.text(text),
        (false, false) => output.text(text.split_once('\n').map_or("", |(_, rows)| rows)),
    }
}

fn describe(document: &Document, output: &Output) -> String {
    let rows = [
        ("id", printable(&document.id)),
        ("title", printable(document.title.as_deref().unwrap_or(""))),
        ("format", format!("{:?}", document.format).to_lowercase()),
        ("metadata", printable(document.metadata.text())),
        ("chunks", document.chunks.to_string()),
        ("version", document.version.to_string()),
        ("created", timestamp::of_ms(document.created_at_ms)),
        ("updated", timestamp::of_ms(document.updated_at_ms)),
    ];
    let mut text: String = rows.iter().map(|(name, value)| format!("{} {value}\n", output.dim(&format!("{name:<9}")))).collect();
    text.push('\n');
    let lines = document.text.as_deref().unwrap_or("").lines();
    text.extend(lines.map(|line| line.split('\t').map(printable).collect::<Vec<_>>().join("\t") + "\n"));
    text
}

impl Delete {
    async fn run(self, client: &Client, output: &Output) -> Result<Exit, CliError> {
        let mut all = Deleted::default();
        if let Some(filter) = self.filter {
            let done = client.delete_by_filter(&self.collection, filter).await?;
            (all.deleted, all.token) = (done.deleted, done.token);
        }
        if let [id] = &self.ids[..] {
            let done = client.delete_document(&self.collection, id).await?;
            (all.deleted, all.token) = (done.deleted, done.token);
        } else {
            for id in self.ids {
                match client.delete_document(&self.collection, &id).await {
                    Ok(done) => {
                        all.deleted += done.deleted;
                        all.token = done.token;
                    }
                    // What concerns this document only; anything else would be the same for the next one.
                    Err(error) if concerns_document(&error) => {
                        output.warning(format_args!("{}: {error}", printable(&id)));
                        all.failed.push(Failure { id, detail: error.to_string() });
                    }
                    Err(error) => {
                        let done = format!("deleted {}, then stopped at {}", count(all.deleted, "document"), printable(&id));
                        return Err(CliError::CutOff { done, cause: Box::new(error.into()) });
                    }
                }
            }
        }
        output.either(&all, || format!("deleted {}", count(all.deleted, "document")))?;
        Ok(exit_of_many(all.deleted, all.failed.len() as u64))
    }
}

fn concerns_document(error: &ClientError) -> bool {
    match error.status() {
        Some(404) => error.code() != Some("collection_not_found"),
        status => status == Some(400) || matches!(error, ClientError::Invalid(_)),
    }
}
