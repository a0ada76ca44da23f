//! The node's life: configuration, engine, API, signals, and an orderly end.

use crate::api::{Api, server};
use crate::config::Config;
use crate::telemetry;
use anyhow::Context;
use ragged_actors::{CertificateFiles, ClusterOptions, Engine, EngineOptions, Joining, Limits, MemoryLimits, ReconcilerSettings};
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

/// After a signal the process ends within this, whatever happens.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Of [`STOP_TIMEOUT`], what is for requests in flight, and what actors may take at most. In between the engine hands on what it leads, which takes a moment
/// unless the others are gone. When everything takes its longest, the process ends before the store is closed.
const REQUESTS_GRACE: Duration = Duration::from_secs(4);
const ENGINE_GRACE: Duration = Duration::from_secs(3);

/// Threads of the runtime that serves connections and answers health: two, or one for so many cores. They are apart from those that do long work, so that
/// health answers in milliseconds while all of these compute.
const HTTP_THREADS_MIN: usize = 2;
const CORES_PER_HTTP_THREAD: usize = 4;

/// Files that a node may have open: shards, indexes, connections. The usual soft limit of 1,024 is for programs that use `select`.
const OPEN_FILES: u64 = 1 << 20;

/// Refuses processors that the node's C++ parts are not compiled for, before any of them runs.
pub fn check_processor() -> anyhow::Result<()> {
    #[cfg(target_arch = "x86_64")]
    {
        let features = [
            ("avx2", std::is_x86_feature_detected!("avx2")),
            ("bmi1", std::is_x86_feature_detected!("bmi1")),
            ("bmi2", std::is_x86_feature_detected!("bmi2")),
            ("f16c", std::is_x86_feature_detected!("f16c")),
            ("fma", std::is_x86_feature_detected!("fma")),
            ("lzcnt", std::is_x86_feature_detected!("lzcnt")),
            ("movbe", std::is_x86_feature_detected!("movbe")),
            ("pclmulqdq", std::is_x86_feature_detected!("pclmulqdq")),
        ];
        let missing: Vec<&str> = features.iter().filter(|(_, has)| !has).map(|(name, _)| *name).collect();
        anyhow::ensure!(
            missing.is_empty(),
            "this processor is below x86-64-v3, which ragged needs (any x86 server since 2015 has it); it lacks {}",
            missing.join(", ")
        );
    }
    Ok(())
}

