//! What is broken, how it is seen that it is, and how it is mended: each kind of fault has a file.

mod disk;
mod membership;
mod network;
mod process;
mod rot;

use crate::clock;
use crate::cluster::Cluster;
use crate::disk::missing_for_images;
use crate::network::{Network, Rule};
use crate::throttle::{self, Throttle};
use anyhow::Result;
use clap::ValueEnum;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::Serialize;
use std::net::TcpStream;
use std::time::Duration;

/// How long a node may take to say who leads.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// A class of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A node's process is killed, and started again later.
    Kill,
    /// The process of the node that leads the most shards is killed.
    KillLeader,
    /// The process of a node that leads the fewest shards is killed.
    KillFollower,
    /// As many processes are killed as the cluster can do without.
    KillMinority,
    /// All processes are killed.
    KillAll,
    /// A node is stopped in order, and started again later.
    Stop,
    /// One node after the other is stopped in order and started again.
    RollingRestart,
    /// A node's process stands still for some seconds.
    Pause,
    /// A node's process stands still for up to a minute.
    LongPause,
    /// A node may open no more files and connections.
    Descriptors,
    /// A node's clock jumps, ahead or back by up to ten hours, and jumps to the right time later.
    ClockJump,
    /// A node is cut off from all others.
    Isolate,
    /// The nodes are cut into two parts.
    Split,
    /// What a node sends to the others is lost; what they send arrives.
    OneWay,
    /// Two nodes are cut off from each other, and not from the rest.
    Bridge,
    /// Each node reaches its two neighbours only.
    Ring,
    /// Of what a node sends to others a third is lost.
    Loss,
    /// Of what a node sends to others a third arrives twice.
    Duplicate,
    /// What a node sends arrives a fifth of a second late, and not in order.
    Delay,
    /// A node sends at most one megabit a second.
    SlowLink,
    /// A node's connections to others are reset.
    Reset,
    /// The cluster ports are sent what is no message.
    Garbage,
    /// Connections to the cluster ports are opened, and nothing is sent.
    HalfOpen,
    /// A node loses its power, and what was not synced is gone.
    PowerLoss,
    /// Every access to a node's disk fails; the node is started again over the disk once that is well.
    IoErrors,
    /// A node's disk takes ten writes a second.
    SlowDisk,
    /// A node's disk is full, and has space again later.
    DiskFull,
    /// While a node is down, a file of its rots.
    BitRot,
    /// A node loses its disk, and joins as a new one.
    DiskLoss,
    /// A node is drained and removed while it serves, and joins as a new one.
    Replace,
}

/// What a class breaks. Faults of one kind do not come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Processes.
    Process,
    /// What runs between nodes.
    Network,
    /// Disks.
    Disk,
    /// Who belongs to the cluster.
    Membership,
}

impl Class {
    /// Its name, as it is typed.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// What it does, in a line.
    pub fn meaning(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string));
        help.unwrap_or_default()
    }

    /// What it breaks.
    pub fn kind(self) -> Kind {
        match self {
            Class::Kill | Class::KillLeader | Class::KillFollower | Class::KillMinority | Class::KillAll => Kind::Process,
            Class::Stop | Class::RollingRestart | Class::Pause | Class::LongPause | Class::Descriptors | Class::ClockJump => {
                Kind::Process
            }
            Class::Isolate | Class::Split | Class::OneWay | Class::Bridge | Class::Ring => Kind::Network,
            Class::Loss | Class::Duplicate | Class::Delay | Class::SlowLink | Class::Reset => Kind::Network,
            Class::Garbage | Class::HalfOpen => Kind::Network,
            Class::PowerLoss | Class::IoErrors | Class::SlowDisk | Class::DiskFull | Class::BitRot | Class::DiskLoss => {
                Kind::Disk
            }
            Class::Replace => Kind::Membership,
        }
    }

    /// Whether it comes alone, to a whole cluster, and is over when the cluster is whole again: it takes a node's data for good, so that a second
    /// fault would be more than the cluster promises to bear, or it waits for nodes to be well in between.
    pub fn is_alone(self) -> bool {
        matches!(self, Class::BitRot | Class::DiskLoss | Class::Replace | Class::RollingRestart)
    }

    /// How long it lasts.
    pub fn lasts(self, random: &mut StdRng) -> Duration {
        let seconds = match self {
            // Long ones are rarer.
            Class::LongPause => 5.0 + 55.0 * random.random_range(0.0..1.0f64).powi(4),
            Class::Delay | Class::SlowLink | Class::Loss | Class::Duplicate => random.random_range(1.0..6.0),
            _ => random.random_range(0.2..5.0),
        };
        Duration::from_secs_f64(seconds)
    }

    /// Why it cannot be injected here into so many nodes, if it cannot.
    pub fn missing(self, nodes: usize) -> Option<&'static str> {
        let unless = |there: bool, what| (!there).then_some(what);
        match self {
            Class::KillMinority => unless(nodes > 2, "it needs three nodes"),
            Class::Isolate | Class::Split | Class::OneWay | Class::Bridge | Class::Loss | Class::Duplicate | Class::Reset
                if nodes < 2 =>
            {
                Some("it needs two nodes")
            }
            Class::Ring if nodes < 4 => Some("it needs four nodes"),
            Class::BitRot | Class::DiskLoss | Class::Replace => unless(nodes > 2, "it needs three nodes"),
            Class::Isolate | Class::Split | Class::OneWay | Class::Bridge | Class::Ring => {
                unless(Network::has_namespaces(), "it needs root, iproute2 and nsenter")
            }
            Class::Loss | Class::Duplicate | Class::Reset => {
                unless(Network::has_filters(), "it needs root, iproute2, nsenter and iptables")
            }
            Class::Delay => unless(Network::has_queue(network::LATE), "it needs root and a kernel with netem"),
            Class::SlowLink => unless(Network::has_queue(network::SLOW), "it needs root and a kernel with tbf"),
            Class::PowerLoss | Class::IoErrors | Class::DiskFull => missing_for_images(),
            Class::SlowDisk => missing_for_images()
                .or(unless(throttle::is_possible(), "it needs the control groups of version 1 for block devices")),
            Class::ClockJump => unless(clock::can_be_set(), "it needs a C compiler, `cc`"),
            _ => None,
        }
    }
}

