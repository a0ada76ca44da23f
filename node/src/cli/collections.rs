//! `ragged collections`: list, create, show and delete collections.

use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::output::{Output, count, number, render};
use crate::cli::timestamp;
use clap::{Args, Subcommand};
use comfy_table::Cell;
use ragged_client::{
    Chunking, Client, ClientError, Collection, CollectionList, Embedding, EmbeddingDimension, EmbeddingModel, Language,
    ListOptions, NewCollection,
};
use serde::Serialize;
use std::io::{self, BufRead, IsTerminal, Write};

/// Collections that are asked for at a time.
const PAGE: u32 = 1000;

/// Commands of `ragged collections`.
#[derive(Subcommand)]
pub enum Command {
    /// List the collections
    List,
    /// Create a collection
    Create(Create),
    /// Show a collection, with the numbers of its documents and chunks
    Get {
        /// Name of the collection
        name: String,
    },
    /// Delete a collection with everything in it
    Delete {
        /// Name of the collection
        name: String,
        /// Do not ask; needed where nobody can answer
        #[arg(long, short)]
        yes: bool,
    },
}

const CREATE_AFTER_HELP: &str = "\
Settings do not change afterwards.

Examples:
  ragged collections create handbook
  ragged collections create notes --language de --chunk-tokens 128 --chunk-overlap 16
  ragged collections create images --dimension 512      # you send the vectors";

/// Arguments of `ragged collections create`.
#[derive(Args)]
#[command(after_help = CREATE_AFTER_HELP)]
pub struct Create {
    /// Name: small letters, digits, - and _, at most 63 of them
    name: String,
    /// Over how many shards the documents are spread
    #[arg(long, value_name = "SHARDS")]
    spread: Option<u16>,
    /// Model that makes the vectors; default: the node's own
    #[arg(long, conflicts_with = "dimension")]
    model: Option<String>,
    /// You send vectors of this length yourself
    #[arg(long, value_name = "N")]
    dimension: Option<u32>,
    /// Tokens of a chunk at most; default 256
    #[arg(long, value_name = "N")]
    chunk_tokens: Option<u32>,
    /// Tokens that neighbouring chunks share; default 32
    #[arg(long, value_name = "N")]
    chunk_overlap: Option<u32>,
    /// Language of the texts as its ISO 639-1 code, for word search; `none` for several or others; default en
    #[arg(long, value_name = "CODE", value_parser = parse_language)]
    language: Option<Language>,
}

fn parse_language(code: &str) -> Result<Language, String> {
    serde_json::from_value(serde_json::Value::from(code.to_ascii_lowercase()))
        .map_err(|_| "there is no stemmer for it: use ar da de el en es fi fr hu it nl no pt ro ru sv ta tr, or none".to_owned())
}

#[derive(Serialize)]
struct Deleted<'a> {
    deleted: &'a str,
}

/// Runs a command of `ragged collections`.
pub async fn run(command: Command, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let client = globals.client()?;
    match command {
        Command::List => {
            let list = all(&client).await?;
            output.either(&list, || table(&list, output))?;
        }
        Command::Create(create) => {
            let created = client.create_collection(&create.into_request()).await?;
            output.either(&created, || format!("created the collection {}", created.name))?;
        }
        Command::Get { name } => {
            let collection = client.get_collection(&name).await?;
            output.either(&collection, || describe(&collection, output))?;
        }
        Command::Delete { name, yes } => {
            if !yes {
                confirm(&client, &name).await?;
            }
            client.delete_collection(&name).await?;
            output.either(&Deleted { deleted: &name }, || format!("deleted the collection {name}"))?;
        }
    }
    Ok(Exit::Success)
}

impl Create {
    fn into_request(self) -> NewCollection {
        let embedding = match (self.model, self.dimension) {
            (Some(model), _) => Some(Embedding::Model(EmbeddingModel { model })),
            (None, Some(dimension)) => Some(Embedding::External(EmbeddingDimension { dimension })),
            (None, None) => None,
        };
        let chunking = (self.chunk_tokens.is_some() || self.chunk_overlap.is_some()).then(|| {
            let default = Chunking::default();
            Chunking {
                tokens: self.chunk_tokens.unwrap_or(default.tokens),
                overlap: self.chunk_overlap.unwrap_or(default.overlap),
            }
        });
        NewCollection { name: self.name, spread: self.spread, embedding, chunking, language: self.language }
    }
}

