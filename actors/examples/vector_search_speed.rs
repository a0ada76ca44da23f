//! Loads a collection into one partition, as the shard actor would, and measures recall and speed of its searches.
//!
//! `vector_search_speed MODEL DOCUMENTS QUERIES VECTORS`: the folder of an encoder, two files of JSON lines with `title`, `text` and
//! `meta` (gzipped), and a file that keeps the vectors from one run to the next.

#![allow(clippy::unwrap_used)] // a measurement may fail

use half::f16;
use ragged_actors::gpu_rows::GpuRows;
use ragged_actors::shard::content_cache::ContentCache;
use ragged_actors::shard::partition::{Partition, PartitionContext, PartitionQuery, Recall, SearchMetrics};
use ragged_actors::shard::text_writers::TextWriters;
use ragged_actors::{Condition, Filter, Scalar, Test};
use ragged_kernels::{CpuDevice, Device, Model, exact};
use ragged_raft::group::Ground;
use ragged_raft::ids::{CollectionId, ShardId, TenantId};
use ragged_raft::meta::collection::{Collection, VectorSettings};
use ragged_raft::shard::command::{PreparedChunk, PreparedDocument, ShardCommand};
use ragged_raft::shard::group::ShardGroup;
use ragged_raft::shard::rows::{ChunkText, DocumentHead, TextFormat};
use ragged_raft::{Store, StoreOptions};
use serde_json::Value;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TENANT: TenantId = TenantId(1);
const BATCH: usize = 256;
/// Characters of a text that are embedded: real vectors in bearable time.
const EMBEDDED_CHARACTERS: usize = 160;
/// Parts of the documents that filters pass.
const PARTS: [f64; 4] = [0.001, 0.01, 0.1, 0.5];
/// A prime: its multiples, modulo the number of documents, are the numbers of all of them in another order.
const SHUFFLE: usize = 1_000_003;

struct Text {
    title: String,
    text: String,
    meta: String,
}

fn texts(path: &str) -> Vec<Text> {
    let output = std::process::Command::new("gzip").args(["-dc", path]).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let mut texts = Vec::new();
    for line in lines.lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let meta = value.get("meta").filter(|meta| meta.is_object()).map_or("{}".to_owned(), Value::to_string);
        texts.push(Text { title: field("title"), text: field("text"), meta });
    }
    texts
}

fn embed(device: &CpuDevice, model: &Model, texts: &[Text]) -> Vec<f32> {
    let mut vectors = Vec::new();
    for some in texts.chunks(BATCH) {
        let beginning = |one: &Text| one.text.chars().take(EMBEDDED_CHARACTERS).collect::<String>();
        let sequence = |one: &Text| model.tokenizer().encode(format!("{} {}", one.title, beginning(one)).trim()).unwrap();
        vectors.extend(device.embed(&some.iter().map(sequence).collect::<Vec<_>>()).unwrap());
    }
    vectors
}

fn remembered(path: &str, make: impl FnOnce() -> Vec<f32>) -> Vec<f32> {
    if Path::new(path).exists() {
        return std::fs::read(path).unwrap().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    }
    let vectors = make();
    std::fs::write(path, vectors.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    vectors
}

/// A number of each document's, from 0 up to 1, that has nothing to do with its vector.
fn draw(number: usize, count: usize) -> f64 {
    (number * SHUFFLE % count) as f64 / count as f64
}

fn prepared(number: usize, count: usize, text: &Text, vector: &[f32]) -> PreparedDocument {
    let mut meta: Value = serde_json::from_str(&text.meta).unwrap();
    meta["draw"] = draw(number, count).into();
    PreparedDocument {
        head: DocumentHead::uploaded(format!("document-{number}"), Some(text.title.clone()), TextFormat::Plain, meta.to_string()),
        text: text.text.clone(),
        chunks: vec![PreparedChunk {
            text: ChunkText { start: 0, end: text.text.len() as u64, text: text.text.clone() },
            vectors: vec![vector.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect()],
        }],
    }
}

/// Resident memory in MB: all of it, and that of files.
fn resident() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| {
        status.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
            / 1024
    };
    (of("VmRSS:"), of("RssFile:"))
}

