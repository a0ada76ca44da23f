//! The node's settings: one TOML file, overridden by `RAGGED_*` variables, overridden by flags.
//!
//! [`KEYS`] is the one list of keys: it says what may be set, which variable overrides it, what `ragged config` prints and what
//! `docs/configuration.md` must contain.

pub mod byte_size;
pub mod error;
pub mod key;
mod machine;
pub mod memory;
mod providers;
pub mod sources;

pub use byte_size::ByteSize;
pub use error::ConfigError;
pub use key::{KEYS, Key, Kind};
pub use memory::Memory;
pub use sources::{OTHER_VARIABLES, Sources};

use byte_size::{GIB, KIB, MIB};
use figment::providers::Serialized;
use figment::{Figment, Metadata};
use providers::{FileValues, SingleValue};
use ragged_actors::embedding::{DeviceChoice, PrecisionChoice};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a node is told by its operator. Every field has a default that works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder that holds everything the node keeps.
    pub data_dir: PathBuf,
    /// Folder with the embedding model's files.
    pub model_dir: PathBuf,
    /// The API.
    pub http: Http,
    /// The cluster.
    pub cluster: Cluster,
    /// Logs.
    pub log: Log,
    /// Embedding of texts.
    pub embedding: Embedding,
    /// Searches.
    pub search: Search,
    /// Budgets of memory.
    pub memory: Memory,
    /// What is refused rather than queued.
    pub limits: Limits,
}

/// Settings of the API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Address that the API is served on.
    pub listen: SocketAddr,
    /// Largest body of a request, imports excepted.
    pub max_body_bytes: ByteSize,
    /// Connections at once.
    pub max_connections: usize,
    /// Says that a proxy in front of the node ends TLS, which allows a public address.
    pub behind_tls_proxy: bool,
}

/// Settings of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Address for other nodes.
    pub listen: SocketAddr,
    /// `HOST:PORT` that other nodes reach this one at; empty for that of `listen`.
    pub advertise: String,
    /// `HOST:PORT` of a member's cluster port, to join its cluster; empty to found one.
    pub join: String,
    /// The token that lets this node join.
    pub token: String,
    /// The operator's certificate of this node, as a PEM file; empty for the cluster's own.
    pub certificate_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
    /// Certificates of the authority that all nodes' are of.
    pub authority_file: PathBuf,
    /// Replicas of each shard, when there are as many nodes.
    pub replication: usize,
    /// A node that has been gone for so long is replaced.
    pub replace_after_ms: u64,
    /// Bytes of snapshots that the node sends in a second at most.
    pub snapshot_bytes_per_second: ByteSize,
    /// Number of shards; used when the cluster is founded, fixed from then on.
    pub shards: u16,
}

/// Settings of logs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// What is logged, in the syntax of tracing's `EnvFilter`.
    pub filter: String,
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings of embedding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// Devices that embed.
    pub device: DeviceChoice,
    /// What the processor multiplies.
    pub precision: PrecisionChoice,
    /// Threads of the encoder.
    pub threads: usize,
    /// Tokens of a batch at most.
    pub batch_tokens: usize,
}

/// Settings of searches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// Threads that search indexes.
    pub threads: usize,
    /// Of what the encoder leaves of a GPU's memory, how many of a hundred bytes rows may have.
    pub gpu_memory_percent: u8,
}

/// What is refused rather than queued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests of one key at once.
    pub in_flight_per_key: usize,
    /// Tokens that wait for the encoder.
    pub queued_tokens: usize,
    /// Searches that wait for a thread.
    pub queued_searches: usize,
}

/// A configuration, and where each of its values came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// By key: `default`, the file, the variable or the flag.
    pub origins: BTreeMap<&'static str, String>,
}

