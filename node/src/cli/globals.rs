//! Options that every command has, and the client that they describe.

use crate::cli::bench::Target;
use crate::cli::error::CliError;
use crate::cli::settings;
use clap::Args;
use ragged_client::{Client, RetryPolicy};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The node that commands talk to when none is named.
const ENDPOINT_DEFAULT: &str = "http://127.0.0.1:7400";

/// Options that every command has. No `Debug`: it holds a key.
#[derive(Args)]
pub struct Globals {
    /// Address of a node; give several nodes of a cluster and the next is asked when one does not answer
    ///
    /// Default: http://127.0.0.1:7400.
    #[arg(long = "endpoint", value_name = "URL", env = "RAGGED_URL", value_delimiter = ',', global = true)]
    pub endpoints: Vec<String>,
    /// The API key; better given by RAGGED_KEY or --key-file, since other users of this machine can see arguments
    #[arg(long, value_name = "KEY", env = "RAGGED_KEY", hide_env_values = true, global = true)]
    pub key: Option<String>,
    /// File with the API key
    ///
    /// Default: `admin.key` in the node's data folder, which is only used for nodes on this machine.
    #[arg(long, value_name = "FILE", env = "RAGGED_KEY_FILE", global = true)]
    pub key_file: Option<PathBuf>,
    /// The node's configuration file
    #[arg(long, value_name = "FILE", env = "RAGGED_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// The node's data folder (data_dir)
    #[arg(long, value_name = "FOLDER", global = true)]
    pub data_dir: Option<String>,
    /// Print JSON: one document on one line, or a line each for streams; errors as JSON on standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// Print results only, neither progress nor notes
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Globals {
    /// The client for short calls: fails soon when no node answers.
    pub fn client(&self) -> Result<Client, CliError> {
        self.client_with(RetryPolicy::default())
    }

    /// The client for long work, which a node's restart (half a minute) should not end.
    pub fn patient_client(&self) -> Result<Client, CliError> {
        self.client_with(RetryPolicy {
            attempts: 14,
            backoff_base: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
            ..RetryPolicy::default()
        })
    }

    fn client_with(&self, retry: RetryPolicy) -> Result<Client, CliError> {
        let endpoints = self.endpoints();
        let mut builder = Client::builder().endpoints(endpoints.iter().cloned()).retry(retry);
        if let Some(key) = settings::key(self, &endpoints)? {
            builder = builder.key(key);
        }
        Ok(builder.build()?)
    }

    /// Where searches of a collection are sent to be measured, a target for each node.
    pub fn targets(&self, collection: &str) -> Result<Vec<Arc<Target>>, CliError> {
        let endpoints = self.endpoints();
        let key = settings::key(self, &endpoints)?;
        endpoints.iter().map(|endpoint| Target::new(endpoint, key.as_deref(), collection)).collect()
    }

    /// A client of one node that asks once and needs no key.
    pub fn probe(&self, endpoint: &str) -> Result<Client, CliError> {
        let builder = Client::builder().endpoint(endpoint).retry(RetryPolicy::never()).timeout(Duration::from_secs(5));
        Ok(builder.build()?)
    }

    /// The nodes to talk to; never empty.
    pub fn endpoints(&self) -> Vec<String> {
        endpoints(&self.endpoints)
    }
}

fn endpoints(given: &[String]) -> Vec<String> {
    let named: Vec<String> = given.iter().map(|endpoint| endpoint.trim().to_owned()).filter(|name| !name.is_empty()).collect();
    if named.is_empty() { vec![ENDPOINT_DEFAULT.to_owned()] } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_endpoints_leave_the_default() {
        let given = vec![" http://a ".to_owned(), String::new(), "http://b".to_owned()];
        assert_eq!(endpoints(&given), ["http://a", "http://b"]);
        assert_eq!(endpoints(&[String::new()]), ["http://127.0.0.1:7400"]);
        assert_eq!(endpoints(&[]), ["http://127.0.0.1:7400"]);
    }
}
