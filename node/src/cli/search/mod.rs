//! `ragged search`: searches a collection.

mod snippet;

use crate::cli::documents::parse_filter;
use crate::cli::error::{CliError, Exit};
use crate::cli::globals::Globals;
use crate::cli::output::{Output, count, printable};
use clap::{Args, ValueEnum};
use ragged_client::{Explanation, Filter, GroupBy, Hit, Mode, Recall, SearchRequest, SearchResponse, Weights};

const AFTER_HELP: &str = "\
Examples:
  ragged search \"how are replicas repaired?\" --collection handbook
  ragged search error 1042 --collection tickets --mode text --limit 3
  ragged search budget --collection mail --filter '{\"must\": [{\"field\": \"year\", \"gte\": 2024}]}'
  ragged search budget --collection mail --group-by document --json | jq '.hits[].document_id'";

/// How hits are found, as an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ModeOption {
    /// By meaning
    Dense,
    /// By words
    Text,
    /// Both, fused
    Hybrid,
}

impl From<ModeOption> for Mode {
    fn from(option: ModeOption) -> Mode {
        match option {
            ModeOption::Dense => Mode::Dense,
            ModeOption::Text => Mode::Text,
            ModeOption::Hybrid => Mode::Hybrid,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GroupOption {
    /// Every chunk is a hit of its own
    Chunk,
    /// The best chunk of each document
    Document,
}

/// Arguments of `ragged search`.
#[derive(Args)]
#[command(after_help = AFTER_HELP)]
pub struct Arguments {
    /// What to look for; several words need no quotes
    #[arg(required = true)]
    query: Vec<String>,
    /// Name of the collection
    #[arg(long, short)]
    collection: String,
    /// How hits are found; default hybrid
    #[arg(long, short)]
    mode: Option<ModeOption>,
    /// Hits at most; default 10
    #[arg(long, short = 'n', value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: Option<u32>,
    /// Hits to leave out first
    #[arg(long, value_name = "N")]
    offset: Option<u32>,
    /// Only documents whose metadata passes this filter
    #[arg(long, value_name = "JSON", value_parser = parse_filter)]
    filter: Option<Filter>,
    /// What a hit is; default chunk
    #[arg(long)]
    group_by: Option<GroupOption>,
    /// Weights of the rankings by meaning and by words in mode hybrid; default 1,1
    #[arg(long, value_name = "DENSE,TEXT", value_parser = parse_weights)]
    weights: Option<Weights>,
    /// How many of the nearest chunks by meaning must be found: 0.95, 0.99 or exact; default 0.95
    #[arg(long)]
    recall: Option<Recall>,
    /// Say how the scores came about and how the search was run
    #[arg(long)]
    explain: bool,
    /// Answer without shards that cannot answer, and say which
    #[arg(long)]
    allow_partial: bool,
}

fn parse_weights(text: &str) -> Result<Weights, String> {
    let wrong = || "these are not two numbers with a comma between them, such as 1,0.5".to_owned();
    let (dense, words) = text.split_once(',').ok_or_else(wrong)?;
    let parse = |number: &str| number.trim().parse::<f32>().map_err(|_| wrong());
    Ok(Weights { dense: parse(dense)?, text: parse(words)? })
}

/// Searches, and prints what was found.
pub async fn run(arguments: Arguments, globals: &Globals, output: &Output) -> Result<Exit, CliError> {
    let query = arguments.query.join(" ");
    let request = SearchRequest {
        query: Some(query.clone()),
        mode: arguments.mode.map(Mode::from),
        limit: arguments.limit,
        offset: arguments.offset,
        filter: arguments.filter,
        group_by: arguments.group_by.map(|option| match option {
            GroupOption::Chunk => GroupBy::Chunk,
            GroupOption::Document => GroupBy::Document,
        }),
        weights: arguments.weights,
        recall: arguments.recall,
        explain: arguments.explain.then_some(true),
        allow_partial: arguments.allow_partial.then_some(true),
        ..SearchRequest::default()
    };
    let answer = globals.client()?.search(&arguments.collection, &request).await?;
    let first_rank = arguments.offset.unwrap_or(0) as usize + 1;
    output.either(&answer, || describe(&answer, &query, first_rank, output))?;
    Ok(Exit::Success)
}

fn describe(answer: &SearchResponse, query: &str, first_rank: usize, output: &Output) -> String {
    let mut blocks: Vec<String> =
        answer.hits.iter().enumerate().map(|(index, hit)| describe_hit(hit, first_rank + index, query, output)).collect();
    if blocks.is_empty() {
        blocks.push("nothing was found".to_owned());
    }
    for shard in answer.plan.iter().flatten() {
        blocks.push(format!("shard {} took {:.1} ms: {}", shard.shard, shard.took_ms, shard.steps.join("; ")));
    }
    if !answer.missing_shards.is_empty() {
        let missing: Vec<String> = answer.missing_shards.iter().map(u16::to_string).collect();
        blocks.push(output.bold(&format!("partial: shards {} did not answer", missing.join(", "))));
    }
    blocks.push(output.dim(&format!("{} in {:.1} ms", count(answer.hits.len() as u64, "hit"), answer.took_ms)));
    blocks.join("\n\n")
}

/// Rank, score, title; then where it stands; then what it says.
fn describe_hit(hit: &Hit, rank: usize, query: &str, output: &Output) -> String {
    let id = printable(&hit.document_id);
    let title = hit.title.as_deref().map_or_else(|| id.clone(), printable);
    let mut place = format!("{id}  chunk {}  bytes {}..{}", hit.chunk, hit.span.start, hit.span.end);
    if let Some(explanation) = &hit.explanation {
        place.push_str(&explain(explanation));
    }
    let snippet = snippet::of(&hit.text, query, |matched| output.bold(matched));
    format!("{rank:>3}. {:<8} {}\n     {}\n     {snippet}", score(hit.score), output.bold(&title), output.dim(&place))
}

/// Four digits that matter, for cosines as for BM25.
fn score(score: f32) -> String {
    if score.abs() >= 10.0 { format!("{score:.2}") } else { format!("{score:.4}") }
}

fn explain(explanation: &Explanation) -> String {
    let part = |name: &str, score: Option<f32>, rank: Option<u32>| {
        let rank = rank.map_or_else(String::new, |rank| format!(" (rank {rank})"));
        score.map_or_else(String::new, |score| format!("  {name} {score:.4}{rank}"))
    };
    part("meaning", explanation.dense_score, explanation.dense_rank)
        + &part("words", explanation.text_score, explanation.text_rank)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ragged_client::Span;

    fn answer() -> SearchResponse {
        let hit = Hit {
            document_id: "a/b.md".to_owned(),
            chunk: 3,
            score: 0.51234,
            title: Some("On \x1b[2Jreplicas".to_owned()),
            text: "Lost replicas are repaired.".to_owned(),
            span: Span { start: 10, end: 37 },
            metadata: Default::default(),
            explanation: Some(Explanation { dense_score: Some(0.5), dense_rank: Some(2), ..Default::default() }),
        };
        SearchResponse { hits: vec![hit], took_ms: 1.25, plan: None, partial: None, missing_shards: Vec::new() }
    }

    #[test]
    fn hits_show_rank_score_title_place_and_text() {
        let text = describe(&answer(), "replicas", 11, &Output::new(false, false));
        for part in [
            " 11. 0.5123",
            "a/b.md  chunk 3  bytes 10..37",
            "meaning 0.5000 (rank 2)",
            "replicas are repaired",
            "1 hit in 1.2 ms",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn for_machines_the_answer_is_the_node_s() {
        let text = serde_json::to_string(&answer()).unwrap();
        assert_eq!(serde_json::from_str::<SearchResponse>(&text).unwrap(), answer());
        assert!(!text.contains('\n'));
    }

    #[test]
    fn weights_are_two_numbers() {
        assert_eq!(parse_weights("2, 0.5"), Ok(Weights { dense: 2.0, text: 0.5 }));
        assert!(parse_weights("2").is_err() && parse_weights("a,b").is_err());
    }
}
