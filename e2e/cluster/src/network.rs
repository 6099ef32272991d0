//! The cluster's own network: a bridge in a "lab" namespace and one namespace per machine on it.
//!
//! ```text
//!   lab: br0 10.90.0.1 --+-- control 10.90.0.10
//!                        +-- node1   10.90.0.11   Pods 10.91.1.0/24
//!                        +-- node2   10.90.0.12   Pods 10.91.2.0/24
//!                        +-- outside 10.90.0.2
//! ```
//!
//! With two families all of them have an IPv6 address beside, which ends alike.
//!
//! Nothing here touches the host's own network: no link of the host is moved, and no rule or
//! address is added to it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::addresses::{self, Stack};
use crate::command;
use crate::paths::ClusterPaths;

/// The lab's namespace.
pub const LAB: &str = "lab";
/// The namespace of a host outside the cluster.
pub const OUTSIDE: &str = "outside";
/// The control plane's namespace and machine.
pub const CONTROL: &str = "control";

/// The name of a node; nodes count from 1.
#[must_use]
pub fn node_name(number: u8) -> String {
    format!("node{number}")
}

/// The file that stands for a network namespace.
#[must_use]
pub fn namespace_file(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

/// Makes the lab, the control plane's, the outside host's and `nodes` nodes' namespaces.
///
/// # Errors
/// When `ip` fails; what exists by then is removed by [`remove`].
pub fn create(cluster: &ClusterPaths, nodes: u8, stack: Stack) -> anyhow::Result<()> {
    let lab = cluster.namespace(LAB);
    add_namespace(&lab)?;
    let mut inside = format!(
        "link set lo up\n\
         link add br0 type bridge\n\
         address add {}/{} dev br0\n\
         link set br0 up\n",
        addresses::LAB,
        addresses::LAB_PREFIX
    );
    if stack == Stack::Dual {
        inside.push_str(&address_v6("br0", addresses::LAB));
    }
    batch(&lab, &inside)?;
    // The lab routes nothing. It forwards only so that it can answer "unreachable" at once, where
    // a silent drop would let every connection to the world wait for its timeout.
    command::output(
        Command::new("nsenter").arg(format!("--net={}", namespace_file(&lab).display())).args([
            "sh",
            "-c",
            "echo 1 > /proc/sys/net/ipv4/ip_forward; \
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
        ]),
    )?;
    attach(cluster, OUTSIDE, addresses::OUTSIDE, &[], stack)?;
    let all: Vec<u8> = (1..=nodes).collect();
    attach(cluster, CONTROL, addresses::CONTROL, &all, stack)?;
    for &number in &all {
        let others: Vec<u8> = all.iter().copied().filter(|other| *other != number).collect();
        attach(cluster, &node_name(number), addresses::node(number), &others, stack)?;
    }
    Ok(())
}

/// Cuts a machine off from all others, or joins it to them again.
///
/// # Errors
/// When `ip` fails.
pub fn set_link(cluster: &ClusterPaths, machine: &str, is_up: bool) -> anyhow::Result<()> {
    let state = if is_up { "up" } else { "down" };
    batch(&cluster.namespace(LAB), &format!("link set v-{machine} {state}\n"))
}

/// Removes every namespace of the cluster, whatever a run that failed left of them.
///
/// # Errors
/// When the kernel refuses to remove one.
pub fn remove(cluster: &ClusterPaths) -> anyhow::Result<()> {
    let prefix = cluster.namespace("");
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return Ok(()); // none was ever made on this machine
    };
    for entry in entries {
        let name = entry.context("list the network namespaces")?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&prefix) {
            command::output(Command::new("ip").args(["netns", "delete", &*name]))?;
        }
    }
    Ok(())
}

/// Puts one machine on the bridge, with routes to the Pods of the given nodes.
fn attach(
    cluster: &ClusterPaths,
    machine: &str,
    address: Ipv4Addr,
    routes_to: &[u8],
    stack: Stack,
) -> anyhow::Result<()> {
    let lab = cluster.namespace(LAB);
    let namespace = cluster.namespace(machine);
    add_namespace(&namespace)?;
    batch(
        &lab,
        &format!(
            "link add v-{machine} type veth peer name eth0 netns {namespace}\n\
             link set v-{machine} master br0\n\
             link set v-{machine} up\n"
        ),
    )?;
    let mut inside = format!(
        "link set lo up\n\
         address add {address}/{} dev eth0\n\
         link set eth0 up\n\
         route add default via {}\n",
        addresses::LAB_PREFIX,
        addresses::LAB
    );
    for &number in routes_to {
        let via = addresses::node(number);
        inside.push_str(&format!("route add {} via {via}\n", addresses::pods(number)));
    }
    if stack == Stack::Dual {
        inside.push_str(&address_v6("eth0", address));
        let lab = addresses::v6(addresses::LAB);
        inside.push_str(&format!("route add default via {lab}\n"));
        for &number in routes_to {
            let (pods, via) = (addresses::pods_v6(number), addresses::v6(addresses::node(number)));
            inside.push_str(&format!("route add {pods} via {via}\n"));
        }
    }
    batch(&namespace, &inside)
}

/// Nobody else can have the address, so it need not be looked for.
fn address_v6(link: &str, member: Ipv4Addr) -> String {
    let (address, prefix) = (addresses::v6(member), addresses::LAB_PREFIX_V6);
    format!("address add {address}/{prefix} dev {link} nodad\n")
}

fn add_namespace(namespace: &str) -> anyhow::Result<()> {
    command::output(Command::new("ip").args(["netns", "add", namespace]))?;
    Ok(())
}

fn batch(namespace: &str, lines: &str) -> anyhow::Result<()> {
    command::feed(Command::new("ip").args(["-netns", namespace, "-batch", "-"]), lines)
        .with_context(|| format!("set up the network namespace {namespace}"))
}
