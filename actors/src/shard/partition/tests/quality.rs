//! How well words rank, on collections with judgements, cut into chunks as uploads are. Skipped where the data is not.

use super::shard::{TestShard, document};
use crate::ingest::chunk::Chunker;
use crate::shard::partition::{Partition, PartitionQuery};
use ragged_raft::shard::rows::TextFormat;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

fn lines(path: &Path) -> Vec<String> {
    let output = std::process::Command::new("gzip").arg("-dc").arg(path).output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn texts(path: &Path) -> Vec<(String, String, String)> {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let parsed = lines(path).into_iter().map(|line| serde_json::from_str::<Value>(&line).unwrap());
    parsed.map(|value| (text(&value, "id"), text(&value, "title"), text(&value, "text"))).collect()
}

fn judgements(path: &Path) -> HashMap<String, HashMap<String, f64>> {
    let mut judged: HashMap<String, HashMap<String, f64>> = HashMap::new();
    for line in lines(path).iter().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        judged.entry(fields[0].to_owned()).or_default().insert(fields[1].to_owned(), fields[2].parse().unwrap());
    }
    judged
}

/// nDCG@10 with linear gains, as trec_eval has it.
fn ndcg(found: &[String], judged: &HashMap<String, f64>) -> f64 {
    let discounted =
        |gains: &[f64]| gains.iter().take(10).enumerate().map(|(rank, gain)| gain / (rank as f64 + 2.0).log2()).sum::<f64>();
    let gains: Vec<f64> = found.iter().map(|id| judged.get(id).copied().unwrap_or_default().max(0.0)).collect();
    let mut best: Vec<f64> = judged.values().copied().filter(|gain| *gain > 0.0).collect();
    best.sort_by(|one, other| other.total_cmp(one));
    let ideal = discounted(&best);
    if ideal == 0.0 { 0.0 } else { discounted(&gains) / ideal }
}

fn evaluate(partition: &Partition, data: &Path, group_by_document: bool) -> f64 {
    let judged = judgements(&data.join("qrels.tsv.gz"));
    let (mut sum, mut count) = (0.0, 0);
    for (id, _, text) in texts(&data.join("queries.jsonl.gz")) {
        let Some(judged) = judged.get(&id) else { continue };
        let query = PartitionQuery { text: Some(text), depth: 100, group_by_document, ..Default::default() };
        let mut seen = HashSet::new();
        let mut found: Vec<String> = partition.search(&query).unwrap().text.into_iter().map(|one| one.document_id).collect();
        found.retain(|id| seen.insert(id.clone()));
        sum += ndcg(&found, judged);
        count += 1;
    }
    sum / f64::from(count)
}

#[test]
fn words_rank_as_well_as_the_reference() {
    let model = PathBuf::from(std::env::var("HOME").unwrap_or_default()).join(".local/share/ragged/models/all-MiniLM-L6-v2");
    let shared = std::env::var_os("RAGGED_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let shared = shared.join("data");
    if !model.join("model.safetensors").exists() || !shared.exists() {
        println!("skipped: there is no model or no data");
        return;
    }
    let model = ragged_kernels::Model::load(&model).unwrap();
    let chunker = Chunker { tokenizer: model.tokenizer(), tokens: 256, overlap: 32 };
    for (name, least) in [("scifact", 0.67), ("cranfield", 0.355)] {
        let data = shared.join(name);
        let shard = TestShard::new(2, "en");
        let mut chunks_in_all = 0;
        for some in texts(&data.join("docs.jsonl.gz")).chunks(500) {
            let mut documents = Vec::new();
            for (id, title, text) in some {
                let cut = chunker.chunks(title, text, TextFormat::Plain).unwrap();
                let chunks: Vec<(&str, Vec<f32>)> = cut.iter().map(|chunk| (chunk.text.as_str(), vec![0.0, 1.0])).collect();
                chunks_in_all += chunks.len();
                documents.push(document(id, Some(title), "{}", &chunks));
            }
            shard.upsert_all(documents);
        }
        let partition = shard.open();
        let (by_document, by_chunk) = (evaluate(&partition, &data, true), evaluate(&partition, &data, false));
        println!("{name}: nDCG@10 {by_document:.4} by document, {by_chunk:.4} by chunk; {chunks_in_all} chunks");
        partition.index_with(true).unwrap();
        let indexed = evaluate(&partition, &data, true);
        println!("{name}: {indexed:.4} when indexed");
        assert!(indexed >= least && by_document >= least);
    }
}
