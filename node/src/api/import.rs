//! Imports: any number of documents, one a line, in one request.

use crate::api::documents::from_wire;
use crate::api::lines::{Line, Lines};
use crate::api::problem::Problem;
use crate::api::query::Query;
use crate::api::routes::Answer;
use crate::api::{Call, json};
use bytes::Bytes;
use ragged_actors::{Import, ImportOutcome, ImportRefusal, Session};
use ragged_client::{ImportFailure, ImportReport, NewDocument};

/// A line holds one document, whose text is at most 16 MiB.
const LINE_BYTES_MAX: usize = 16 << 20;

/// `POST /api/v1/collections/{collection}/documents/import`.
#[utoipa::path(post, path = "/api/v1/collections/{collection}/documents/import", tag = "documents", operation_id = "import_documents",
    summary = "Import documents",
    description = "Takes one document (as in an upload) a line, in a body of any length; a line has at most 16 MiB. Lines that are wrong \
                   are listed in the answer, and the others are stored. When an import is cut off, sending it again is safe as long as its documents \
                   have ids.",
    params(("collection" = String, Path, description = "Name of the collection", pattern = "^[a-z0-9][a-z0-9_-]{0,62}$", example = "handbook")),
    request_body(description = "NDJSON: one `NewDocument` a line", content(
        (String = "application/x-ndjson"),
        (String = "text/plain", example = "{\"id\": \"a\", \"text\": \"first\"}\n{\"id\": \"b\", \"text\": \"second\"}\n"),
    )),
    responses((status = 200, description = "What became of the lines", body = ImportReport)))]
pub async fn import(mut call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    check_media_type(call.media_type()?.as_ref())?;
    let mut import = session.import(call.parameter(0)?).await?;
    let mut lines = Lines::new(call.take_body(), LINE_BYTES_MAX);
    let read = tokio::select! {
        read = read_lines(&mut lines, &mut import) => read,
        () = call.api.stopping().cancelled() => Err(Problem::unavailable("stopping", "the node is stopping")),
    };
    let outcome = import.finish().await;
    // A cut-off import is an error, and still says what it has stored.
    match (read, outcome) {
        (Ok(()), Ok(outcome)) => json::ok(&report(outcome)?),
        (Ok(()), Err(error)) => Err(error.into()),
        (Err(problem), Ok(outcome)) => {
            let stored = format!("the import was cut off after {} documents were stored", outcome.accepted);
            Err(problem.at(&stored))
        }
        (Err(problem), Err(_)) => Err(problem),
    }
}

/// NDJSON has no registered type; these are in use, and some clients send none or say only that it is text or bytes.
fn check_media_type(media_type: Option<&mime::Mime>) -> Result<(), Problem> {
    let Some(media_type) = media_type else { return Ok(()) };
    let known = [
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/json-lines",
        "application/octet-stream",
        "text/plain",
    ];
    let is_utf8 = media_type.get_param(mime::CHARSET).is_none_or(|charset| charset == mime::UTF_8);
    if known.contains(&media_type.essence_str()) && is_utf8 {
        return Ok(());
    }
    Err(json::unsupported(media_type, "application/x-ndjson (one JSON object a line, in UTF-8)"))
}

async fn read_lines(lines: &mut Lines, import: &mut Import) -> Result<(), Problem> {
    while let Some((number, line)) = lines.next().await? {
        let text = match line {
            Line::Text(text) if text.trim_ascii().is_empty() => continue,
            Line::Text(text) => text,
            Line::TooLong => {
                import.refuse(number, "line_too_long", &format!("the line is longer than {LINE_BYTES_MAX} bytes"));
                continue;
            }
        };
        match document(text).await {
            Ok(document) => import
                .push(number, from_wire(document))
                .await
                .map_err(|error| Problem::from(error).at(&format!("line {number}")))?,
            Err(problem) => import.refuse(number, problem.code, &problem.detail),
        }
    }
    Ok(())
}

async fn document(text: Bytes) -> Result<NewDocument, Problem> {
    let parsed = json::parse::<NewDocument, Bytes>(text).await;
    // The text is one line; its number is told beside the detail.
    parsed.map_err(|mut problem| {
        problem.detail = problem.detail.replace("line 1, column", "column");
        problem
    })
}

fn report(outcome: ImportOutcome) -> Result<ImportReport, Problem> {
    let failure = |refusal: ImportRefusal| ImportFailure { line: refusal.line, code: refusal.code, detail: refusal.detail };
    // There is no write to name when nothing was accepted.
    let token = if outcome.accepted == 0 { String::new() } else { outcome.token.reveal()? };
    Ok(ImportReport {
        accepted: outcome.accepted,
        failed: outcome.failed.into_iter().map(failure).collect(),
        failed_count: outcome.failed_count,
        token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wrong_lines_name_the_column() {
        let problem = document(Bytes::from_static(br#"{"text": 1}"#)).await.unwrap_err();
        assert_eq!(problem.code, "invalid_type");
        assert!(problem.detail.contains("(column 10)"), "{}", problem.detail);
        assert_eq!(document(Bytes::from_static(b"{")).await.unwrap_err().code, "malformed_json");
        assert_eq!(document(Bytes::from_static(b"\xff")).await.unwrap_err().code, "invalid_utf8");
    }

    #[test]
    fn media_types() {
        let check = |text: &str| check_media_type(Some(&text.parse().unwrap()));
        assert!(check_media_type(None).is_ok());
        assert!(check("application/x-ndjson; charset=utf-8").is_ok());
        assert!(check("text/plain").is_ok());
        assert_eq!(check("application/json").unwrap_err().code, "unsupported_media_type");
    }
}