/// Runs a node until a signal or a fault ends it. Errors are one line for the operator.
pub async fn serve(config: Config) -> anyhow::Result<()> {
    telemetry::start(&config.log)?;
    #[cfg(any(feature = "mutants", feature = "failpoints"))]
    crate::testing::start()?;
    raise_open_files();
    // Before anything is started, so that an early signal ends an early process in order, too.
    let mut signals = Signals::new().context("cannot listen to signals")?;
    let registry = prometheus::Registry::new();
    let api =
        Api::new(&config.http, config.memory.bodies_bytes.as_usize(), registry.clone()).context("cannot register metrics")?;
    let http = HttpServer::start(&config, Arc::clone(&api))?;
    let began = Instant::now();
    let engine = tokio::select! {
        started = Engine::start(engine_options(&config), registry) => started.map_err(|error| anyhow::anyhow!("{error}"))?,
        () = signals.next() => return Ok(()),
    };
    api.serve_with(engine.clone());
    let took_ms = began.elapsed().as_millis() as u64;
    tracing::info!(took_ms, data_dir = %config.data_dir.display(), "serving on http://{}", config.http.listen);
    let fault = tokio::select! {
        () = signals.next() => None,
        reason = engine.failed() => Some(reason),
    };
    tracing::info!("stopping: finishing what is in flight");
    end_in_any_case(signals);
    api.stopping().cancel();
    if !http.ended().await {
        tracing::warn!("requests were still in flight after {} s, and are cut off", REQUESTS_GRACE.as_secs());
    }
    engine.stop(ENGINE_GRACE).await;
    match fault {
        Some(reason) => anyhow::bail!("the node has failed: {reason}"),
        None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

fn engine_options(config: &Config) -> EngineOptions {
    EngineOptions {
        data_dir: config.data_dir.clone(),
        model_dir: config.model_dir.clone(),
        shards: config.cluster.shards,
        cluster: cluster_options(&config.cluster),
        embedding_device: config.embedding.device.clone(),
        embedding_precision: config.embedding.precision,
        embedding_threads: config.embedding.threads,
        embedding_batch_tokens: config.embedding.batch_tokens,
        search_threads: config.search.threads,
        search_gpu_memory_percent: config.search.gpu_memory_percent,
        memory: memory_limits(&config.memory),
        partition_idle: Duration::from_millis(config.memory.partition_idle_ms),
        limits: Limits {
            in_flight_per_key: config.limits.in_flight_per_key,
            queued_tokens: config.limits.queued_tokens,
            queued_searches: config.limits.queued_searches,
        },
    }
}

fn memory_limits(config: &crate::config::Memory) -> MemoryLimits {
    MemoryLimits {
        budget: config.budget_bytes.as_usize(),
        block_cache: config.block_cache_bytes.as_usize(),
        write_buffers: config.write_buffer_bytes.as_usize(),
        content_cache: config.content_cache_bytes.as_usize(),
        query_cache: config.query_cache_bytes.as_usize(),
        partitions: config.partitions_bytes.as_usize(),
        text_writer: config.text_writer_bytes.as_usize(),
    }
}

fn cluster_options(config: &crate::config::Cluster) -> ClusterOptions {
    let advertise = if config.advertise.is_empty() { config.listen.to_string() } else { config.advertise.clone() };
    let certificates = (!config.certificate_file.as_os_str().is_empty()).then(|| CertificateFiles {
        certificate: config.certificate_file.clone(),
        key: config.key_file.clone(),
        authority: config.authority_file.clone(),
    });
    let joining = (!config.join.is_empty()).then(|| Joining {
        seed: config.join.clone(),
        token: config.token.clone(),
        certificates: certificates.clone(),
    });
    ClusterOptions {
        listen: config.listen,
        advertise,
        joining,
        certificates,
        settings: ReconcilerSettings {
            replication: config.replication,
            replace_after: Duration::from_millis(config.replace_after_ms),
        },
        snapshot_bytes_per_second: config.snapshot_bytes_per_second.as_usize() as u64,
    }
}

/// The façade, on a runtime of its own.
struct HttpServer {
    runtime: Option<tokio::runtime::Runtime>,
    serving: Option<JoinHandle<bool>>,
}

impl HttpServer {
    fn start(config: &Config, api: Arc<Api>) -> anyhow::Result<HttpServer> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(HTTP_THREADS_MIN.max(cores / CORES_PER_HTTP_THREAD))
            .thread_name("http")
            .enable_all()
            .build()
            .context("cannot start the threads that serve connections")?;
        let mut http = HttpServer { runtime: Some(runtime), serving: None };
        if let Some(runtime) = &http.runtime {
            // Sockets belong to the runtime that they are opened in.
            let inside = runtime.enter();
            let listener = open(config.http.listen)?;
            drop(inside);
            let serving = server::serve(listener, api, config.http.max_connections, REQUESTS_GRACE);
            http.serving = Some(runtime.spawn(serving));
        }
        Ok(http)
    }

    /// Whether every request ended by itself.
    async fn ended(mut self) -> bool {
        match self.serving.take() {
            Some(serving) => serving.await.unwrap_or(false),
            None => true,
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        // A runtime may not be dropped where others are awaited, as here; this does not wait for its threads.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn open(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    server::listen(address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow::anyhow!(
                "{address} is in use, perhaps by another node: stop what listens there, or set http.listen to another port"
            )
        }
        io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{address} may not be opened by this user: ports below 1024 need a privilege")
        }
        io::ErrorKind::AddrNotAvailable => anyhow::anyhow!("{address} is not an address of this machine: see http.listen"),
        _ => anyhow::anyhow!("cannot listen on {address}: {error}"),
    })
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Ends the process at once. The C++ libraries' global destructors are left out: a thread that is still in one of them, as with a read that nobody
/// waits for any more, would find locks that are gone, and abort.
pub fn end(code: i32) -> ! {
    let _ = io::Write::flush(&mut io::stdout()); // whoever read it may have gone
    // SAFETY: ends the process; nothing of it is used afterwards.
    unsafe { libc::_exit(code) }
}

/// Ends the process when stopping in order takes too long, or when a second signal says that nobody wants to wait.
fn end_in_any_case(mut signals: Signals) {
    // A thread of its own: what it guards against is that the runtime's threads are stuck.
    std::thread::spawn(|| {
        std::thread::sleep(STOP_TIMEOUT - Duration::from_millis(200));
        tracing::error!("stopping in order took too long: ending now; what was acknowledged is durable");
        end(1);
    });
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("second signal: ending now; what was acknowledged is durable");
        end(130);
    });
}

/// Raises the soft limit on open files towards [`OPEN_FILES`], as far as the hard limit allows.
fn raise_open_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes to, or reads from, the struct that lives across the call.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            let wanted = limit.rlim_max.min(OPEN_FILES);
            if limit.rlim_cur < wanted {
                limit.rlim_cur = wanted;
                // Without it the node still runs, with fewer connections.
                libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
            }
        }
    }
}