impl Config {
    /// Reads file, variables and flags, and checks what they say.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
        let mut figment = Figment::from(Serialized::defaults(defaults(sources)?));
        if let Some(path) = sources.file() {
            figment = figment.merge(FileValues::read(path)?);
        }
        for (name, text) in &sources.variables {
            if !name.starts_with("RAGGED_") || OTHER_VARIABLES.iter().any(|(other, _)| other == name) {
                continue;
            }
            let key = Key::of_variable(name).ok_or_else(|| ConfigError::UnknownVariable(name.clone()))?;
            figment = figment.merge(SingleValue::parse(key, text, format!("variable {name}"))?);
        }
        for (path, text) in &sources.flags {
            let unknown = || ConfigError::Value {
                key: (*path).to_string(),
                detail: "there is no such key".to_string(),
                origin: "flag".to_string(),
            };
            let key = Key::find(path).ok_or_else(unknown)?;
            figment = figment.merge(SingleValue::parse(key, text, "flag".to_string())?);
        }
        let mut config: Config = figment.extract().map_err(value_error)?;
        config.check()?;
        config.memory.give_out(machine::memory_bytes(), config.http.max_body_bytes)?;
        let origin = |key: &Key| figment.find_metadata(key.path).map_or_else(|| "default".to_string(), origin_name);
        let origins = KEYS.iter().map(|key| (key.path, origin(key))).collect();
        Ok(Loaded { config, origins })
    }

    /// The table of every key, with variable, default, unit and meaning.
    pub fn describe() -> &'static [Key] {
        KEYS
    }

    /// The value of a key, as it would be written.
    pub fn value(&self, path: &str) -> Option<String> {
        let pointer = format!("/{}", path.replace('.', "/"));
        let tree = serde_json::to_value(self).ok()?;
        let value = tree.pointer(&pointer)?;
        let counts_bytes = Key::find(path).is_some_and(|key| key.unit.starts_with("bytes"));
        let number_of_bytes = value.as_u64().filter(|_| counts_bytes);
        Some(match (number_of_bytes, value) {
            (Some(bytes), _) => ByteSize(bytes).to_string(),
            (None, serde_json::Value::String(text)) => text.clone(),
            (None, other) => other.to_string(),
        })
    }

    fn check(&self) -> Result<(), ConfigError> {
        fn within<T: PartialOrd + fmt::Display>(
            key: &'static str,
            value: T,
            range: std::ops::RangeInclusive<T>,
            expected: &'static str,
        ) -> Result<(), ConfigError> {
            if range.contains(&value) {
                return Ok(());
            }
            Err(ConfigError::Range { key, value: value.to_string(), expected })
        }
        let threads = "1 to 1024";
        within("http.max_body_bytes", self.http.max_body_bytes, ByteSize(KIB)..=ByteSize(GIB), "1 KiB to 1 GiB")?;
        within("http.max_connections", self.http.max_connections, 1..=1_000_000, "1 to 1000000")?;
        within("cluster.shards", self.cluster.shards, 16..=256, "16 to 256")?;
        within("cluster.replication", self.cluster.replication, 1..=7, "1 to 7")?;
        within("cluster.replace_after_ms", self.cluster.replace_after_ms, 1_000..=604_800_000, "1000 to 604800000 (a week)")?;
        let rate = ByteSize(64 * KIB)..=ByteSize(1 << 40);
        within("cluster.snapshot_bytes_per_second", self.cluster.snapshot_bytes_per_second, rate, "64 KiB to 1024 GiB")?;
        within("embedding.threads", self.embedding.threads, 1..=1024, threads)?;
        within("embedding.batch_tokens", self.embedding.batch_tokens, 512..=1 << 20, "512 to 1048576")?;
        within("search.threads", self.search.threads, 1..=1024, threads)?;
        within("search.gpu_memory_percent", self.search.gpu_memory_percent, 0..=90, "0 to 90")?;
        self.memory.check()?;
        within("memory.partition_idle_ms", self.memory.partition_idle_ms, 1_000..=604_800_000, "1000 to 604800000 (a week)")?;
        within("limits.in_flight_per_key", self.limits.in_flight_per_key, 1..=1_000_000, "1 to 1000000")?;
        within("limits.queued_tokens", self.limits.queued_tokens, 1 << 16..=1 << 32, "65536 to 4294967296")?;
        within("limits.queued_searches", self.limits.queued_searches, 1..=1_000_000, "1 to 1000000")?;
        if self.data_dir.as_os_str().is_empty() {
            return Err(ConfigError::Range { key: "data_dir", value: "empty".to_string(), expected: "a folder" });
        }
        let files = [&self.cluster.certificate_file, &self.cluster.key_file, &self.cluster.authority_file];
        let given = files.iter().filter(|file| !file.as_os_str().is_empty()).count();
        if !matches!(given, 0 | 3) {
            return Err(ConfigError::Range {
                key: "cluster.certificate_file",
                value: format!("one of {given} files"),
                expected: "given together with cluster.key_file and cluster.authority_file, or none of the three",
            });
        }
        if !self.http.listen.ip().is_loopback() && !self.http.behind_tls_proxy {
            return Err(ConfigError::PublicWithoutTls(self.http.listen));
        }
        Ok(())
    }
}

