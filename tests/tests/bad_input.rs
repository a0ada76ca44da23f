//! Whatever a client sends, it is told what was wrong, and the node goes on.

use anyhow::{Result, ensure};
use ragged_tests::Node;
use reqwest::Method;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_request_is_a_problem_with_a_code() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "c"})).await?.expect(201)?;
    node.post("/collections", &json!({"name": "v", "embedding": {"dimension": 3}})).await?.expect(201)?;
    let (search, documents) = ("/collections/c/search", "/collections/c/documents");
    let long = "x".repeat(300);
    let cases: Vec<(Method, &str, Value, u16, &str)> = vec![
        (Method::POST, "/collections", json!({"name": "c"}), 409, "collection_exists"),
        (Method::POST, "/collections", json!({"name": "Upper"}), 400, "invalid_collection_name"),
        (Method::POST, "/collections", json!({"name": "-c"}), 400, "invalid_collection_name"),
        (Method::POST, "/collections", json!({"name": "d", "spread": 99}), 400, ""),
        (Method::POST, "/collections", json!({"name": "d", "embedding": {"model": "none"}}), 400, "unknown_model"),
        (Method::POST, "/collections", json!({"name": "d", "chunking": {"tokens": 20, "overlap": 19}}), 400, "invalid_chunking"),
        (Method::POST, "/collections", json!({"name": "d", "colour": 1}), 400, "unknown_field"),
        (Method::POST, "/collections/none/search", json!({"query": "x"}), 404, "collection_not_found"),
        (Method::POST, search, json!({"query": 7}), 400, "invalid_type"),
        (Method::POST, search, json!({"query": "  "}), 400, "empty_query"),
        (Method::POST, search, json!({}), 400, "empty_query"),
        (Method::POST, search, json!({"query": "x", "limit": 1001}), 400, "invalid_limit"),
        (Method::POST, search, json!({"query": "x", "limit": 0}), 400, "invalid_limit"),
        (Method::POST, search, json!({"query": "x", "offset": 10000}), 400, "invalid_offset"),
        (Method::POST, search, json!({"query": "x", "recall": 0.9}), 400, "invalid_value"),
        (Method::POST, search, json!({"query": "x", "recall": "0.95"}), 400, "invalid_value"),
        (Method::POST, search, json!({"query": "x", "recall": 1}), 400, "invalid_type"),
        (Method::POST, search, json!({"vector": [1.0]}), 400, "wrong_vector_length"),
        (Method::POST, search, json!({"query": "x", "token": "garbage"}), 400, "invalid_token"),
        (Method::POST, search, json!({"query": "x", "filter": {"must": [{"field": "a"}]}}), 400, ""),
        (Method::POST, search, json!({"query": "x", "filter": {"must": [{"field": "a", "eq": {"b": 1}}]}}), 400, ""),
        (Method::POST, "/collections/v/search", json!({"query": "x", "mode": "dense"}), 400, "vector_required"),
        (Method::POST, "/collections/v/search", json!({"vector": [0.0, 0.0, 0.0]}), 400, "invalid_vector"),
        (Method::POST, documents, json!({"documents": []}), 400, "invalid_document_count"),
        (Method::POST, documents, json!({"documents": [{"text": ""}]}), 400, "empty_document"),
        (Method::POST, documents, json!({"documents": [{"id": long, "text": "x"}]}), 400, "invalid_document_id"),
        (
            Method::POST,
            documents,
            json!({"documents": [{"text": "ok"}, {"text": "x", "vector": [1, 2]}]}),
            400,
            "wrong_vector_length",
        ),
        (Method::POST, "/collections/v/documents", json!({"documents": [{"text": "x"}]}), 400, "vector_required"),
        (Method::GET, "/collections/c/documents/none", Value::Null, 404, "document_not_found"),
        (Method::GET, "/jobs/none", Value::Null, 404, "job_not_found"),
        (Method::GET, "/nothing", Value::Null, 404, "route_not_found"),
        (Method::PATCH, "/collections", Value::Null, 405, "method_not_allowed"),
    ];
    for (method, path, body, status, code) in cases {
        let mut request = node.request(method.clone(), path)?;
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = node.send(request).await?;
        ensure!(
            answer.status == status && (code.is_empty() || answer.code() == code),
            "{method} {path} {body}: {answer:?}, wanted {status} {code}"
        );
        ensure!(answer.header("content-type") == Some("application/problem+json"), "{answer:?}");
        ensure!(answer.body["request_id"].as_str() == answer.header("x-request-id"), "{answer:?}");
        ensure!(answer.body["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{answer:?}");
    }
    let counts = node.get("/collections/c").await?.expect(200)?;
    ensure!(counts["documents"] == 0, "nothing of a refused upload is stored: {counts}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_are_no_json_are_refused() -> Result<()> {
    let node = Node::start().await?;
    node.post("/collections", &json!({"name": "c"})).await?.expect(201)?;
    let raw = |path: &str, body: Vec<u8>| {
        let request =
            node.request(Method::POST, path).map(|request| request.header("content-type", "application/json").body(body));
        async { node.send(request?).await }
    };
    ensure!(raw("/collections/c/search", b"{\"query\": ".to_vec()).await?.code() == "malformed_json");
    ensure!(raw("/collections/c/search", b"{\"query\": \"\xff\"}".to_vec()).await?.code() == "invalid_utf8");
    ensure!(raw("/collections/c/search", b"{\"vector\": [1e999]}".to_vec()).await?.status == 400);
    ensure!(raw("/collections/c/search", b"{\"vector\": [NaN]}".to_vec()).await?.code() == "malformed_json");
    ensure!(raw("/collections/c/search", "[".repeat(100_000).into_bytes()).await?.status == 400);
    let large = raw("/collections/c/documents", vec![b' '; (32 << 20) + 1]).await;
    // The node may answer while the body is still being sent, which some clients report as a broken connection.
    ensure!(large.is_err() || large.is_ok_and(|answer| answer.code() == "body_too_large"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_but_health_needs_the_key() -> Result<()> {
    let node = Node::start().await?;
    let http = reqwest::Client::new();
    for path in ["/healthz", "/livez", "/readyz"] {
        ensure!(http.get(node.url(path)).send().await?.status() == 200, "{path}");
    }
    for path in ["/api/v1/collections", "/api/v1/jobs", "/api/v1/openapi.json"] {
        ensure!(http.get(node.url(path)).send().await?.status() == 401, "{path} without a key");
        let wrong = http.get(node.url(path)).bearer_auth("rk_00_00").send().await?;
        ensure!(wrong.status() == 401, "{path} with a wrong key");
        ensure!(http.get(node.url(path)).bearer_auth(node.key()?).send().await?.status() == 200, "{path} with the key");
    }
    Ok(())
}
