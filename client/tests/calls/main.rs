//! What the client does when nodes fail: against a server that does as it is told.

mod scripted_server;

use ragged_client::{
    Client, ClientBuilder, ClientError, ImportOptions, NewDocument, RetryPolicy, SearchRequest, UploadFile, UploadOptions,
    UploadReply,
};
use scripted_server::{Reply, Server, refused_endpoint};
use std::time::{Duration, Instant};

const UPLOADED: &str = r#"{"documents": [{"id": "a", "chunks": 1, "version": 1}], "token": "t1"}"#;
const FOUND: &str = r#"{"hits": [], "took_ms": 0.5}"#;
const BUSY: &str = r#"{"type": "about:blank", "title": "Busy", "status": 503, "code": "busy", "detail": "try later"}"#;
const MISSING: &str =
    r#"{"type": "about:blank", "title": "Missing", "status": 404, "code": "collection_not_found", "detail": "no such"}"#;

fn builder() -> ClientBuilder {
    Client::builder().retry(RetryPolicy { backoff_base: Duration::from_millis(1), ..RetryPolicy::default() })
}

fn client(endpoints: &[&str]) -> Client {
    builder().endpoints(endpoints.iter().copied()).key("k").build().expect("the settings are right")
}

fn one_document() -> Vec<NewDocument> {
    vec![NewDocument { id: Some("a".to_owned()), text: "text".to_owned(), ..Default::default() }]
}

fn keyed() -> UploadOptions {
    UploadOptions { idempotency_key: Some("key-1".to_owned()), ..Default::default() }
}

fn query() -> SearchRequest {
    SearchRequest { query: Some("q".to_owned()), ..Default::default() }
}