fn defaults(sources: &Sources) -> Result<Config, ConfigError> {
    // Only when a folder is not given elsewhere is a home needed; an empty default is caught by that folder's check.
    let home = sources.data_home();
    let is_given = |key: &'static str| {
        let variable = Key::find(key).map(Key::variable).unwrap_or_default();
        sources.variable(&variable).is_some() || sources.flags.iter().any(|(path, _)| *path == key) || sources.file().is_some()
    };
    let folder = |key: &'static str, name: &str| match &home {
        Some(home) => Ok(home.join(name)),
        None if is_given(key) => Ok(PathBuf::new()),
        None => Err(ConfigError::NoHome(key)),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Config {
        data_dir: folder("data_dir", "node")?,
        model_dir: folder("model_dir", "models/all-MiniLM-L6-v2")?,
        http: Http {
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            max_body_bytes: ByteSize(32 * MIB),
            max_connections: 4096,
            behind_tls_proxy: false,
        },
        cluster: Cluster {
            listen: SocketAddr::from(([127, 0, 0, 1], 7401)),
            advertise: String::new(),
            join: String::new(),
            token: String::new(),
            certificate_file: PathBuf::new(),
            key_file: PathBuf::new(),
            authority_file: PathBuf::new(),
            replication: 3,
            replace_after_ms: 300_000,
            snapshot_bytes_per_second: ByteSize(128 * MIB),
            shards: 16,
        },
        log: Log { format: LogFormat::Text, filter: "info".to_string() },
        embedding: Embedding { device: DeviceChoice::Auto, precision: PrecisionChoice::Auto, threads: cores, batch_tokens: 4096 },
        search: Search { threads: cores, gpu_memory_percent: 50 },
        memory: Memory::unset(),
        limits: Limits { in_flight_per_key: 256, queued_tokens: 4 << 20, queued_searches: 4096 },
    })
}

fn origin_name(metadata: &Metadata) -> String {
    // Serialized defaults are named after their Rust type, which says nothing to an operator.
    if metadata.name.contains("::") || metadata.name.contains('`') { "default".to_string() } else { metadata.name.to_string() }
}

