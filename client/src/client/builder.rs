//! Makes a client and checks its settings.

use super::Client;
use super::key::Key;
use super::retry::RetryPolicy;
use super::tokens::WriteTokens;
use super::transport::Transport;
use crate::error::ClientError;
use reqwest::Url;
use std::sync::Arc;
use std::time::Duration;

/// Waiting longer than this for a connection means that the node is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Idle connections are closed after this; shorter than the idle time that nodes and load balancers allow.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Endpoints of one client at most.
const ENDPOINTS_MAX: usize = 1024;

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    key: Option<Key>,
    timeout: Duration,
    upload_timeout: Duration,
    max_response_bytes: usize,
    retry: RetryPolicy,
    read_your_writes: bool,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        ClientBuilder {
            endpoints: Vec::new(),
            key: None,
            timeout: Duration::from_secs(30),
            upload_timeout: Duration::from_secs(600),
            max_response_bytes: 128 << 20,
            retry: RetryPolicy::default(),
            read_your_writes: true,
        }
    }
}

impl ClientBuilder {
    /// Adds a node's address, such as `http://127.0.0.1:7400`.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// Adds the addresses of nodes of the same cluster.
    pub fn endpoints<E: Into<String>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// The API key that calls carry. Health needs none.
    pub fn key(mut self, key: impl Into<Key>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// How long one attempt of a call may take, from connecting to the last byte of the answer. Default 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same for uploads and imports of documents, which wait until everything is embedded. Default 10 min.
    /// An import from a stream has no limit in time.
    pub fn upload_timeout(mut self, timeout: Duration) -> Self {
        self.upload_timeout = timeout;
        self
    }

    /// Longest answer that is accepted, in bytes. Default 128 MiB.
    pub fn max_response_bytes(mut self, bytes: usize) -> Self {
        self.max_response_bytes = bytes;
        self
    }

    /// How often and after what waits a call is tried again.
    pub fn retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// Whether searches carry the token of this client's last write to the collection. Default true.
    pub fn read_your_writes(mut self, on: bool) -> Self {
        self.read_your_writes = on;
        self
    }

    /// Makes the client. Nothing is connected to yet.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when there is no endpoint, when one is not an `http://` address, or when the key cannot be sent.
    pub fn build(self) -> Result<Client, ClientError> {
        if self.endpoints.is_empty() {
            return Err(ClientError::Invalid("a client needs at least one endpoint, such as http://127.0.0.1:7400".to_owned()));
        }
        if self.endpoints.len() > ENDPOINTS_MAX {
            return Err(ClientError::Invalid(format!("a client takes at most {ENDPOINTS_MAX} endpoints")));
        }
        let endpoints =
            self.endpoints.iter().map(|endpoint| parse_endpoint(endpoint)).collect::<Result<Vec<Url>, ClientError>>()?;
        let authorization = self.key.as_ref().map(Key::bearer).transpose()?;
        // Nodes are asked directly: a proxy meant for the web must not see keys and documents.
        let http = reqwest::Client::builder()
            .no_proxy()
            .user_agent(concat!("ragged-client/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT.min(self.timeout))
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| {
                ClientError::Invalid(format!("the HTTP client cannot be made: {}", super::transport::root_cause(&error)))
            })?;
        let transport = Transport::new(super::transport::Settings {
            http,
            endpoints,
            authorization,
            timeout: self.timeout,
            upload_timeout: self.upload_timeout,
            max_response_bytes: self.max_response_bytes,
            retry: self.retry,
            tokens: self.read_your_writes.then(WriteTokens::default),
        });
        Ok(Client { inner: Arc::new(transport) })
    }
}

/// An endpoint as an address that routes can be appended to.
fn parse_endpoint(endpoint: &str) -> Result<Url, ClientError> {
    let invalid = |what: &str| Err(ClientError::Invalid(format!("{what}; an endpoint looks like http://127.0.0.1:7400")));
    let Ok(mut url) = Url::parse(endpoint) else {
        return invalid(&format!("the endpoint {endpoint:?} is not an address"));
    };
    // What is wrong is said without repeating the address: it may hold a password.
    if !url.username().is_empty() || url.password().is_some() {
        return invalid("an endpoint must not hold a user or a password, the key is given on its own");
    }
    match url.scheme() {
        "http" => {}
        "https" => return invalid("https endpoints are not supported by this version yet, use http"),
        _ => return invalid(&format!("the endpoint {endpoint:?} is not an http:// address")),
    }
    if url.query().is_some() || url.fragment().is_some() {
        return invalid(&format!("the endpoint {endpoint:?} must not have a query or a fragment"));
    }
    // `http://host/prefix/` and `http://host/prefix` are the same; segments are pushed after the last one.
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty();
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(endpoint: &str) -> String {
        Client::builder().endpoint(endpoint).build().expect_err("the endpoint is wrong").to_string()
    }

    #[test]
    fn wrong_endpoints_are_refused_with_the_reason() {
        assert!(refusal("https://example.org").contains("https endpoints are not supported"));
        assert!(refusal("ftp://example.org").contains("not an http:// address"));
        assert!(refusal("example").contains("not an address"));
        assert!(refusal("http://h/?x=1").contains("query"));
        let with_password = refusal("http://me:hunter2@h/");
        assert!(with_password.contains("password") && !with_password.contains("hunter2"), "{with_password}");
        assert!(Client::builder().build().expect_err("no endpoint").to_string().contains("at least one endpoint"));
    }

    #[test]
    fn debug_output_of_builder_and_client_hides_the_key() {
        let builder = Client::builder().endpoint("http://127.0.0.1:1").key("hunter2");
        assert!(!format!("{builder:?}").contains("hunter2"));
        let client = builder.build().expect("the settings are right");
        let shown = format!("{client:?}");
        assert!(shown.contains("127.0.0.1") && !shown.contains("hunter2"), "{shown}");
    }
}
