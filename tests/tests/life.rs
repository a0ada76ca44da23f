//! Starting, ending, and starting again.

use anyhow::{Result, ensure};
use ragged_tests::Node;
use ragged_tests::node::program;
use serde_json::json;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_again_after_an_orderly_end() -> Result<()> {
    let mut node = Node::start().await?;
    let key = node.key()?;
    ensure!(
        std::fs::metadata(node.data_dir().join("admin.key"))?.permissions().mode() & 0o077 == 0,
        "the key is its owner's alone"
    );
    node.post("/collections", &json!({"name": "c"})).await?.expect(201)?;
    node.post("/collections/c/documents", &json!({"documents": [{"id": "a", "text": "Seagulls over the pier."}]}))
        .await?
        .expect(200)?;
    node.signal(libc::SIGTERM)?;
    let status = node.wait_for_end(Duration::from_secs(11)).await?;
    ensure!(status.success(), "{status}");
    // As if the node had ended after a collection was deleted, and before its files went.
    let left_behind = node.data_dir().join("partitions/shard-000/tenant-1/collection-4711");
    std::fs::create_dir_all(left_behind.join("segments"))?;
    node.restart().await?;
    ensure!(!left_behind.exists(), "files of a collection that is not there stay");
    ensure!(node.key()? == key, "the key stays");
    let hits = node.post("/collections/c/search", &json!({"query": "birds by the sea"})).await?.expect(200)?;
    ensure!(hits["hits"][0]["document_id"] == "a", "{hits}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_over_the_same_folder_is_refused_with_one_line() -> Result<()> {
    let node = Node::start().await?;
    let mut second = program();
    second
        .arg("serve")
        .env("RAGGED_DATA_DIR", node.data_dir())
        .env("RAGGED_MODEL_DIR", ragged_tests::node::model_dir())
        .env("RAGGED_HTTP_LISTEN", "127.0.0.1:0")
        .env("RAGGED_CLUSTER_LISTEN", "127.0.0.1:0");
    let output = tokio::task::spawn_blocking(move || second.output()).await??;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && text.contains("in use by another node"), "{:?}: {text}", output.status);
    ensure!(!text.contains("panicked"), "{text}");
    node.get("/collections").await?.expect(200)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_address_is_refused_without_tls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut node = program();
    node.arg("serve").env("RAGGED_DATA_DIR", folder.path()).env("RAGGED_HTTP_LISTEN", "0.0.0.0:0");
    let output = tokio::task::spawn_blocking(move || node.output()).await??;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2) && text.contains("TLS"), "{:?}: {text}", output.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_answered_while_the_node_embeds() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "c"})).await?.expect(201)?;
    let text = "Words to embed, many of them, again and again. ".repeat(20);
    let body = json!({"documents": (0..200).map(|n| json!({"text": format!("{n} {text}")})).collect::<Vec<_>>()});
    let upload = node.post("/collections/c/documents", &body);
    let probe = async {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        let mut answered = 0;
        for _ in 0..50 {
            ensure!(http.get(node.url("/healthz")).send().await?.status() == 200);
            answered += 1;
        }
        Ok(answered)
    };
    let (uploaded, probed) = futures::future::join(upload, probe).await;
    uploaded?.expect(200)?;
    ensure!(probed? == 50);
    Ok(())
}
