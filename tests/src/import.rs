//! Documents that are imported by the command line while something happens to the cluster.

use crate::node::{Node, program};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// `ragged import` under way, over all nodes that it was given.
pub struct Import {
    child: Child,
    acknowledged: Arc<AtomicUsize>,
    /// The acknowledgements, in the order of the file.
    acks: Option<UnboundedReceiver<Value>>,
    reader: Option<JoinHandle<std::io::Result<Value>>>,
}

impl Import {
    /// Starts it with a file of documents, one a line, so many a request.
    pub fn start(file: &Path, collection: &str, batch: usize, nodes: &[Node]) -> Result<Import> {
        let mut command = program();
        command.arg("import").arg(file).args(["--collection", collection, "--acks", "--json"]);
        command.args(["--batch", &batch.to_string(), "--parallel", "1"]);
        for node in nodes {
            command.args(["--endpoint", &node.url("")]);
        }
        let key = nodes.first().context("an import needs a node")?.key()?;
        let mut child = command.env("RAGGED_KEY", key).stdout(Stdio::piped()).stdin(Stdio::null()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("the output is piped")?);
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let (sender, acks) = unbounded_channel();
        let reader = std::thread::spawn({
            let acknowledged = acknowledged.clone();
            move || follow(output, &acknowledged, &sender)
        });
        Ok(Import { child, acknowledged, acks: Some(acks), reader: Some(reader) })
    }

    /// The acknowledgements as they come; once.
    pub fn acks(&mut self) -> Result<UnboundedReceiver<Value>> {
        self.acks.take().context("the acknowledgements are followed already")
    }

    /// Documents that were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many have been acknowledged.
    pub async fn reaches(&mut self, count: usize) -> Result<()> {
        while self.acknowledged() < count {
            ensure!(self.child.try_wait()?.is_none(), "the import ended after {} documents", self.acknowledged());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits for its end. Returns the summary, which must say that every document was stored.
    pub async fn finish(mut self) -> Result<Value> {
        let reader = self.reader.take().context("it is finished once")?;
        let summary = tokio::task::spawn_blocking(move || reader.join()).await?;
        let summary = summary.map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        let status = self.child.wait()?;
        ensure!(status.success() && summary["failed_count"] == 0, "the import failed: {status}, {summary}");
        Ok(summary)
    }
}

/// Reads what the import prints: a line for each acknowledgement, and the summary, which is returned.
fn follow(output: impl BufRead, acknowledged: &AtomicUsize, acks: &UnboundedSender<Value>) -> std::io::Result<Value> {
    let mut summary = Value::Null;
    for line in output.lines() {
        let line: Value = serde_json::from_str(&line?)?;
        if line["took_s"].is_number() {
            summary = line;
        } else {
            acknowledged.fetch_add(line["accepted"].as_u64().unwrap_or_default() as usize, Ordering::Relaxed);
            let _ = acks.send(line); // nobody need listen
        }
    }
    Ok(summary)
}

impl Drop for Import {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// Writes a file of documents, one a line.
pub fn write_lines(path: &Path, documents: &[Value]) -> Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for document in documents {
        writeln!(file, "{document}")?;
    }
    Ok(file.flush()?)
}

/// Ids and versions of all documents of a collection, read through this node.
pub async fn stored(node: &Node, collection: &str) -> Result<HashMap<String, u64>> {
    let (mut cursor, mut found) = (String::new(), HashMap::new());
    loop {
        let page = node.get(&format!("/collections/{collection}/documents?limit=1000{cursor}")).await?;
        let page = page.expect(200)?;
        for document in crate::cluster::entries(&page, "documents") {
            let id = document["id"].as_str().context("a document has an id")?.to_owned();
            ensure!(found.insert(id, document["version"].as_u64().unwrap_or_default()).is_none(), "listed twice: {document}");
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return Ok(found),
        }
    }
}