/// Every collection.
async fn all(client: &Client) -> Result<CollectionList, ClientError> {
    let mut all = CollectionList { collections: Vec::new(), next_cursor: None };
    let mut cursor = None;
    loop {
        let page = client.list_collections(ListOptions { limit: Some(PAGE), cursor }).await?;
        all.collections.extend(page.collections);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(all);
        }
    }
}

/// Makes sure that a collection is there; says whether it was made just now.
pub async fn ensure(client: &Client, name: &str) -> Result<bool, CliError> {
    match client.get_collection(name).await {
        Ok(_) => return Ok(false),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    let new = NewCollection { name: name.to_owned(), spread: None, embedding: None, chunking: None, language: None };
    match client.create_collection(&new).await {
        Ok(_) => Ok(true),
        // Somebody else was faster.
        Err(error) if error.status() == Some(409) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn confirm(client: &Client, name: &str) -> Result<(), CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::Usage(format!("deleting {name} cannot be undone: add --yes")));
    }
    let collection = client.get_collection(name).await?;
    let documents = count(collection.documents.unwrap_or_default(), "document");
    eprint!("Delete {name} with {documents}? This cannot be undone. Type its name: ");
    let mut answer = String::new();
    let read = io::stderr().flush().and_then(|()| io::stdin().lock().read_line(&mut answer));
    read.map_err(|source| CliError::io("cannot read the answer", source))?;
    if answer.trim() == name { Ok(()) } else { Err(CliError::Failed("nothing was deleted".to_owned())) }
}

fn table(list: &CollectionList, output: &Output) -> String {
    if list.collections.is_empty() {
        return "there is no collection yet; `ragged collections create NAME` makes one".to_owned();
    }
    let mut table = output.table(&["name", "vectors", "dimension", "language", "spread", "created"]);
    for collection in &list.collections {
        table.add_row(vec![
            Cell::new(&collection.name),
            Cell::new(vectors(collection)),
            number(collection.embedding.dimension),
            Cell::new(language(collection)),
            number(collection.spread),
            Cell::new(timestamp::of_ms(collection.created_at_ms)),
        ]);
    }
    render(&table)
}

fn describe(collection: &Collection, output: &Output) -> String {
    let known = |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
    let chunking = &collection.chunking;
    let rows = [
        ("name", collection.name.clone()),
        ("documents", known(collection.documents)),
        ("chunks", known(collection.chunks)),
        ("vectors", vectors(collection)),
        ("dimension", collection.embedding.dimension.to_string()),
        ("chunking", format!("at most {} tokens, {} shared", chunking.tokens, chunking.overlap)),
        ("language", language(collection)),
        ("spread", count(u64::from(collection.spread), "shard")),
        ("created", timestamp::of_ms(collection.created_at_ms)),
    ];
    rows.iter().map(|(name, value)| format!("{} {value}", output.dim(&format!("{name:<10}")))).collect::<Vec<_>>().join("\n")
}

fn vectors(collection: &Collection) -> String {
    collection.embedding.model.clone().unwrap_or_else(|| "from the client".to_owned())
}

fn language(collection: &Collection) -> String {
    format!("{:?}", collection.language).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        create: Create,
    }

    fn request(line: &str) -> Option<NewCollection> {
        Only::try_parse_from(format!("create {line}").split_whitespace()).ok().map(|only| only.create.into_request())
    }

    #[test]
    fn only_what_was_said_is_sent() {
        let plain = serde_json::to_value(request("a").unwrap()).unwrap();
        assert_eq!(plain, serde_json::json!({"name": "a"}));
        let full = serde_json::to_value(request("a --spread 2 --dimension 3 --chunk-tokens 64 --language DE").unwrap()).unwrap();
        let expected = serde_json::json!({
            "name": "a", "spread": 2, "embedding": {"dimension": 3}, "chunking": {"tokens": 64, "overlap": 32}, "language": "de"
        });
        assert_eq!(full, expected);
        assert!(request("a --language xx").is_none());
        assert!(request("a --model m --dimension 3").is_none());
    }
}
