//! Ingestion jobs: list, read, retry, cancel.

use crate::api::query::Query;
use crate::api::routes::Answer;
use crate::api::{Call, json};
use ragged_actors::{JobRow, JobStage, Session};
use ragged_client::{DocumentFailure, Job, JobList, Stage};

/// `GET /api/v1/jobs`.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", operation_id = "list_jobs",
    summary = "List jobs", description = "Newest first, a page at a time.",
    params(
        ("limit" = Option<u32>, Query, description = "Jobs on the page. Default 100.", minimum = 1, maximum = 1000),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before.", max_length = 1024),
    ),
    responses((status = 200, description = "A page", body = JobList)))]
pub async fn list(call: Call, session: Session) -> Answer {
    let mut query = Query::parse(&call.query)?;
    let limit = query.number("limit", 1..=1000, 100)?;
    let cursor = query.cursor()?;
    query.end()?;
    let (page, next_cursor) = session.jobs(cursor.as_deref(), limit).await?;
    json::ok(&JobList { jobs: page.into_iter().map(job).collect(), next_cursor })
}

/// `GET /api/v1/jobs/{id}`.
#[utoipa::path(get, path = "/api/v1/jobs/{id}", tag = "jobs", operation_id = "get_job",
    summary = "Read a job", description = "Its stage, its progress, and what went wrong with which document.",
    params(("id" = String, Path, description = "Id of the job", pattern = "^[0-9A-HJKMNP-TV-Z]{26}$", example = "01JDQ8ZK6M3V5W7X9Y0A1B2C3D")),
    responses((status = 200, description = "The job", body = Job)))]
pub async fn get(call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    json::ok(&job(session.job(call.parameter(0)?).await?))
}

/// `POST /api/v1/jobs/{id}/retry`.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/retry", tag = "jobs", operation_id = "retry_job",
    summary = "Retry a job", description = "Ingests its failed documents again. A conflict when it has none, or is still at work.",
    params(("id" = String, Path, description = "Id of the job", pattern = "^[0-9A-HJKMNP-TV-Z]{26}$", example = "01JDQ8ZK6M3V5W7X9Y0A1B2C3D")),
    responses((status = 200, description = "The job, at work again", body = Job)))]
pub async fn retry(call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    json::ok(&job(session.retry_job(call.parameter(0)?).await?))
}

/// `POST /api/v1/jobs/{id}/cancel`.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/cancel", tag = "jobs", operation_id = "cancel_job",
    summary = "Cancel a job", description = "Documents that are stored by then stay. A conflict when it has ended.",
    params(("id" = String, Path, description = "Id of the job", pattern = "^[0-9A-HJKMNP-TV-Z]{26}$", example = "01JDQ8ZK6M3V5W7X9Y0A1B2C3D")),
    responses((status = 200, description = "The job, cancelled", body = Job)))]
pub async fn cancel(call: Call, session: Session) -> Answer {
    Query::parse(&call.query)?.end()?;
    json::ok(&job(session.cancel_job(call.parameter(0)?).await?))
}

fn job(row: JobRow) -> Job {
    let failure = |(id, code, detail)| DocumentFailure { id, code, detail };
    Job {
        id: row.id.to_string(),
        collection: row.collection,
        stage: stage(row.stage),
        documents: row.documents,
        done: row.done,
        failed: row.failed.into_iter().map(failure).collect(),
        created_at_ms: row.created_at_ms,
        updated_at_ms: row.updated_at_ms,
    }
}

fn stage(stage: JobStage) -> Stage {
    match stage {
        JobStage::Received => Stage::Received,
        JobStage::Parsed => Stage::Parsed,
        JobStage::Chunked => Stage::Chunked,
        JobStage::Embedded => Stage::Embedded,
        JobStage::Replicated => Stage::Replicated,
        JobStage::Failed => Stage::Failed,
        JobStage::Cancelled => Stage::Cancelled,
    }
}
