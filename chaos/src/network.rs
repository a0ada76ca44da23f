//! The network that the nodes live in: a network namespace each, joined by a bridge, so that what runs between any two of them can be cut. It needs
//! root; without, the nodes share this machine's own addresses, and nothing can be cut.

use crate::command::{is_root, run, succeeds};
use anyhow::{Result, bail};
use std::net::Ipv4Addr;
use std::process::Command;

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
        is_root() && succeeds("ip", &["netns"]) && succeeds("nsenter", &["--version"])
    }

    /// Whether packets can be looked at one by one here.
    pub fn has_filters() -> bool {
        Network::has_namespaces() && succeeds("iptables", &["--version"])
    }

    /// Whether the kernel has a way to hold packets back, such as `netem` or `tbf`.
    pub fn has_queue(queue: &[&str]) -> bool {
        let probe = ["--net", "tc", "qdisc", "add", "dev", "lo", "root"];
        Network::has_namespaces() && succeeds("unshare", &[&probe[..], queue].concat())
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
                // It executes the program in its own place: the process is the program's. Unlike `ip netns exec` it leaves the mounts alone.
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/run/netns/{prefix}n{node}")).arg(program);
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

    /// Does something to packets that a node sends to another, as iptables says: a table, and a rule without its addresses.
    pub fn add_rule(&self, from: usize, to: usize, rule: &Rule) -> Result<()> {
        self.iptables(from, &rule.arguments("-A", self.address(to))).map(drop)
    }

    /// Does it no more.
    pub fn remove_rule(&self, from: usize, to: usize, rule: &Rule) -> Result<()> {
        self.iptables(from, &rule.arguments("-D", self.address(to))).map(drop)
    }

    /// How many packets of a node any rule of a table was applied to.
    pub fn packets_by_rules(&self, node: usize, table: &str) -> Result<u64> {
        let listed = self.iptables(node, &["-t", table, "-nvxL", "OUTPUT"].map(str::to_owned))?;
        // Two lines of headings; then a rule a line, whose first word is the count.
        Ok(listed.lines().skip(2).filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum())
    }

    /// Holds back everything that a node sends.
    pub fn add_queue(&self, node: usize, queue: &[&str]) -> Result<()> {
        self.tc(node, &[&["qdisc", "add", "dev", "eth0", "root"], queue].concat()).map(drop)
    }

    /// Holds nothing back any more.
    pub fn remove_queue(&self, node: usize) -> Result<()> {
        self.tc(node, &["qdisc", "del", "dev", "eth0", "root"]).map(drop)
    }

    /// What the kernel says of what it holds back.
    pub fn queue(&self, node: usize) -> Result<String> {
        self.tc(node, &["-s", "qdisc", "show", "dev", "eth0"])
    }

    fn route(&self, node: usize, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &self.space(node)?, "route"], arguments].concat())
    }

    fn tc(&self, node: usize, arguments: &[&str]) -> Result<String> {
        run("tc", &[&["-n", &self.space(node)?], arguments].concat())
    }

    fn iptables(&self, node: usize, arguments: &[String]) -> Result<String> {
        let space = format!("--net=/run/netns/{}", self.space(node)?);
        let mut command = vec![space.as_str(), "iptables", "-w"];
        command.extend(arguments.iter().map(String::as_str));
        run("nsenter", &command)
    }

    fn space(&self, node: usize) -> Result<String> {
        let Kind::Namespaces { prefix, .. } = &self.kind else { bail!("without namespaces the network cannot be broken") };
        Ok(format!("{prefix}n{node}"))
    }
}

/// Something that is done to packets.
pub struct Rule {
    /// The table of iptables: `filter` or `mangle`.
    pub table: &'static str,
    /// Which packets.
    pub matches: Vec<String>,
    /// What is done to them.
    pub target: Vec<String>,
}

impl Rule {
    fn arguments(&self, verb: &str, to: Ipv4Addr) -> Vec<String> {
        let head = ["-t", self.table, verb, "OUTPUT", "-d", &to.to_string()].map(str::to_owned);
        [&head[..], &self.matches, &self.target].concat()
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
    run("ip", arguments).map(drop)
}
