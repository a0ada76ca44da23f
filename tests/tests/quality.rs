//! The search quality that the project promises, on real collections with judgements.

use anyhow::{Result, ensure};
use ragged_tests::Node;
use ragged_tests::node::program;
use ragged_tests::shared::shared;

async fn evaluate(collection: &str, least: &str) -> Result<()> {
    let Some(shared) = shared(&format!("the evaluation on {collection}")) else { return Ok(()) };
    let node = Node::start().await?;
    let mut eval = program();
    eval.arg("eval").arg(shared.join("data").join(collection)).args([
        "--collection",
        collection,
        "--create",
        "--load",
        "--min-ndcg",
        least,
    ]);
    eval.args(["--endpoint", &node.url("")]).env("RAGGED_KEY", node.key()?).env("XDG_STATE_HOME", node.data_dir().join("state"));
    let output = tokio::task::spawn_blocking(move || eval.output()).await??;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    ensure!(output.status.success(), "{collection}: {text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn scifact_is_searched_as_well_as_promised() -> Result<()> {
    evaluate("scifact", "dense=0.643,text=0.670,hybrid=0.710").await
}

#[tokio::test(flavor = "multi_thread")]
async fn cranfield_is_searched_as_well_as_promised() -> Result<()> {
    evaluate("cranfield", "dense=0.365,text=0.355,hybrid=0.402").await
}
