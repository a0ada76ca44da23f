//! Why a configuration is refused.

use crate::config::byte_size::ByteSize;
use crate::config::key::KEYS;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why a configuration is refused. Each is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {detail}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        detail: String,
    },
    /// The file has a key that there is none of.
    #[error("{}: unknown key \"{key}\"; known are: {}", path.display(), known_keys())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// The environment has a variable that no key belongs to.
    #[error("unknown variable {0}; `ragged config` lists the variables that there are")]
    UnknownVariable(String),
    /// A variable or a flag is not text.
    #[error("variable {0} is not valid UTF-8")]
    VariableNotText(String),
    /// A value has the wrong type or form.
    #[error("{key}: {detail} ({origin})")]
    Value {
        /// The key.
        key: String,
        /// What is wrong with it.
        detail: String,
        /// Where the value came from.
        origin: String,
    },
    /// A value is outside of its range.
    #[error("{key} is {value}, but must be {expected}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
    /// The budget of memory is less than what is given out of it.
    #[error(
        "memory.budget_bytes is {budget}, but the node needs {needed}: {idle} while it is idle{set}, and the least that the other parts can do with; \
         raise it, or lower what is set"
    )]
    SmallBudget {
        /// The budget.
        budget: ByteSize,
        /// What it must be at least.
        needed: ByteSize,
        /// What the node needs before it holds anything.
        idle: ByteSize,
        /// The parts that are set, in words.
        set: String,
    },
    /// A body that is allowed would never fit.
    #[error(
        "memory.bodies_bytes is {room}, but http.max_body_bytes is {body}: such a body would never be let in; raise the one, or lower the other"
    )]
    NoRoomForBody {
        /// What all bodies may have.
        room: ByteSize,
        /// What one may have.
        body: ByteSize,
    },
    /// The API would be public without protection.
    #[error(
        "http.listen is {0}, which other machines can reach, and keys would cross the network in clear text: listen on 127.0.0.1 \
         behind a proxy that ends TLS, or, when such a proxy runs on another machine, set http.behind_tls_proxy = true"
    )]
    PublicWithoutTls(SocketAddr),
    /// There is no home folder to put the defaults in.
    #[error("there is neither XDG_DATA_HOME nor HOME in the environment: set {0}")]
    NoHome(&'static str),
}

fn known_keys() -> String {
    KEYS.iter().map(|key| key.path).collect::<Vec<_>>().join(", ")
}
