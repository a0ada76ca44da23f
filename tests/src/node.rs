//! A node under test.

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a node may take to be ready, on a machine that runs other tests beside.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// A node of the real binary, killed when dropped.
pub struct Node {
    child: Child,
    listen: String,
    /// Address of the port for other nodes.
    cluster_listen: String,
    /// Settings that it is started with every time.
    settings: Vec<(String, String)>,
    /// The admin key, when it is not in the node's own folder.
    lent_key: Option<String>,
    folder: Folder,
    http: reqwest::Client,
}

enum Folder {
    Own(TempDir),
    Lent(PathBuf),
}

/// What a request was answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers, by their lower-case names.
    pub headers: Vec<(String, String)>,
    /// The body as JSON, or as a string when it is none.
    pub body: Value,
}

impl Answer {
    /// The stable code of a problem.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// The body of an answer that must have this status.
    pub fn expect(self, status: u16) -> Result<Value> {
        ensure!(self.status == status, "expected {status}, got {}: {}", self.status, self.body);
        Ok(self.body)
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The binary, beside the test programs in the target folder. It is built here, once, since cargo does not build another package's binary
/// for a test.
pub fn ragged() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--release", "--quiet", "-p", "ragged"])
            .current_dir(package_dir().join(".."))
            .status();
        assert!(built.as_ref().is_ok_and(ExitStatus::success), "the binary does not build: {built:?}");
        let test = std::env::current_exe().expect("a running test has a path");
        let target = test.ancestors().nth(2).expect("test programs are in target/release/deps");
        target.join("ragged")
    })
}

/// Folder of this package, as cargo says when it runs the test: clones share a target folder, so what was compiled in may be another clone's.
pub(crate) fn package_dir() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Folder of the embedding model.
pub fn model_dir() -> PathBuf {
    if let Some(folder) = std::env::var_os("RAGGED_MODEL_DIR") {
        return folder.into();
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from);
    let data = data.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".local/share"));
    data.join("ragged/models/all-MiniLM-L6-v2")
}

/// Ports that nodes get: none that the system gives to whoever asks for any, nor those of the scripts.
const PORTS: Range<u16> = 10_000..17_000;

/// An address that nobody has, and that no other node of this process gets, even while its own is not running.
fn free_address() -> Result<String> {
    static TAKEN: AtomicUsize = AtomicUsize::new(0);
    // Other test programs may run beside this one: they begin elsewhere.
    let first = std::process::id() as usize * 101;
    for _ in PORTS {
        let port = PORTS.start + ((first + TAKEN.fetch_add(1, Ordering::Relaxed)) % PORTS.len()) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(format!("127.0.0.1:{port}"));
        }
    }
    bail!("no port of {PORTS:?} is free")
}

impl Node {
    /// A new cluster of one.
    pub async fn start() -> Result<Node> {
        Node::start_with(&[]).await
    }

    /// A new cluster of one with settings, as pairs of `RAGGED_*` variables and their values.
    pub async fn start_with(settings: &[(&str, &str)]) -> Result<Node> {
        let folder = tempfile::tempdir()?;
        Node::launch(Folder::Own(folder), settings).await
    }

    /// A node over a folder that outlives it.
    pub async fn start_in(folder: &Path) -> Result<Node> {
        Node::launch(Folder::Lent(folder.to_owned()), &[]).await
    }

    async fn launch(folder: Folder, settings: &[(&str, &str)]) -> Result<Node> {
        let (listen, cluster_listen) = (free_address()?, free_address()?);
        let path = match &folder {
            Folder::Own(folder) => folder.path().to_owned(),
            Folder::Lent(folder) => folder.clone(),
        };
        let child = command(&path, &listen, &cluster_listen)
            .envs(settings.iter().copied())
            .spawn()
            .context("the binary does not start")?;
        let http = reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build()?;
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut node = Node { child, listen, cluster_listen, settings, lent_key: None, folder, http };
        node.wait_until_ready().await?;
        Ok(node)
    }

