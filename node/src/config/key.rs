//! The one list of keys.

use figment::value::Value;

/// One key, as it is documented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its path in the file, nested by dots.
    pub path: &'static str,
    /// How its value is written.
    pub kind: Kind,
    /// Its default, in words where it depends on the machine.
    pub default: &'static str,
    /// What its value counts; empty when it counts nothing.
    pub unit: &'static str,
    /// What it decides.
    pub meaning: &'static str,
}

/// How a value is written in a variable or a flag, where everything is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Taken as it is: paths, addresses, sizes, words.
    Text,
    /// Taken as it is, and shown to nobody.
    Secret,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Boolean,
}

impl Key {
    /// The variable that overrides it: its path in capitals, joined with `_`, behind `RAGGED_`.
    pub fn variable(&self) -> String {
        format!("RAGGED_{}", self.path.replace('.', "_").to_uppercase())
    }

    /// The key of a path.
    pub fn find(path: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.path == path)
    }

    /// The key that a variable overrides.
    pub fn of_variable(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.variable() == name)
    }

    /// A value given as text.
    pub fn value(&self, text: &str) -> Result<Value, String> {
        match self.kind {
            Kind::Text | Kind::Secret => Ok(Value::from(text)),
            Kind::Integer => text.trim().parse::<u64>().map(Value::from).map_err(|_| format!("\"{text}\" is not a whole number")),
            Kind::Boolean => {
                text.trim().parse::<bool>().map(Value::from).map_err(|_| format!("\"{text}\" is neither true nor false"))
            }
        }
    }
}