fn value_error(error: figment::Error) -> ConfigError {
    let origin = error.metadata.as_ref().map_or_else(|| "default".to_string(), origin_name);
    ConfigError::Value { key: error.path.join("."), detail: error.kind.to_string(), origin }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn sources(variables: &[(&str, &str)]) -> Sources {
        let mut all = vec![("HOME".to_string(), "/home/ada".to_string())];
        all.extend(variables.iter().map(|(name, value)| (name.to_string(), value.to_string())));
        Sources { file: None, variables: all, flags: Vec::new() }
    }

    fn with_file(text: &str, variables: &[(&str, &str)]) -> (tempfile::TempDir, Sources) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        std::fs::write(&path, text).unwrap();
        let mut sources = sources(variables);
        sources.file = Some(path);
        (folder, sources)
    }

    fn refusal(sources: &Sources) -> String {
        Config::load(sources).unwrap_err().to_string()
    }

    #[test]
    fn everything_has_a_default() {
        let loaded = Config::load(&sources(&[])).unwrap();
        assert_eq!(loaded.config.data_dir, Path::new("/home/ada/.local/share/ragged/node"));
        assert_eq!(loaded.config.model_dir, Path::new("/home/ada/.local/share/ragged/models/all-MiniLM-L6-v2"));
        assert_eq!(loaded.config.http.listen.to_string(), "127.0.0.1:7400");
        assert!(loaded.origins.values().all(|origin| origin == "default"), "{:?}", loaded.origins);
    }

    #[test]
    fn documented_defaults_are_the_real_ones() {
        let config = Config::load(&sources(&[])).unwrap().config;
        for key in KEYS {
            let value = config.value(key.path).unwrap_or_else(|| panic!("{} has no value", key.path));
            let depends_on_machine = key.default.contains(' ') && !key.default.ends_with("iB");
            if !depends_on_machine {
                assert_eq!(value, key.default, "{}", key.path);
            }
        }
    }

    #[test]
    fn every_field_is_a_documented_key() {
        fn leaves(value: &serde_json::Value, prefix: &str, found: &mut Vec<String>) {
            match value.as_object() {
                Some(object) => object.iter().for_each(|(name, inner)| leaves(inner, &format!("{prefix}.{name}"), found)),
                None => found.push(prefix.trim_start_matches('.').to_string()),
            }
        }
        let config = Config::load(&sources(&[])).unwrap().config;
        let mut found = Vec::new();
        leaves(&serde_json::to_value(&config).unwrap(), "", &mut found);
        found.sort();
        let mut documented: Vec<String> = KEYS.iter().map(|key| key.path.to_string()).collect();
        documented.sort();
        assert_eq!(found, documented);
    }

    #[test]
    fn variables_are_unambiguous() {
        let mut variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
        variables.extend(OTHER_VARIABLES.iter().map(|(name, _)| name.to_string()));
        let count = variables.len();
        variables.sort();
        variables.dedup();
        assert_eq!(variables.len(), count);
        assert_eq!(Key::of_variable("RAGGED_DATA_DIR").unwrap().path, "data_dir");
        assert_eq!(Key::of_variable("RAGGED_HTTP_MAX_BODY_BYTES").unwrap().path, "http.max_body_bytes");
    }

    #[test]
    fn flags_override_variables_override_the_file() {
        let text = "data_dir = \"/a\"\n[http]\nlisten = \"127.0.0.1:1\"\nmax_connections = 7\n[cluster]\nshards = 32\n";
        let (_folder, mut sources) = with_file(text, &[("RAGGED_HTTP_LISTEN", "127.0.0.1:2"), ("RAGGED_DATA_DIR", "/b")]);
        sources.flags.push(("data_dir", "/c".to_string()));
        let loaded = Config::load(&sources).unwrap();
        assert_eq!(loaded.config.data_dir, Path::new("/c"));
        assert_eq!(loaded.config.http.listen.port(), 2);
        assert_eq!(loaded.config.http.max_connections, 7);
        assert_eq!(loaded.config.cluster.shards, 32);
        assert_eq!(loaded.origins["data_dir"], "flag");
        assert_eq!(loaded.origins["http.listen"], "variable RAGGED_HTTP_LISTEN");
        assert!(loaded.origins["cluster.shards"].starts_with("file "));
    }

    #[test]
    fn a_path_of_digits_stays_a_path() {
        let config = Config::load(&sources(&[("RAGGED_DATA_DIR", "123")])).unwrap().config;
        assert_eq!(config.data_dir, Path::new("123"));
    }

    #[test]
    fn sizes_have_units() {
        let (_folder, sources) = with_file(
            "[http]\nmax_body_bytes = \"8 MiB\"\n[memory]\nblock_cache_bytes = 16777216\n",
            &[("RAGGED_MEMORY_PARTITIONS_BYTES", "2GiB")],
        );
        let config = Config::load(&sources).unwrap().config;
        assert_eq!(config.http.max_body_bytes, ByteSize(8 * MIB));
        assert_eq!(config.memory.block_cache_bytes, ByteSize(16 * MIB));
        assert_eq!(config.memory.partitions_bytes, ByteSize(2 * GIB));
        assert!(config.memory.budget_bytes >= ByteSize(2 * GIB));
    }

    #[test]
    fn memory_that_does_not_add_up_is_refused() {
        let budget = ("RAGGED_MEMORY_BUDGET_BYTES", "256 MiB");
        let config = Config::load(&sources(&[budget])).unwrap().config;
        assert_eq!(config.memory.budget_bytes, ByteSize(256 * MIB));
        let line = refusal(&sources(&[budget, ("RAGGED_MEMORY_PARTITIONS_BYTES", "1GiB")]));
        assert!(line.contains("memory.budget_bytes is 256 MiB") && line.contains("memory.partitions_bytes = 1 GiB"), "{line}");
        let line = refusal(&sources(&[("RAGGED_MEMORY_BODIES_BYTES", "1MiB")]));
        assert!(line.contains("memory.bodies_bytes is 1 MiB") && line.contains("http.max_body_bytes is 32 MiB"), "{line}");
        assert!(refusal(&sources(&[("RAGGED_MEMORY_TEXT_WRITER_BYTES", "1MiB")])).contains("15 MiB"));
        assert!(Config::load(&sources(&[("RAGGED_MEMORY_BUDGET_BYTES", "0")])).is_ok());
    }

    #[test]
    fn unknown_keys_are_named() {
        for (text, key) in [("dta_dir = \"x\"", "dta_dir"), ("[http]\nlsten = 1", "http.lsten"), ("[htp]\nlisten = 1", "htp")] {
            let (_folder, sources) = with_file(text, &[]);
            assert!(refusal(&sources).contains(&format!("unknown key \"{key}\"")), "{}", refusal(&sources));
        }
        assert!(refusal(&sources(&[("RAGGED_HTP_LISTEN", "x")])).contains("RAGGED_HTP_LISTEN"));
        assert!(Config::load(&sources(&[("RAGGED_URL", "x"), ("RAGGEDY", "x")])).is_ok());
    }

    #[test]
    fn wrong_values_name_key_and_origin() {
        let (_folder, in_file) = with_file("[cluster]\nshards = \"many\"\n", &[]);
        let line = refusal(&in_file);
        assert!(line.contains("cluster.shards") && line.contains("node.toml"), "{line}");
        let (_folder, section_missing) = with_file("http = 3\n", &[]);
        assert!(refusal(&section_missing).contains("http"));
        let (_folder, not_toml) = with_file("a = \n", &[]);
        assert!(refusal(&not_toml).contains("line 1"), "{}", refusal(&not_toml));
        let line = refusal(&sources(&[("RAGGED_CLUSTER_SHARDS", "-1")]));
        assert!(line.contains("cluster.shards") && line.contains("RAGGED_CLUSTER_SHARDS"), "{line}");
        assert!(refusal(&sources(&[("RAGGED_CLUSTER_SHARDS", "8")])).contains("16 to 256"));
        assert!(refusal(&sources(&[("RAGGED_HTTP_LISTEN", "localhost")])).contains("http.listen"));
        assert!(refusal(&sources(&[("RAGGED_LOG_FORMAT", "xml")])).contains("log.format"));
    }

    #[test]
    fn a_file_that_was_named_must_exist() {
        assert!(refusal(&sources(&[("RAGGED_CONFIG", "/no/such/file.toml")])).contains("/no/such/file.toml"));
    }

    #[test]
    fn a_public_address_needs_a_tls_proxy() {
        let public = ("RAGGED_HTTP_LISTEN", "0.0.0.0:7400");
        assert!(refusal(&sources(&[public])).contains("http.behind_tls_proxy"));
        assert!(Config::load(&sources(&[public, ("RAGGED_HTTP_BEHIND_TLS_PROXY", "true")])).is_ok());
        assert!(Config::load(&sources(&[("RAGGED_HTTP_LISTEN", "[::1]:7400")])).is_ok());
    }

    #[test]
    fn without_a_home_the_folders_must_be_given() {
        let mut homeless = Sources::default();
        assert!(refusal(&homeless).contains("data_dir"));
        homeless.variables.push(("RAGGED_DATA_DIR".to_string(), "/data".to_string()));
        homeless.variables.push(("RAGGED_MODEL_DIR".to_string(), "/model".to_string()));
        assert!(Config::load(&homeless).is_ok());
    }
}