#[tokio::test]
async fn a_read_goes_on_until_it_is_answered() {
    let server = Server::start(vec![Reply::status(503, BUSY), Reply::HangUp, Reply::HalfAnswer, Reply::status(200, FOUND)]);
    let answer = client(&[server.endpoint()]).search("c", &query()).await.expect("the fourth attempt is answered");
    assert!(answer.hits.is_empty());
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn a_read_gives_up_after_its_attempts_and_says_what_was_answered() {
    let server = Server::start((0..9).map(|_| Reply::status(503, BUSY)).collect());
    let error = client(&[server.endpoint()]).search("c", &query()).await.expect_err("it is never answered");
    assert_eq!((error.status(), error.code(), error.is_unavailable()), (Some(503), Some("busy"), true));
    assert_eq!(server.requests().len(), RetryPolicy::default().attempts as usize);
}

#[tokio::test]
async fn a_write_without_a_key_is_sent_once_and_its_outcome_is_unknown() {
    for reply in [Reply::HangUp, Reply::HalfAnswer, Reply::status(504, BUSY.replace("503", "504")), Reply::status(502, "<html>")]
    {
        let server = Server::start(vec![reply, Reply::status(200, UPLOADED)]);
        let error =
            client(&[server.endpoint()]).upload("c", &one_document(), Default::default()).await.expect_err("the answer is lost");
        assert!(matches!(error, ClientError::UnknownOutcome { .. }), "{error:?}");
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_write_without_a_key_that_is_refused_with_503_is_not_repeated() {
    let server = Server::start(vec![Reply::status(503, BUSY), Reply::status(200, UPLOADED)]);
    let error = client(&[server.endpoint()]).upload("c", &one_document(), Default::default()).await.expect_err("it is refused");
    assert_eq!(error.status(), Some(503));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_write_with_a_key_is_repeated_with_the_same_key_and_body() {
    let server = Server::start(vec![Reply::HangUp, Reply::status(503, BUSY), Reply::status(200, UPLOADED)]);
    let reply = client(&[server.endpoint()]).upload("c", &one_document(), keyed()).await.expect("the third attempt is answered");
    assert!(matches!(reply, UploadReply::Stored(stored) if stored.token == "t1"));
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert_eq!(request.header("idempotency-key"), Some("key-1"));
        assert_eq!(request.header("authorization"), Some("Bearer k"));
        assert_eq!(request.body, requests[0].body);
    }
}

#[tokio::test]
async fn a_repetition_that_is_refused_does_not_make_a_lost_write_a_failed_one() {
    let server = Server::start(vec![Reply::HangUp, Reply::status(404, MISSING)]);
    let error = client(&[server.endpoint()]).delete_collection("c").await.expect_err("nobody knows");
    assert!(matches!(error, ClientError::UnknownOutcome { .. }), "{error:?}");

    let server = Server::start(vec![Reply::status(404, MISSING)]);
    let error = client(&[server.endpoint()]).delete_collection("c").await.expect_err("it was never there");
    assert!(error.is_not_found(), "{error:?}");
}

#[tokio::test]
async fn whatever_could_not_be_sent_goes_to_the_next_node_even_a_write_without_a_key() {
    let server = Server::start(vec![Reply::status(200, UPLOADED), Reply::status(200, UPLOADED)]);
    let dead = refused_endpoint();
    let client = client(&[&dead, server.endpoint()]);
    client.upload("c", &one_document(), Default::default()).await.expect("the second node takes it");
    client.upload("c", &one_document(), Default::default()).await.expect("and is asked first from then on");
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn without_any_node_the_error_says_so() {
    let (one, other) = (refused_endpoint(), refused_endpoint());
    let error = client(&[&one, &other]).upload("c", &one_document(), keyed()).await.expect_err("there is no node");
    assert!(matches!(error, ClientError::Unreachable { attempts: 4, .. }), "{error:?}");
    let never = builder().endpoint(&one).endpoint(&other).retry(RetryPolicy::never()).build().expect("the settings are right");
    let error = never.health().await.expect_err("there is no node");
    assert!(matches!(error, ClientError::Unreachable { attempts: 2, .. }), "{error:?}");
}

#[tokio::test]
async fn a_busy_node_leads_to_the_next_one_at_once() {
    let busy = Server::start(vec![Reply::status(503, BUSY).header("retry-after", "20")]);
    let idle = Server::start(vec![Reply::status(200, FOUND)]);
    let began = Instant::now();
    client(&[busy.endpoint(), idle.endpoint()]).search("c", &query()).await.expect("the second node answers");
    assert!(began.elapsed() < Duration::from_secs(10), "the wait that one node asks for does not concern the other");
}

#[tokio::test]
async fn retry_after_is_honoured_and_a_long_one_is_an_answer() {
    let server = Server::start(vec![Reply::status(429, BUSY).header("retry-after", "1"), Reply::status(200, FOUND)]);
    let began = Instant::now();
    client(&[server.endpoint()]).search("c", &query()).await.expect("the second attempt is answered");
    assert!(began.elapsed() >= Duration::from_millis(950), "{:?}", began.elapsed());

    let server = Server::start(vec![Reply::status(503, BUSY).header("retry-after", "3600")]);
    let error = client(&[server.endpoint()]).search("c", &query()).await.expect_err("nobody waits an hour");
    assert_eq!((error.status(), server.requests().len()), (Some(503), 1));
}

#[tokio::test]
async fn a_read_that_takes_too_long_is_unreachable_and_a_write_unknown() {
    let server = Server::start(vec![Reply::Silence, Reply::Silence]);
    let client = builder()
        .endpoint(server.endpoint())
        .timeout(Duration::from_millis(100))
        .upload_timeout(Duration::from_millis(100))
        .retry(RetryPolicy::never())
        .build()
        .expect("the settings are right");
    let error = client.search("c", &query()).await.expect_err("time runs out");
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    let error = client.upload("c", &one_document(), keyed()).await.expect_err("time runs out");
    assert!(matches!(error, ClientError::UnknownOutcome { .. }), "{error:?}");
}

#[tokio::test]
async fn searches_carry_the_token_of_the_last_write_to_their_collection() {
    let replies = || vec![Reply::status(200, UPLOADED), Reply::status(200, FOUND), Reply::status(200, FOUND)];
    let server = Server::start(replies());
    let on = client(&[server.endpoint()]);
    on.upload("c", &one_document(), keyed()).await.expect("answered");
    on.clone().search("c", &query()).await.expect("answered");
    on.search("other", &query()).await.expect("answered");
    let requests = server.requests();
    assert!(requests[1].body_text().contains(r#""token":"t1""#), "{}", requests[1].body_text());
    assert!(!requests[2].body_text().contains("token"), "{}", requests[2].body_text());

    let server = Server::start(replies());
    let off = builder().endpoint(server.endpoint()).read_your_writes(false).build().expect("the settings are right");
    off.upload("c", &one_document(), keyed()).await.expect("answered");
    off.search("c", &query()).await.expect("answered");
    assert!(!server.requests()[1].body_text().contains("token"));
}

#[tokio::test]
async fn an_import_is_repeated_only_when_every_line_has_an_id() {
    let report = r#"{"accepted": 1, "failed": [], "failed_count": 0, "token": "t"}"#;
    let line = bytes::Bytes::from_static(b"{\"text\": \"a\"}\n");
    let server = Server::start(vec![Reply::HangUp, Reply::status(200, report)]);
    let error = client(&[server.endpoint()]).import("c", line.clone(), Default::default()).await.expect_err("it is lost");
    assert!(matches!(error, ClientError::UnknownOutcome { .. }), "{error:?}");

    let server = Server::start(vec![Reply::HangUp, Reply::status(200, report)]);
    let options = ImportOptions { every_line_has_an_id: true };
    assert_eq!(client(&[server.endpoint()]).import("c", line, options).await.expect("answered").accepted, 1);
    assert_eq!(server.requests()[1].header("content-type"), Some("application/x-ndjson"));
}

#[tokio::test]
async fn a_stream_is_imported_in_one_request_to_a_node_that_lives() {
    let health = r#"{"status": "ok", "version": "0"}"#;
    let report = r#"{"accepted": 2, "failed": [], "failed_count": 0, "token": "t"}"#;
    let server = Server::start(vec![Reply::status(200, health), Reply::status(200, report)]);
    let lines =
        futures::stream::iter(["{\"text\":\"a\"}\n", "{\"text\":\"b\"}\n"].map(|line| Ok::<_, std::io::Error>(line.into())));
    let answer = client(&[&refused_endpoint(), server.endpoint()]).import_stream("c", lines).await.expect("answered");
    assert_eq!(answer.accepted, 2);
    let body = server.requests()[1].body_text();
    assert!(body.contains("{\"text\":\"a\"}\n") && body.contains("{\"text\":\"b\"}\n"), "{body}");
}

#[tokio::test]
async fn files_are_sent_as_a_form_each_time() {
    let server = Server::start(vec![Reply::HangUp, Reply::status(200, UPLOADED)]);
    let files = vec![UploadFile { name: "a b.md".to_owned(), content: "# Title".into() }];
    client(&[server.endpoint()]).upload_files("c", files, keyed()).await.expect("answered");
    for request in server.requests() {
        assert!(request.header("content-type").is_some_and(|kind| kind.starts_with("multipart/form-data")));
        let body = request.body_text();
        assert!(body.contains("filename=\"a b.md\"") && body.contains("# Title"), "{body}");
    }
}

#[tokio::test]
async fn a_node_that_is_not_ready_is_an_answer() {
    let server =
        Server::start(vec![Reply::status(503, r#"{"ready": false, "waiting_for": [{"part": "shard 7", "reason": "loading"}]}"#)]);
    let readiness = client(&[server.endpoint()]).ready().await.expect("it says what it waits for");
    assert!(!readiness.ready);
    assert_eq!((readiness.waiting_for[0].part.as_str(), server.requests().len()), ("shard 7", 1));
}

#[tokio::test]
async fn answers_longer_than_the_limit_are_refused() {
    let long = format!(r#"{{"hits": [], "took_ms": 0.5, "x": "{}"}}"#, "x".repeat(5000));
    for reply in [Reply::status(200, &long), Reply::status(200, &long).without_length()] {
        let server = Server::start(vec![reply]);
        let small = builder().endpoint(server.endpoint()).max_response_bytes(4096).build().expect("the settings are right");
        let error = small.search("c", &query()).await.expect_err("it is too long");
        assert!(matches!(error, ClientError::TooLarge { limit_bytes: 4096 }), "{error:?}");
    }
}

#[tokio::test]
async fn errors_of_things_that_are_no_nodes_keep_status_and_text() {
    let server = Server::start(vec![Reply::status(403, "<html>proxy says no</html>")]);
    let error = client(&[server.endpoint()]).get_collection("c").await.expect_err("refused");
    assert_eq!((error.status(), error.code()), (Some(403), Some("http_403")));
    assert!(error.to_string().contains("proxy says no"));
}