/// Every key that there is.
pub const KEYS: &[Key] = &[
    Key {
        path: "data_dir",
        kind: Kind::Text,
        default: "$XDG_DATA_HOME/ragged/node, or ~/.local/share/ragged/node",
        unit: "",
        meaning: "Folder that holds everything the node keeps, with `admin.key` after the first start. One node at a time uses it.",
    },
    Key {
        path: "model_dir",
        kind: Kind::Text,
        default: "$XDG_DATA_HOME/ragged/models/all-MiniLM-L6-v2, or ~/.local/share/ragged/models/all-MiniLM-L6-v2",
        unit: "",
        meaning: "Folder with the embedding model's files (`model.safetensors`, `tokenizer.json`; `config.json` where the model has one).",
    },
    Key {
        path: "http.listen",
        kind: Kind::Text,
        default: "127.0.0.1:7400",
        unit: "address:port",
        meaning: "Where the API is served. An address that is not loopback is refused unless `http.behind_tls_proxy` is true.",
    },
    Key {
        path: "http.max_body_bytes",
        kind: Kind::Text,
        default: "32 MiB",
        unit: "bytes",
        meaning: "Largest body of a request; imports are unlimited as a whole, a line of one is at most 16 MiB.",
    },
    Key {
        path: "http.max_connections",
        kind: Kind::Integer,
        default: "4096",
        unit: "connections",
        meaning: "Connections at once; further ones are answered 503.",
    },
    Key {
        path: "http.behind_tls_proxy",
        kind: Kind::Boolean,
        default: "false",
        unit: "",
        meaning: "Says that a proxy in front of the node ends TLS: keys would otherwise cross the network in clear text.",
    },
    Key {
        path: "cluster.listen",
        kind: Kind::Text,
        default: "127.0.0.1:7401",
        unit: "address:port",
        meaning: "Where other nodes reach this one, over mutual TLS.",
    },
    Key {
        path: "cluster.advertise",
        kind: Kind::Text,
        default: "as cluster.listen",
        unit: "host:port",
        meaning: "What other nodes dial, when that is not the address that this one listens on.",
    },
    Key {
        path: "cluster.join",
        kind: Kind::Text,
        default: "no address",
        unit: "host:port",
        meaning: "A member's cluster port: the first start joins its cluster instead of founding one. Without effect from then on.",
    },
    Key {
        path: "cluster.token",
        kind: Kind::Secret,
        default: "no token",
        unit: "",
        meaning: "The token that lets the node join, once; `ragged cluster token` makes it.",
    },
    Key {
        path: "cluster.certificate_file",
        kind: Kind::Text,
        default: "the cluster's own",
        unit: "",
        meaning: "The operator's certificate of this node (PEM, with those between it and the authority's), for the host that other nodes dial. All nodes have one, or none has.",
    },
    Key {
        path: "cluster.key_file",
        kind: Kind::Text,
        default: "the cluster's own",
        unit: "",
        meaning: "The private key of that certificate (PEM).",
    },
    Key {
        path: "cluster.authority_file",
        kind: Kind::Text,
        default: "the cluster's own",
        unit: "",
        meaning: "The authority's certificates (PEM). Whoever has a certificate of theirs is trusted as a node: use an authority that certifies nothing else.",
    },
    Key {
        path: "cluster.replication",
        kind: Kind::Integer,
        default: "3",
        unit: "replicas",
        meaning: "Replicas of each shard, as far as there are nodes. The same on all nodes: that of the one which leads the meta group counts.",
    },
    Key {
        path: "cluster.replace_after_ms",
        kind: Kind::Integer,
        default: "300000",
        unit: "milliseconds",
        meaning: "A node that has been gone for so long is replaced, when there are others to take its place.",
    },
    Key {
        path: "cluster.snapshot_bytes_per_second",
        kind: Kind::Text,
        default: "128 MiB",
        unit: "bytes a second",
        meaning: "What this node sends of snapshots at most, to all nodes together: they fill new replicas and those that were away for long.",
    },
    Key {
        path: "cluster.shards",
        kind: Kind::Integer,
        default: "16",
        unit: "shards",
        meaning: "Number of shards, 16 to 256. Used when the cluster is founded, which is the first start; fixed from then on.",
    },
    Key {
        path: "log.format",
        kind: Kind::Text,
        default: "text",
        unit: "",
        meaning: "`text` for people or `json`, one object a line, for machines. Logs go to standard error.",
    },
    Key {
        path: "log.filter",
        kind: Kind::Text,
        default: "info",
        unit: "",
        meaning: "What is logged: a level, or directives such as `info,ragged=debug` (tracing's `EnvFilter`).",
    },
    Key {
        path: "embedding.device",
        kind: Kind::Text,
        default: "auto",
        unit: "",
        meaning: "What embeds: `auto` (all NVIDIA GPUs, the processor where there are none or they cannot be used), `cpu`, `gpu` (all GPUs, or the node does not start) or some of them, as `gpu:0,2`. See docs/gpu.md.",
    },
    Key {
        path: "embedding.precision",
        kind: Kind::Text,
        default: "auto",
        unit: "",
        meaning: "What the processor multiplies when it embeds: `f32`, `bf16` (AMX BF16 or AVX-512 BF16), `int8` (whole numbers in two thirds of the arithmetic, by AVX-512 VNNI, AVX-VNNI or AVX2), or `auto`, the fastest on this processor that finds as well as f32. See docs/performance.md.",
    },
    Key {
        path: "embedding.threads",
        kind: Kind::Integer,
        default: "number of cores",
        unit: "threads",
        meaning: "Threads that the encoder computes with.",
    },
    Key {
        path: "embedding.batch_tokens",
        kind: Kind::Integer,
        default: "4096",
        unit: "tokens",
        meaning: "Tokens of a batch at most: larger ones are faster in all, and a search waits longer behind one. GPUs take at least 49152.",
    },
    Key {
        path: "search.threads",
        kind: Kind::Integer,
        default: "number of cores",
        unit: "threads",
        meaning: "Threads that search and read documents. More than cores make answers later, not more.",
    },
    Key {
        path: "search.gpu_memory_percent",
        kind: Kind::Integer,
        default: "50",
        unit: "percent",
        meaning: "Of the memory that the encoder leaves of each GPU, how much indexed vectors may have that are searched there; 0: the processor searches. See docs/gpu.md.",
    },
    Key {
        path: "memory.budget_bytes",
        kind: Kind::Text,
        default: "half of the memory of the machine or the container, 256 MiB at least",
        unit: "bytes",
        meaning: "What the node keeps its resident memory within, mapped files included. The parts below get theirs of it unless they are set; 0 is the default.",
    },
    Key {
        path: "memory.block_cache_bytes",
        kind: Kind::Text,
        default: "8 to 32 MiB of the budget",
        unit: "bytes",
        meaning: "Memory for blocks of the store that were read before.",
    },
    Key {
        path: "memory.write_buffer_bytes",
        kind: Kind::Text,
        default: "8 to 64 MiB of the budget",
        unit: "bytes",
        meaning: "Memory for what has been written and is in no file of the store yet. Blocks use what of it is free.",
    },
    Key {
        path: "memory.content_cache_bytes",
        kind: Kind::Text,
        default: "1 to 32 MiB of the budget",
        unit: "bytes",
        meaning: "Memory for what hits have shown lately: found again, they need not be read from the store.",
    },
    Key {
        path: "memory.query_cache_bytes",
        kind: Kind::Text,
        default: "1 to 8 MiB of the budget",
        unit: "bytes",
        meaning: "Memory for vectors of queries that were embedded lately, each tenant's apart: asked again, they need not be embedded.",
    },
    Key {
        path: "memory.partitions_bytes",
        kind: Kind::Text,
        default: "about a quarter of the budget",
        unit: "bytes",
        meaning: "Memory for what loaded partitions keep beside their mapped files; those unused for longest are unloaded first.",
    },
    Key {
        path: "memory.text_writer_bytes",
        kind: Kind::Text,
        default: "15 to 32 MiB of the budget",
        unit: "bytes",
        meaning: "Memory of a writer of an index of words; at most three write at once.",
    },
    Key {
        path: "memory.bodies_bytes",
        kind: Kind::Text,
        default: "http.max_body_bytes to 512 MiB of the budget",
        unit: "bytes",
        meaning: "Memory for bodies of requests that are being answered, imports and bodies up to 64 KiB excepted; further ones are answered 503.",
    },
    Key {
        path: "memory.partition_idle_ms",
        kind: Kind::Integer,
        default: "600000",
        unit: "milliseconds",
        meaning: "A partition that nobody used for so long is unloaded.",
    },
    Key {
        path: "limits.in_flight_per_key",
        kind: Kind::Integer,
        default: "256",
        unit: "requests",
        meaning: "Requests of one key at once; further ones are answered 429.",
    },
    Key {
        path: "limits.queued_tokens",
        kind: Kind::Integer,
        default: "4194304",
        unit: "tokens",
        meaning: "Tokens that wait for the encoder at most; uploads beyond that are answered 503 with `retry-after`.",
    },
    Key {
        path: "limits.queued_searches",
        kind: Kind::Integer,
        default: "4096",
        unit: "searches",
        meaning: "Searches that wait for a thread at most; further ones are answered 503 with `retry-after`.",
    },
];