/// A fault that is in the cluster.
pub struct Injected {
    /// Its class.
    pub class: Class,
    /// The nodes that it was done to.
    pub nodes: Vec<usize>,
    /// What was seen of it, when that says more than that it took effect.
    pub seen: Option<String>,
    /// A promise that was seen to be broken.
    pub violation: Option<String>,
    mending: Mending,
}

/// What has to be done to be without it.
enum Mending {
    /// The nodes are started again.
    Start,
    /// The nodes go on.
    Continue,
    /// The nodes are well again.
    Nothing,
    /// The nodes may open files again: this many.
    Descriptors(u64),
    /// The clock is right again.
    Clock,
    /// Packets pass again from one to the other.
    Cuts(Vec<(usize, usize)>),
    /// Nothing is done to packets from one to the other any more.
    Rules(Vec<(usize, usize)>, Rule),
    /// The limit is lifted.
    Throttle(Throttle),
    /// Nothing is held back any more.
    Queue,
    /// The connections are closed.
    Connections(Vec<TcpStream>),
    /// The disk has power again, and the node is started.
    Power,
    /// The disk has space again.
    Space,
    /// The node joins with an empty disk.
    Anew,
}

/// Breaks something, and sees that it is broken.
pub async fn inject(class: Class, cluster: &mut Cluster, random: &mut StdRng) -> Result<Injected> {
    match class.kind() {
        Kind::Process => process::inject(class, cluster, random).await,
        Kind::Network => network::inject(class, cluster, random).await,
        Kind::Disk => disk::inject(class, cluster, random).await,
        Kind::Membership => membership::inject(class, cluster, random).await,
    }
}

/// Mends it. Nodes that were ended are started, and may take their time to be ready.
pub async fn mend(injected: &mut Injected, cluster: &mut Cluster) -> Result<()> {
    let Injected { class, nodes, mending, .. } = injected;
    let one = nodes[0];
    match std::mem::replace(mending, Mending::Nothing) {
        Mending::Nothing => {}
        Mending::Connections(connections) => drop(connections),
        Mending::Throttle(throttle) => drop(throttle),
        Mending::Start => nodes.iter().try_for_each(|node| cluster.restart(*node))?,
        Mending::Continue => nodes.iter().try_for_each(|node| cluster.signal(*node, libc::SIGCONT))?,
        Mending::Descriptors(before) => process::limit_descriptors(cluster, one, before).map(drop)?,
        Mending::Clock => cluster.clock(one)?.set(0)?,
        Mending::Cuts(cuts) => cuts.iter().try_for_each(|(from, to)| cluster.network().mend(*from, *to))?,
        Mending::Rules(ways, rule) => ways.iter().try_for_each(|(from, to)| cluster.network().remove_rule(*from, *to, &rule))?,
        Mending::Queue => cluster.network().remove_queue(one)?,
        Mending::Power => disk::power_up(cluster, one, *class).await?,
        Mending::Space => cluster.disk(one).free()?,
        Mending::Anew => membership::join_anew(cluster, one).await?,
    }
    Ok(())
}

/// Nodes in an order that chance has made.
fn shuffled(cluster: &Cluster, random: &mut impl Rng) -> Vec<usize> {
    let mut nodes: Vec<usize> = (0..cluster.len()).collect();
    nodes.shuffle(random);
    nodes
}