    /// A new node of this one's cluster.
    pub async fn start_beside(&self, settings: &[(&str, &str)]) -> Result<Node> {
        let token = self.post("/cluster/tokens", &serde_json::json!({})).await?.expect(201)?;
        let token = token["token"].as_str().context("a token is text")?;
        let joining = [("RAGGED_CLUSTER_JOIN", self.cluster_listen.as_str()), ("RAGGED_CLUSTER_TOKEN", token)];
        let mut node = Node::start_with(&[&joining, settings].concat()).await?;
        node.lent_key = Some(self.key()?);
        Ok(node)
    }

    /// Kills the node without warning and starts it again over the same folder. Returns how long it took to be ready.
    pub async fn kill_and_restart(&mut self) -> Result<Duration> {
        self.kill()?;
        self.restart().await
    }

    /// Ends the node at once, as a power cut of the process.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts the node again over the same folder.
    pub async fn restart(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let mut command = command(self.data_dir(), &self.listen, &self.cluster_listen);
        self.child = command.envs(self.settings.iter().map(|(name, value)| (name, value))).spawn()?;
        self.wait_until_ready().await?;
        Ok(begun.elapsed())
    }

    /// Sends a signal to the node.
    pub fn signal(&self, signal: i32) -> Result<()> {
        // SAFETY: kill(2) takes plain numbers; the process is our own child, which has not been waited for.
        let sent = unsafe { libc::kill(self.child.id() as i32, signal) };
        ensure!(sent == 0, "the signal could not be sent");
        Ok(())
    }

    /// Waits until the node has ended by itself.
    pub async fn wait_for_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "the node has not ended within {limit:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the node ended before it was ready: {status}");
            }
            if let Ok(answer) = self.http.get(self.url("/readyz")).send().await
                && answer.status() == 200
            {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the node is not ready after {READY_TIMEOUT:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The node's data folder.
    pub fn data_dir(&self) -> &Path {
        match &self.folder {
            Folder::Own(folder) => folder.path(),
            Folder::Lent(folder) => folder,
        }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Address that it listens on.
    pub fn listen(&self) -> &str {
        &self.listen
    }

    /// A URL on the node.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    /// Address of its port for other nodes.
    pub fn cluster_listen(&self) -> &str {
        &self.cluster_listen
    }

    /// The admin key of its cluster.
    pub fn key(&self) -> Result<String> {
        if let Some(key) = &self.lent_key {
            return Ok(key.clone());
        }
        Ok(std::fs::read_to_string(self.data_dir().join("admin.key"))?.trim().to_owned())
    }

    /// A request to `/api/v1` with the admin key, to be changed before it is sent.
    pub fn request(&self, method: Method, path: &str) -> Result<reqwest::RequestBuilder> {
        Ok(self.http.request(method, self.url(&format!("/api/v1{path}"))).bearer_auth(self.key()?))
    }

    /// Sends a request and reads its answer.
    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer> {
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let header = |(name, value): (&reqwest::header::HeaderName, &reqwest::header::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap_or_default().to_owned())
        };
        let headers = answer.headers().iter().map(header).collect();
        let text = answer.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, headers, body })
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::GET, path)?).await
    }

    /// POST with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(self.request(Method::POST, path)?.json(body)).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::DELETE, path)?).await
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// The binary without the settings of whoever runs the tests: a node refuses `RAGGED_*` variables that it does not know.
pub fn program() -> Command {
    let mut command = Command::new(ragged());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("RAGGED_")) {
        command.env_remove(name);
    }
    command
}

fn command(folder: &Path, listen: &str, cluster_listen: &str) -> Command {
    let mut command = program();
    command
        .arg("serve")
        .env("RAGGED_DATA_DIR", folder)
        .env("RAGGED_MODEL_DIR", model_dir())
        .env("RAGGED_HTTP_LISTEN", listen)
        .env("RAGGED_CLUSTER_LISTEN", cluster_listen)
        .env("RAGGED_LOG_FILTER", std::env::var("RAGGED_TEST_LOG").unwrap_or_else(|_| "warn".into()))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}
