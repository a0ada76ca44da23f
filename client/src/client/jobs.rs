//! Routes of jobs.

use super::call::Call;
use super::{Client, ListOptions};
use crate::error::ClientError;
use crate::job::{Job, JobList};
use reqwest::Method;

impl Client {
    /// A page of the jobs, newest first.
    pub async fn list_jobs(&self, page: ListOptions) -> Result<JobList, ClientError> {
        self.inner.fetch(&Call::read(Method::GET, &["api", "v1", "jobs"]).query(page.into_query())).await
    }

    /// A job.
    pub async fn get_job(&self, id: &str) -> Result<Job, ClientError> {
        self.inner.fetch(&Call::read(Method::GET, &["api", "v1", "jobs", id])).await
    }

    /// Ingests a job's failed documents again. A conflict (409) when it has none or is still at work. Sent once only.
    pub async fn retry_job(&self, id: &str) -> Result<Job, ClientError> {
        self.inner.fetch(&Call::write(Method::POST, &["api", "v1", "jobs", id, "retry"])).await
    }

    /// Stops a job; what it has stored by then stays. A conflict (409) when it has ended. Sent once only.
    pub async fn cancel_job(&self, id: &str) -> Result<Job, ClientError> {
        self.inner.fetch(&Call::write(Method::POST, &["api", "v1", "jobs", id, "cancel"])).await
    }
}
