//! Whoever knocks at the cluster port without a certificate costs little, and disturbs nobody.

use anyhow::{Context, Result, ensure};
use ragged_tests::cluster::{agreed, healthy, nodes, replicated};
use ragged_tests::node::Node;
use rand::RngCore;
use serde_json::json;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// What the attacked node may hold more than before.
const MORE_BYTES_MAX: u64 = 50 << 20;
/// Connections that say nothing, and that say little.
const SILENT: usize = 200;
const SLOW: usize = 100;

fn garbage_bytes() -> u64 {
    if std::env::var_os("RAGGED_LONG_TESTS").is_some() { 1 << 30 } else { 64 << 20 }
}

fn resident(node: &Node) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has a size")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10)
}

/// Sends random bytes, over as many connections as it takes.
fn send_garbage(address: String, bytes: u64) -> JoinHandle<Result<u64>> {
    std::thread::spawn(move || {
        let mut block = vec![0; 1 << 20];
        let mut sent = 0;
        while sent < bytes {
            rand::rng().fill_bytes(&mut block);
            let mut stream = TcpStream::connect(&address)?;
            stream.set_write_timeout(Some(Duration::from_secs(10)))?;
            // It is cut off somewhere; what counts is what was sent at it.
            let _ = stream.write_all(&block);
            sent += block.len() as u64;
        }
        Ok(sent)
    })
}

/// Keeps connections open that never finish a handshake; made anew when they are closed, until told to stop. Counts those that were closed.
fn linger(address: String, stop: Arc<AtomicBool>, closed: Arc<AtomicU64>) -> JoinHandle<Result<()>> {
    std::thread::spawn(move || {
        let open = || -> Result<TcpStream> {
            let stream = TcpStream::connect(&address)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let mut streams = (0..SILENT + SLOW).map(|_| open()).collect::<Result<Vec<_>>>()?;
        // The beginning of a TLS record that says it is a long one.
        let hello = [0x16, 0x03, 0x01, 0x3f, 0x00, 0x01, 0x00, 0x3e, 0xfc, 0x03, 0x03];
        let mut position = 0;
        while !stop.load(Ordering::Relaxed) {
            for (number, stream) in streams.iter_mut().enumerate() {
                let said = if number < SLOW { stream.write_all(&[hello.get(position).copied().unwrap_or(0)]) } else { Ok(()) };
                let ended = match stream.read(&mut [0; 64]) {
                    Ok(0) => true,
                    Ok(_) => false,
                    Err(fault) => fault.kind() != std::io::ErrorKind::WouldBlock,
                };
                if ended || said.is_err() {
                    closed.fetch_add(1, Ordering::Relaxed);
                    *stream = open()?;
                }
            }
            position += 1;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    })
}

async fn write(node: &Node, number: usize) -> Result<()> {
    let body = json!({ "documents": [{ "id": format!("d{number}"), "text": "an ordinary document", "vector": [1.0, 0.5] }] });
    node.post("/collections/c/documents", &body).await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_are_none_cost_little_and_disturb_nobody() -> Result<()> {
    let mut nodes = nodes(3, &[]).await?;
    nodes[0].post("/collections", &json!({ "name": "c", "spread": 8, "embedding": { "dimension": 2 } })).await?.expect(201)?;
    replicated(PATIENCE, &nodes[0], 3, 3).await?;
    for number in 0..64 {
        write(&nodes[number % 3], number).await?;
    }
    let before = resident(&nodes[0])?;
    let (stop, closed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let lingering = linger(nodes[0].cluster_listen().to_owned(), stop.clone(), closed.clone());
    let garbage = send_garbage(nodes[0].cluster_listen().to_owned(), garbage_bytes());

    let mut number = 64;
    let mut most = before;
    while !garbage.is_finished() || closed.load(Ordering::Relaxed) < SILENT as u64 {
        write(&nodes[number % 3], number).await?;
        number += 1;
        most = most.max(resident(&nodes[0])?);
    }
    let sent = garbage.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
    // A node that comes back finds its way past them.
    nodes[2].kill_and_restart().await?;
    healthy(PATIENCE, &nodes[2]).await?;
    for last in 0..16 {
        write(&nodes[2], number + last).await?;
    }
    most = most.max(resident(&nodes[0])?);
    stop.store(true, Ordering::Relaxed);
    lingering.join().map_err(|_| anyhow::anyhow!("the lingering thread panicked"))??;
    println!(
        "{} MiB of garbage, {} connections that lingered were closed, {number} writes meanwhile; {} MiB before, {} MiB at most",
        sent >> 20,
        closed.load(Ordering::Relaxed),
        before >> 20,
        most >> 20
    );
    ensure!(most < before + MORE_BYTES_MAX, "the node grew from {before} to {most} bytes");
    agreed(PATIENCE, &nodes[0]).await?;
    Ok(())
}
