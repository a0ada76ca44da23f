//! Carries the groups' messages over the links, and receives the snapshots that others send.

use crate::cluster::links::{Lane, LinkError, Links};
use crate::cluster::pace::Pace;
use crate::cluster::replicas::Replicas;
use crate::cluster::wire::{Answer, Call, Outcome, SnapshotPart};
use crate::error::ServiceError;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use ragged_raft::failpoints::{self, Point};
use ragged_raft::ids::{NodeId, ReplicaId};
use ragged_raft::network::{Destination, PeerError, Transport};
use std::collections::HashMap;
use std::io::{self, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

/// Bytes of a snapshot that are sent at once.
const PART_BYTES: usize = 1 << 20;
/// How long a part may take.
const PART_TIMEOUT: Duration = Duration::from_secs(10);
/// How long installing a snapshot may take.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a transfer is tried again while nothing of it arrives.
const STALLED_MAX: Duration = Duration::from_secs(30);
/// How long a transfer's received part is kept without anything new.
const RECEPTION_KEPT: Duration = Duration::from_secs(120);
/// Snapshots that are received at once.
const RECEPTIONS_MAX: usize = 8;

/// The transport of the groups.
pub struct LinkTransport {
    links: Links,
    pace: Arc<Pace>,
}

impl LinkTransport {
    /// Over these links, with snapshots at this pace.
    pub fn new(links: Links, pace: Pace) -> Arc<Self> {
        Arc::new(LinkTransport { links, pace: Arc::new(pace) })
    }
}

fn failed(destination: Destination) -> impl Fn(String) -> PeerError {
    move |why| PeerError { destination, why }
}

impl Transport for LinkTransport {
    fn ask(&self, to: Destination, request: Vec<u8>, within: Duration) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        let links = self.links.clone();
        async move {
            let call = Call::Raft { replica: to.replica, frame: request };
            match links.call(to.node, Lane::Consensus, &call, within).await {
                Ok(Answer::Raft(frame)) => Ok(frame),
                Ok(_) => Err(failed(to)("it answered another question".into())),
                Err(fault) => Err(failed(to)(fault.to_string())),
            }
        }
        .boxed()
    }

    fn send_file(&self, to: Destination, offer: Vec<u8>, file: PathBuf) -> BoxFuture<'static, Result<Vec<u8>, PeerError>> {
        let (links, pace) = (self.links.clone(), self.pace.clone());
        async move { send_file(&links, &pace, to, offer, file).await.map_err(failed(to)) }.boxed()
    }
}

/// Sends a file part by part. After a lost connection it goes on where the other side says.
async fn send_file(links: &Links, pace: &Pace, to: Destination, offer: Vec<u8>, file: PathBuf) -> Result<Vec<u8>, String> {
    let text = |fault: io::Error| fault.to_string();
    let mut file = tokio::fs::File::open(file).await.map_err(text)?;
    let length = file.metadata().await.map_err(text)?.len();
    let transfer = rand::random();
    let (mut offset, mut progressed) = (0, Instant::now());
    loop {
        let mut bytes = vec![0; PART_BYTES.min((length - offset) as usize)];
        file.seek(SeekFrom::Start(offset)).await.map_err(text)?;
        file.read_exact(&mut bytes).await.map_err(text)?;
        pace.take(bytes.len()).await;
        let next = offset + bytes.len() as u64;
        let last = next == length;
        let part = SnapshotPart { transfer, replica: to.replica, offer: offer.clone(), offset, bytes, last };
        let within = if last { INSTALL_TIMEOUT } else { PART_TIMEOUT };
        match links.call(to.node, Lane::Bulk, &Call::Snapshot(part), within).await {
            Ok(Answer::Raft(frame)) => return Ok(frame),
            Ok(Answer::Received(there)) if there <= length => {
                if there > offset {
                    progressed = Instant::now();
                }
                offset = there;
            }
            Ok(_) => return Err("it answered another question".into()),
            Err(LinkError::Refused(fault)) => return Err(fault.to_string()),
            Err(fault) if progressed.elapsed() > STALLED_MAX => return Err(fault.to_string()),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
        if progressed.elapsed() > STALLED_MAX {
            return Err(format!("nothing arrived for {STALLED_MAX:?}"));
        }
    }
}

/// A snapshot; held while a part of it is written.
type SharedReception = Arc<tokio::sync::Mutex<Reception>>;

/// Snapshots that are being received.
#[derive(Default)]
pub struct Receptions {
    under_way: Mutex<HashMap<(NodeId, u64), SharedReception>>,
}

struct Reception {
    replica: ReplicaId,
    path: PathBuf,
    received: u64,
    touched: Instant,
    /// It has been installed, or given up: what comes late finds nothing to write to.
    ended: bool,
}

impl Receptions {
    /// Takes a part, and installs the snapshot with the last.
    pub async fn receive(&self, from: NodeId, part: SnapshotPart, replicas: &Replicas) -> Outcome {
        let group = replicas.find(part.replica).ok_or_else(|| no_replica(part.replica))?;
        let reception = self.find(from, &part, || group.store().snapshot_folder())?;
        let mut reception = reception.lock().await;
        if reception.ended || reception.replica != part.replica {
            return Err(ServiceError::unavailable("transfer_ended", "the transfer has ended"));
        }
        reception.touched = Instant::now();
        if part.offset != reception.received {
            return Ok(Answer::Received(reception.received));
        }
        write(&reception.path, part.offset, &part.bytes).await.map_err(unwritable)?;
        reception.received += part.bytes.len() as u64;
        if !part.last {
            return Ok(Answer::Received(reception.received));
        }
        reception.ended = true;
        failpoints::hit(Point::SnapshotReceived);
        let installed = group.install(&part.offer, reception.path.clone()).await;
        self.under_way.lock().remove(&(from, part.transfer));
        installed.map(Answer::Raft).map_err(|fault| ServiceError::internal(fault.to_string()))
    }

    fn find(&self, from: NodeId, part: &SnapshotPart, folder: impl FnOnce() -> PathBuf) -> Result<SharedReception, ServiceError> {
        let mut under_way = self.under_way.lock();
        under_way.retain(|_, reception| match reception.try_lock() {
            Ok(reception) if reception.touched.elapsed() > RECEPTION_KEPT => {
                // One that cannot be removed is, when the store is next opened.
                let _ = std::fs::remove_file(&reception.path);
                false
            }
            _ => true,
        });
        if let Some(known) = under_way.get(&(from, part.transfer)) {
            return Ok(known.clone());
        }
        if under_way.len() >= RECEPTIONS_MAX {
            return Err(ServiceError::unavailable(
                "too_many_transfers",
                format!("{RECEPTIONS_MAX} snapshots are being received already"),
            ));
        }
        let path = folder().join(format!("received-{}-{:016x}", from.0, part.transfer));
        let new = Reception { replica: part.replica, path, received: 0, touched: Instant::now(), ended: false };
        let new = Arc::new(tokio::sync::Mutex::new(new));
        under_way.insert((from, part.transfer), new.clone());
        Ok(new)
    }
}

async fn write(path: &PathBuf, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut file = tokio::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    file.write_all(bytes).await?;
    file.flush().await
}

fn unwritable(fault: io::Error) -> ServiceError {
    ServiceError::unavailable("snapshot_unwritable", format!("a snapshot cannot be written: {fault}"))
}

/// The error of a message for a replica that does not live here.
pub fn no_replica(replica: ReplicaId) -> ServiceError {
    ServiceError::unavailable("no_such_replica", format!("{replica} does not run on this node"))
}
