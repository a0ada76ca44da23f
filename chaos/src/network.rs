//! The network that the nodes live in: a network namespace each, joined by a bridge, so that what runs between any two of them can be cut. It needs
//! root; without, the nodes share this machine's own addresses, and nothing can be cut.

use anyhow::{Context, Result, bail, ensure};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

/// A network for so many nodes.
pub struct Network {
    kind: Kind,
    nodes: usize,
}

enum Kind {
    /// Names of everything begin with this.
    Namespaces {
        prefix: String,
        third_octet: u8,
    },
    Shared,
}

impl Network {
    /// Whether namespaces can be made here.
    pub fn has_namespaces() -> bool {
        // SAFETY: takes no arguments, and cannot fail.
        let is_root = unsafe { libc::geteuid() } == 0;
        is_root
            && Command::new("ip")
                .arg("netns")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
    }

    /// Makes the network: of namespaces when they can be made.
    pub fn make(nodes: usize) -> Result<Network> {
        if !Network::has_namespaces() {
            return Ok(Network { kind: Kind::Shared, nodes });
        }
        let number = std::process::id();
        let (prefix, third_octet) = (format!("rc{:x}", number & 0xff_ffff), (number % 250) as u8 + 1);
        let network = Network { kind: Kind::Namespaces { prefix: prefix.clone(), third_octet }, nodes };
        let bridge = format!("{prefix}b");
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("10.203.{third_octet}.1/24"), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for node in 0..nodes {
            let (space, outside) = (format!("{prefix}n{node}"), format!("{prefix}v{node}"));
            ip(&["netns", "add", &space])?;
            ip(&["link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            ip(&["link", "set", &outside, "master", &bridge, "up"])?;
            let address = format!("{}/24", network.address(node));
            ip(&["-n", &space, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
        }
        Ok(network)
    }

    /// Whether what runs between nodes can be cut.
    pub fn can_be_cut(&self) -> bool {
        matches!(self.kind, Kind::Namespaces { .. })
    }

    /// Where a node is reached.
    pub fn address(&self, node: usize) -> Ipv4Addr {
        match &self.kind {
            Kind::Namespaces { third_octet, .. } => Ipv4Addr::new(10, 203, *third_octet, node as u8 + 10),
            Kind::Shared => Ipv4Addr::LOCALHOST,
        }
    }

    /// A program inside a node's network.
    pub fn command(&self, node: usize, program: &std::path::Path) -> Command {
        match &self.kind {
            Kind::Namespaces { prefix, .. } => {
                // It executes the program in its own place: the process is the program's.
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &format!("{prefix}n{node}")]).arg(program);
                command
            }
            Kind::Shared => Command::new(program),
        }
    }

    /// Drops what a node sends to another.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        self.route(from, &["add", "blackhole", &self.address(to).to_string()])
    }

    /// Lets it pass again.
    pub fn mend(&self, from: usize, to: usize) -> Result<()> {
        self.route(from, &["del", "blackhole", &self.address(to).to_string()])
    }

    fn route(&self, node: usize, arguments: &[&str]) -> Result<()> {
        let Kind::Namespaces { prefix, .. } = &self.kind else { bail!("without namespaces nothing can be cut") };
        ip(&[&["-n", &format!("{prefix}n{node}"), "route"], arguments].concat())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let Kind::Namespaces { prefix, .. } = &self.kind else { return };
        // What was made goes; with a namespace its end of the cable goes too.
        for node in 0..self.nodes {
            let _ = ip(&["netns", "del", &format!("{prefix}n{node}")]);
            let _ = ip(&["link", "del", &format!("{prefix}v{node}")]);
        }
        let _ = ip(&["link", "del", &format!("{prefix}b")]);
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output =
        Command::new("ip").args(arguments).stdin(Stdio::null()).output().context("the program `ip` (iproute2) cannot be run")?;
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