/// Searches for a while from so many threads; queries per second.
fn speed(partition: &Partition, queries: &[PartitionQuery], threads: usize) -> f64 {
    let begun = Instant::now();
    let done: usize = std::thread::scope(|scope| {
        let searcher = |thread: usize| {
            move || {
                let mut done = 0;
                while begun.elapsed() < Duration::from_secs(2) {
                    partition.search(&queries[(thread * 31 + done) % queries.len()]).unwrap();
                    done += 1;
                }
                done
            }
        };
        let running: Vec<_> = (0..threads).map(|thread| scope.spawn(searcher(thread))).collect();
        running.into_iter().map(|one| one.join().unwrap()).sum()
    });
    done as f64 / begun.elapsed().as_secs_f64()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, documents, queries, vectors_at] = arguments.as_slice() else {
        eprintln!("usage: vector_search_speed MODEL DOCUMENTS QUERIES VECTORS");
        std::process::exit(2);
    };
    let (texts, questions) = (texts(documents), texts(queries));
    let (vectors, query_vectors, dimension) = {
        let model = Arc::new(Model::load(Path::new(model)).unwrap());
        let device = CpuDevice::new(model.clone(), 2, CpuDevice::fastest_as_good_as_f32(&model)).unwrap();
        let vectors = remembered(vectors_at, || embed(&device, &model, &texts));
        (vectors, embed(&device, &model, &questions), model.dimension())
    };
    assert_eq!(vectors.len(), texts.len() * dimension, "VECTORS is of other documents");
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Store::open(&folder.path().join("store"), StoreOptions::default()).unwrap();
    let group = runtime.block_on(ShardGroup::start(Ground::alone(store), ShardId(0))).unwrap();
    let collection = Arc::new(Collection {
        id: CollectionId(1),
        tenant: TENANT,
        name: "speed".to_owned(),
        shards: vec![ShardId(0)],
        vectors: vec![VectorSettings { name: "default".to_owned(), dimension: dimension as u32, model: None }],
        chunk_tokens: 256,
        chunk_overlap: 32,
        language: "en".to_owned(),
        created_at_ms: 0,
    });
    let gpu_rows = Arc::new(GpuRows::register(0, &prometheus::Registry::new()).unwrap());
    let open = || {
        let changes = group.changes().watch(TENANT, collection.id);
        let (reader, folder) = (group.reader(), folder.path().join("partition"));
        let cache = Arc::new(ContentCache::register(32 << 20, &prometheus::Registry::new()).unwrap());
        let metrics = SearchMetrics::register(&prometheus::Registry::new()).unwrap();
        let text_writers = Arc::new(TextWriters::new(32 << 20));
        let collection = collection.clone();
        let context = PartitionContext {
            reader,
            changes,
            tenant: TENANT,
            collection,
            folder,
            cache,
            metrics,
            gpu_rows: gpu_rows.clone(),
            text_writers,
            tail_bytes_max: 64 << 20,
        };
        Partition::open(context).unwrap()
    };
    let partition = open();
    let begun = Instant::now();
    let mut indexing = Duration::ZERO;
    for (block, some) in texts.chunks(500).enumerate() {
        let documents = some.iter().enumerate().map(|(place, text)| {
            let number = block * 500 + place;
            prepared(number, texts.len(), text, &vectors[number * dimension..(number + 1) * dimension])
        });
        let documents = documents.collect();
        let upsert = ShardCommand::Upsert { tenant: TENANT, collection: collection.id, documents, idempotency: None, at_ms: 0 };
        runtime.block_on(group.propose(upsert)).unwrap();
        if partition.wants_indexing() {
            let round = Instant::now();
            partition.index().unwrap();
            indexing += round.elapsed();
        }
    }
    println!("{} documents stored in {:.1?}, {indexing:.1?} of it indexing", texts.len(), begun.elapsed());
    println!("{:?}", partition.status());
    while !partition.wants_indexing() {
        std::thread::sleep(Duration::from_millis(100));
    }
    let begun = Instant::now();
    partition.index().unwrap();
    println!("brought to rest in {:.1?}: {:?}", begun.elapsed(), partition.status());
    drop(partition);
    let begun = Instant::now();
    let partition = open();
    println!("opened in {:.0?}; holds {} MB; resident {:?} MB", begun.elapsed(), partition.memory_bytes() >> 20, resident());

    let rows = exact::to_f16(&vectors);
    let query = |number: usize| query_vectors[number * dimension..(number + 1) * dimension].to_vec();
    for depth in [10, 100] {
        let (mut right, mut wanted) = (0, 0);
        for number in 0..questions.len() {
            let best = exact::top_k(&query(number), &rows, dimension, None, depth);
            let found =
                partition.search(&PartitionQuery { vector: Some(query(number)), depth, ..Default::default() }).unwrap().dense;
            right += found.iter().filter(|one| best.iter().any(|right| right.position == one.row.0)).count();
            wanted += best.len();
        }
        println!("recall@{depth}: {:.4}", right as f64 / wanted as f64);
    }
    let only = |field: &str, test| Some(Filter { must: vec![Condition { field: field.to_owned(), test }], ..Default::default() });
    let section = |section: &str| only("section", Test::In(vec![Scalar::Text(section.to_owned())]));
    let below = |part: f64| {
        let part = Scalar::Number(serde_json::Number::from_f64(part).unwrap());
        only("draw", Test::Range { lower: Bound::Unbounded, upper: Bound::Excluded(part) })
    };
    let searched = |number: usize, filter: Option<Filter>, recall: Recall| PartitionQuery {
        vector: Some(query(number)),
        depth: 10,
        filter,
        recall,
        explain: true,
        ..Default::default()
    };
    let all: Vec<PartitionQuery> = (0..questions.len()).map(|number| searched(number, None, Recall::Usual)).collect();
    let unfiltered = speed(&partition, &all, 2);
    println!("unfiltered: {unfiltered:.0}/s on two threads");
    let filters = PARTS.iter().map(|part| (format!("draw < {part}"), below(*part)));
    let sections = ["libs", "python", "doc", "games"].map(|name| (format!("section {name}"), section(name)));
    for (name, filter) in filters.chain(sections) {
        let begun = Instant::now();
        partition.search(&searched(0, filter.clone(), Recall::Usual)).unwrap();
        let first = begun.elapsed();
        let (mut found, mut wanted) = (0, 0);
        for number in 0..questions.len() {
            let right = partition.search(&searched(number, filter.clone(), Recall::Exact)).unwrap().dense;
            let worst = right.last().map_or(0.0, |one| one.score);
            let near = partition.search(&searched(number, filter.clone(), Recall::Usual)).unwrap().dense;
            found += near.iter().filter(|one| one.score >= worst).count();
            wanted += right.len();
        }
        let queries: Vec<PartitionQuery> =
            (0..questions.len()).map(|number| searched(number, filter.clone(), Recall::Usual)).collect();
        let two = speed(&partition, &queries, 2);
        println!(
            "{name}: first {first:.0?}, recall@10 {:.4}, {two:.0}/s on two threads, {:.2} of unfiltered",
            found as f64 / f64::max(wanted as f64, 1.0),
            two / unfiltered
        );
        let steps = partition.search(&searched(0, filter, Recall::Usual)).unwrap().steps;
        println!("    {}", steps.join("; "));
    }
    println!("holds {} MB", partition.memory_bytes() >> 20);
    type Make<'a> = Box<dyn Fn(usize) -> PartitionQuery + 'a>;
    let text = |number: usize| Some(questions[number].text.clone());
    let kinds: [(&str, Make<'_>); 6] = [
        ("dense 10", Box::new(|number| PartitionQuery { vector: Some(query(number)), depth: 10, ..Default::default() })),
        ("dense 100", Box::new(|number| PartitionQuery { vector: Some(query(number)), depth: 100, ..Default::default() })),
        (
            "dense 10, filter",
            Box::new(|number| PartitionQuery {
                vector: Some(query(number)),
                depth: 10,
                filter: section("libs"),
                ..Default::default()
            }),
        ),
        ("words 10", Box::new(|number| PartitionQuery { text: text(number), depth: 10, ..Default::default() })),
        (
            "both 100",
            Box::new(|number| PartitionQuery {
                vector: Some(query(number)),
                text: text(number),
                depth: 100,
                ..Default::default()
            }),
        ),
        (
            "both 100, documents",
            Box::new(|number| PartitionQuery {
                vector: Some(query(number)),
                text: text(number),
                depth: 100,
                group_by_document: true,
                ..Default::default()
            }),
        ),
    ];
    for (name, make) in kinds {
        let queries: Vec<PartitionQuery> = (0..questions.len()).map(make).collect();
        let (one, two) = (speed(&partition, &queries, 1), speed(&partition, &queries, 2));
        println!("{name:<20} {one:>8.0}/s on one thread, {two:>8.0}/s on two");
    }
    let explained = PartitionQuery {
        vector: Some(query(0)),
        text: text(0),
        filter: section("libs"),
        depth: 10,
        explain: true,
        ..Default::default()
    };
    println!("{:#?}", partition.search(&explained).unwrap().steps);
    println!("resident {:?} MB", resident());
    runtime.block_on(group.shutdown());
}
