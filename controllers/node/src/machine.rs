//! What the node agent needs to know of the machine it runs on, read through rtnetlink and /proc:
//! its addresses, whether Pods hang on a bridge, and whether virtual addresses have a route.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{RouteMessage, RouteType};
use netlink_sys::{AsyncSocket as _, SocketAddr};
use portolan_nft::{Family, Range};
use portolan_process::ErrorChain;
use portolan_reconcile::RunError;
use rtnetlink::Handle;
use rtnetlink::constants::{
    RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::facts::NodeFacts;
use crate::inbox::{Ground, Inbox};

/// What was seen on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// The networks of its bridges.
    pub(crate) bridges: BTreeSet<Range>,
    /// Families with a default route.
    pub(crate) default_routes: BTreeSet<Family>,
    /// Whether what passes between two ports of a bridge goes through nf_tables.
    pub(crate) filters_bridges: bool,
}

/// The machine, as far as the agent and its report care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) ground: Ground,
    pub(crate) default_routes: BTreeSet<Family>,
}

/// Watches the machine.
pub(crate) struct Surveyor {
    pub(crate) inbox: Arc<Inbox>,
    /// This agent's Node; `None` until it is known.
    pub(crate) node: watch::Receiver<Option<NodeFacts>>,
    pub(crate) machine: watch::Sender<Option<Machine>>,
    pub(crate) shutdown: CancellationToken,
}

/// How often the machine is looked at although it said nothing: messages can be lost, and /proc
/// has none.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// What changes on a link comes in pieces; they are looked at together.
const SETTLE: Duration = Duration::from_millis(50);
/// Pause after a failure.
const PAUSE: Duration = Duration::from_secs(5);

/// Why the machine could not be looked at.
#[derive(Debug, thiserror::Error)]
enum SurveyError {
    #[error("open rtnetlink")]
    Open(#[source] io::Error),
    #[error("read {0}")]
    Read(&'static str, #[source] Box<rtnetlink::Error>),
}

type Messages = UnboundedReceiver<(
    netlink_packet_core::NetlinkMessage<netlink_packet_route::RouteNetlinkMessage>,
    SocketAddr,
)>;

impl Surveyor {
    /// Looks until the process shuts down.
    ///
    /// # Errors
    ///
    /// None: what cannot be read is logged and tried again.
    pub(crate) async fn run(mut self) -> Result<(), RunError> {
        let shutdown = self.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.watch() => {}
        }
        Ok(())
    }

    async fn watch(&mut self) {
        loop {
            if let Err(error) = self.follow().await {
                tracing::warn!(error = %ErrorChain(&error), "Machine not read");
            }
            sleep(PAUSE).await;
        }
    }

    async fn follow(&mut self) -> Result<(), SurveyError> {
        let (mut connection, handle, mut messages) =
            rtnetlink::new_connection().map_err(SurveyError::Open)?;
        let groups =
            RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE;
        let socket = connection.socket_mut().socket_mut();
        socket.bind(&SocketAddr::new(0, groups)).map_err(SurveyError::Open)?;
        tokio::select! {
            () = connection => Ok(()),
            error = self.look_on(&handle, &mut messages) => Err(error),
        }
    }

    /// Looks whenever something may have changed, until that fails.
    async fn look_on(&mut self, handle: &Handle, messages: &mut Messages) -> SurveyError {
        loop {
            let seen = match survey(handle).await {
                Ok(seen) => seen,
                Err(error) => return error,
            };
            let node = self.node.borrow_and_update().clone();
            if let Some(node) = node {
                self.publish(machine(&node, &seen));
            }
            tokio::select! {
                _ = timeout(LOOK_EVERY, messages.next()) => sleep(SETTLE).await,
                changed = self.node.changed() => {
                    if changed.is_err() {
                        // Its watch has ended, so the process does.
                        std::future::pending::<()>().await;
                    }
                }
            }
            while messages.try_recv().is_ok() {}
        }
    }

    fn publish(&self, machine: Machine) {
        self.machine.send_if_modified(|current| {
            if current.as_ref() == Some(&machine) {
                return false;
            }
            tracing::info!(?machine, "Machine");
            self.inbox.set_ground(machine.ground.clone());
            *current = Some(machine);
            true
        });
    }
}

/// What follows from what was seen.
///
/// Node ports answer at those of the Node's addresses that this machine has: an external address
/// that is translated on its way is not among them, and needs not be.
///
/// What Pods on one bridge say to each other passes the rules by, unless bridge netfilter is on.
/// Every bridge with a network counts, since which are Pods' is not known: what is led from one to
/// another gets the node's address as its source although it need not.
fn machine(node: &NodeFacts, seen: &Seen) -> Machine {
    let own = node.addresses.iter().copied();
    let addresses = own.filter(|address| seen.addresses.contains(address)).collect();
    let bridged = match seen.filters_bridges {
        true => BTreeSet::new(),
        false => seen.bridges.clone(),
    };
    Machine { ground: Ground { addresses, bridged }, default_routes: seen.default_routes.clone() }
}

async fn survey(handle: &Handle) -> Result<Seen, SurveyError> {
    let failed = |what| move |error| SurveyError::Read(what, Box::new(error));
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(failed("links"))?;
    let bridges: BTreeSet<u32> =
        links.iter().filter(|link| is_bridge(link)).map(|link| link.header.index).collect();
    let found: Vec<AddressMessage> =
        handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
    let addresses = found.iter().filter_map(address).collect();
    let on_bridges = found.iter().filter(|message| bridges.contains(&message.header.index));
    let bridges = on_bridges.filter_map(network).collect();
    let mut default_routes = BTreeSet::new();
    for (family, number) in [(Family::V4, AddressFamily::Inet), (Family::V6, AddressFamily::Inet6)]
    {
        let mut all = RouteMessage::default();
        all.header.address_family = number;
        let mut routes = std::pin::pin!(handle.route().get(all).execute());
        // To the end: what is left unread of a dump would be in the way of the next.
        while let Some(route) = routes.try_next().await.map_err(failed("routes"))? {
            if is_default(&route) {
                default_routes.insert(family);
            }
        }
    }
    let filters_bridges = ["iptables", "ip6tables"].into_iter().all(|which| {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{which}");
        // Absent: the kernel does not have it, or not loaded.
        fs::read_to_string(path).is_ok_and(|text| text.trim() == "1")
    });
    Ok(Seen { addresses, bridges, default_routes, filters_bridges })
}

fn is_bridge(link: &LinkMessage) -> bool {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)))
}

/// The address itself: on a link between two points, `Address` is the other's.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let other = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    local.or(other)
}

/// The network that an address is in; `None` for one that every link has.
fn network(message: &AddressMessage) -> Option<Range> {
    let range = Range { address: address(message)?, length: message.header.prefix_len };
    let is_everywhere = match range.address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    (!is_everywhere).then_some(range)
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

#[cfg(test)]
mod tests;
