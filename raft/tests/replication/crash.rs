//! A process that is killed at any moment: what was acknowledged is there, and nothing is half there.

use crate::fixture::*;
use ragged_raft::group::Ground;
use ragged_raft::ids::ShardId;
use ragged_raft::shard::group::ShardGroup;
use rand::Rng;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const FOLDER: &str = "RAGGED_CRASH_FOLDER";
const SHARDS: u16 = 3;
const ROUNDS: usize = 8;

/// Not a test by itself: what the killed process does. It writes documents and says so, one line each, once they are acknowledged.
#[test]
#[ignore = "run by the crash test in a process of its own"]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = open(folder.as_ref());
        let mut writers = tokio::task::JoinSet::new();
        for number in 0..SHARDS {
            let group = ShardGroup::start(Ground::alone(store.clone()), ShardId(number)).await.unwrap();
            for writer in 0..4 {
                let group = group.clone();
                writers.spawn(async move {
                    for round in 0u64.. {
                        let id = format!("s{number}-w{writer}-d{}", round % 20);
                        let long = "long ".repeat((round % 300) as usize);
                        let ragged_raft::shard::command::ShardReply::Upserted(upserted) =
                            propose(&group, upsert(vec![document(&id, &[&id, &long, "end"])], round)).await
                        else {
                            panic!("unexpected reply");
                        };
                        let line = format!("ack {number} {id} {}\n", upserted[0].version);
                        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                    }
                });
            }
        }
        while writers.join_next().await.is_some() {}
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_kill_is_there_and_nothing_is_half_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: HashMap<(u16, String), u64> = HashMap::new();
    for round in 0..ROUNDS {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let has_acknowledged = Arc::new(AtomicBool::new(!acknowledged.is_empty()));
        let seen = has_acknowledged.clone();
        let lines = std::thread::spawn(move || {
            let mut acknowledged = Vec::new();
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                // The test harness writes its own words before the first line.
                let Some(at) = line.find("ack ") else { continue };
                let words: Vec<&str> = line[at..].split(' ').collect();
                if let [_, shard, id, version] = words[..]
                    && let (Ok(shard), Ok(version)) = (shard.parse::<u16>(), version.parse::<u64>())
                {
                    acknowledged.push((shard, id.to_owned(), version));
                    seen.store(true, Ordering::Relaxed);
                }
            }
            acknowledged
        });
        let log = folder.path().join("db");
        let start = Instant::now();
        while !log.exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "the process does not start");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Some round must come to it, however slow the machine is.
        while round == ROUNDS - 1 && !has_acknowledged.load(Ordering::Relaxed) {
            assert!(start.elapsed() < Duration::from_secs(60), "nothing is acknowledged");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // At any moment: while it starts, too.
        tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..700))).await;
        process.kill().unwrap();
        process.wait().unwrap();
        let acks = lines.join().unwrap();
        println!("round {round}: {} acknowledged writes", acks.len());
        for (shard, id, version) in acks {
            let newest = acknowledged.entry((shard, id)).or_default();
            *newest = version.max(*newest);
        }

        let store = reopen(folder.path());
        for number in 0..SHARDS {
            let group = shard(&store, number).await;
            let heads = check_partition(&group.reader(), TENANT, COLLECTION);
            let there: HashMap<&str, u64> = heads.iter().map(|head| (head.id.as_str(), head.version)).collect();
            for ((_, id), version) in acknowledged.iter().filter(|((shard, _), _)| *shard == number) {
                assert!(
                    there.get(id.as_str()).is_some_and(|found| found >= version),
                    "{id} version {version} was acknowledged, {:?} is there",
                    there.get(id.as_str())
                );
            }
            group.shutdown().await;
        }
        store.close();
    }
    assert!(!acknowledged.is_empty(), "some round acknowledged something");
}
