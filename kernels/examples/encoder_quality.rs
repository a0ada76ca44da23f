//! What the precisions of the encoder cost in search quality: nDCG@10 of exact search for each precision that this processor has, over datasets
//! in the form of ../shared/data. A document is its title and text, cut after as many tokens as the model takes.
//!
//! Usage: `encoder_quality MODEL_DIR DATASET_DIR...`. Prints a line of JSON for each dataset and precision, with the distance to f32: in nDCG, also where only queries or only
//! documents are not in f32, as when nodes have different processors; and of the documents' vectors, as one less their cosine.

mod documents;

use documents::Document;
use ragged_kernels::{CpuDevice, Device, DeviceError, Model, Precision, TokenSequence};
use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

const HITS: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model_folder, datasets @ ..] = arguments.as_slice() else {
        return Err("usage: encoder_quality MODEL_DIR DATASET_DIR...".into());
    };
    let model = Arc::new(Model::load(Path::new(model_folder))?);
    let threads = std::thread::available_parallelism()?.get();
    for dataset in datasets {
        let folder = Path::new(dataset);
        let documents = documents::read(&folder.join("docs.jsonl.gz"), usize::MAX)?;
        let queries = documents::read(&folder.join("queries.jsonl.gz"), usize::MAX)?;
        let judgements = read_judgements(&folder.join("qrels.tsv.gz"))?;
        let (documents, document_tokens) = tokenize(&model, documents)?;
        let (queries, query_tokens) = tokenize(&model, queries)?;
        let mut exact: Option<Vectors> = None;
        for precision in Precision::ALL {
            let device = match CpuDevice::new(Arc::clone(&model), threads, precision) {
                Err(DeviceError::PrecisionUnavailable { .. }) => continue,
                device => device?,
            };
            let vectors = Vectors { documents: device.embed(&document_tokens)?, queries: device.embed(&query_tokens)? };
            let mean_gain = |query_vectors: &[f32], document_vectors: &[f32]| {
                let mut gains = Vec::new();
                for (query, vector) in queries.iter().zip(query_vectors.chunks_exact(model.dimension())) {
                    let Some(judged) = judgements.get(query) else { continue };
                    let found = nearest(vector, document_vectors).into_iter().map(|number| documents[number].as_str());
                    gains.push(normalized_gain(found, judged));
                }
                gains.iter().sum::<f64>() / gains.len() as f64
            };
            let found = mean_gain(&vectors.queries, &vectors.documents);
            let exact = exact.get_or_insert_with(|| vectors.clone());
            let found_by_f32 = mean_gain(&exact.queries, &exact.documents);
            let cosines = cosines(&vectors.documents, &exact.documents, model.dimension());
            let report = serde_json::json!({
                "dataset": folder.file_name().map(|name| name.to_string_lossy()),
                "device": device.name(),
                "precision": precision.name(),
                "ndcg_at_10": round(found),
                "difference": round(found - found_by_f32),
                "ndcg_at_10_of_f32_queries": round(mean_gain(&exact.queries, &vectors.documents)),
                "ndcg_at_10_of_f32_documents": round(mean_gain(&vectors.queries, &exact.documents)),
                "mean_distance": 1.0 - cosines.iter().sum::<f64>() / cosines.len() as f64,
                "largest_distance": 1.0 - cosines.iter().copied().fold(1.0, f64::min),
            });
            println!("{report}");
        }
    }
    Ok(())
}

/// What a device makes of a dataset, vector after vector.
#[derive(Clone)]
struct Vectors {
    documents: Vec<f32>,
    queries: Vec<f32>,
}

/// The cosine of each vector with its exact one; both have length one.
fn cosines(vectors: &[f32], exact: &[f32], dimension: usize) -> Vec<f64> {
    let cosine = |(left, right): (&[f32], &[f32])| left.iter().zip(right).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    vectors.chunks_exact(dimension).zip(exact.chunks_exact(dimension)).map(cosine).collect()
}

fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The ids of documents, and their tokens.
fn tokenize(model: &Model, documents: Vec<Document>) -> Result<(Vec<String>, Vec<TokenSequence>), Box<dyn Error>> {
    let mut ids = Vec::with_capacity(documents.len());
    let mut sequences = Vec::with_capacity(documents.len());
    for document in documents {
        sequences.push(model.tokenizer().encode(&document.whole())?);
        ids.push(document.id);
    }
    Ok((ids, sequences))
}

/// The documents that are nearest to a vector, nearest first.
fn nearest(query: &[f32], documents: &[f32]) -> Vec<usize> {
    let product = |document: &[f32]| query.iter().zip(document).map(|(a, b)| a * b).sum::<f32>();
    let scores: Vec<f32> = documents.chunks_exact(query.len()).map(product).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|left, right| scores[*right].total_cmp(&scores[*left]));
    order.truncate(HITS);
    order
}

/// nDCG (Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002) of the first documents.
fn normalized_gain<'a>(found: impl Iterator<Item = &'a str>, judged: &HashMap<String, f64>) -> f64 {
    let discounted = |gains: &mut dyn Iterator<Item = f64>| -> f64 {
        gains.take(HITS).enumerate().map(|(rank, gain)| gain / (rank as f64 + 2.0).log2()).sum()
    };
    let mut best: Vec<f64> = judged.values().copied().collect();
    best.sort_by(|left, right| right.total_cmp(left));
    discounted(&mut found.map(|id| judged.get(id).copied().unwrap_or(0.0))) / discounted(&mut best.into_iter())
}

/// Documents by query, with what was judged of them, above 0.
fn read_judgements(path: &Path) -> Result<HashMap<String, HashMap<String, f64>>, Box<dyn Error>> {
    let mut judgements: HashMap<String, HashMap<String, f64>> = HashMap::new();
    for line in documents::lines(path)?.skip(1) {
        let line = line?;
        let fields: Vec<&str> = line.split('\t').collect();
        let [query, document, score] = fields.as_slice() else { return Err(format!("not a judgement: {line}").into()) };
        let score: f64 = score.trim().parse()?;
        if score > 0.0 {
            judgements.entry((*query).to_owned()).or_default().insert((*document).to_owned(), score);
        }
    }
    Ok(judgements)
}
