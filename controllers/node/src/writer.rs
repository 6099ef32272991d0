//! The one thread that talks to the kernel: netlink is synchronous, and a round may take some
//! milliseconds in which the watches must not wait.
//!
//! What comes first is programmed at once, what comes within the next 10 ms together. New things
//! go before old ones leave; connections end after both. The table stays when the thread ends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portolan_nft::{
    Change, Conntrack, ConntrackError, ENDPOINTS_MAX, Error, Features, Flows, Former, ForwardError,
    Forwarder, Kernel, Ruleset, Unended,
};
use portolan_process::ErrorChain;
use tokio::sync::watch;

use crate::inbox::{Inbox, Wake, Work};
use crate::index::{Changes, Sizes};
use crate::metrics::Metrics;

#[cfg(test)]
mod tests;

/// How the kernel and the desired state stand to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing was programmed by this process yet.
    #[default]
    Starting,
    /// The kernel has what it should.
    Programmed,
    /// It has, but for what it refuses.
    Refused {
        /// How many ports and addresses.
        count: usize,
        /// One of them.
        example: String,
    },
    /// There is a table of our name that is not ours.
    Foreign(String),
    /// The kernel cannot be programmed, or not any more.
    Failed(String),
}

/// What was opened, for who listens to others' changes and for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The number of the socket that writes.
    pub(crate) port: u32,
    pub(crate) features: Features,
    /// Whether connections can be ended by a filter; `None` without connection tracking.
    pub(crate) filters: Option<bool>,
}

/// Opens the kernel; another in tests.
pub(crate) type Open = Box<dyn Fn() -> Result<Kernel, Error> + Send>;

/// The writer. [`Writer::run`] is its thread.
pub(crate) struct Writer {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) open: Open,
    pub(crate) metrics: Metrics,
    pub(crate) state: watch::Sender<State>,
    pub(crate) opened: watch::Sender<Option<Opened>>,
}

/// Least time between the beginnings of two rounds. A round costs little, but with less, a burst
/// of a hundred changes would be a hundred rounds.
const ROUND: Duration = Duration::from_millis(10);
/// How often the table is read although nobody is known to have changed it.
const VERIFY_EVERY: Duration = Duration::from_secs(300);
/// Rests after failures in a row.
const REST_MIN: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(30);

/// What runs once the first programming is done.
struct Running {
    forwarder: Forwarder,
    conntrack: Option<Conntrack>,
    /// Sandboxes that are gone and whose connections are still to be ended.
    gone: BTreeSet<IpAddr>,
    rest: Duration,
    /// Set while connections are left that could not be ended.
    unended: Option<Retry>,
    /// Where the table led before, while it is not known that nothing is left of what ended or was
    /// led elsewhere when nobody looked.
    unswept: Option<Former>,
}

/// When to try again, and how long the rest before that is.
#[derive(Clone, Copy)]
struct Retry {
    at: Instant,
    rest: Duration,
}

impl Writer {
    /// Programs until the inbox says stop. Everything must be in the inbox before: what is in the
    /// kernel and not there is deleted.
    pub(crate) fn run(self) {
        let Some(mut running) = self.begin() else { return };
        self.note(&mut running, Ok(Change::default()));
        let mut earliest = Instant::now();
        let mut deadline = earliest + VERIFY_EVERY;
        loop {
            let retry = running.unended.map(|retry| retry.at);
            let until = retry.map_or(deadline, |retry| retry.min(deadline));
            let work = match self.inbox.wait(earliest, until) {
                Wake::Stop => return,
                Wake::Work(work) => work,
                Wake::Deadline if until < deadline => {
                    self.end_connections(&mut running);
                    continue;
                }
                Wake::Deadline => Work { verify: true, ..Work::default() },
            };
            let begun = Instant::now();
            earliest = begun + ROUND;
            let verified = work.verify;
            let outcome = self.round(&mut running, work);
            let is_done = outcome.is_ok();
            self.note(&mut running, outcome);
            if !is_done {
                running.rest = (running.rest * 2).clamp(REST_MIN, REST_MAX);
                earliest = begun + running.rest;
                deadline = earliest;
            } else if verified || !running.rest.is_zero() {
                running.rest = Duration::ZERO;
                deadline = begun + VERIFY_EVERY;
            }
        }
    }

    /// The first programming, tried until it succeeds; `None` if it is to end before.
    fn begin(&self) -> Option<Running> {
        let (mut earliest, mut rest) = (Instant::now(), Duration::ZERO);
        let mut gone = BTreeSet::new();
        loop {
            let desired = match self.inbox.wait(earliest, earliest) {
                Wake::Stop => return None,
                Wake::Work(work) => self.first(work, &mut gone),
                Wake::Deadline => Ruleset::default(),
            };
            let begun = Instant::now();
            match (self.open)()
                .map_err(ForwardError::from)
                .and_then(|kernel| start(kernel, desired))
            {
                Ok((mut running, opened, change)) => {
                    self.metrics.first.set(begun.elapsed().as_secs_f64());
                    self.metrics.count(&change);
                    self.opened.send_replace(Some(opened));
                    tracing::info!(?change, elapsed = ?begun.elapsed(), "Programmed");
                    running.gone = gone;
                    self.sweep(&mut running);
                    self.end_connections(&mut running);
                    return Some(running);
                }
                Err(error) => {
                    self.fail(&error);
                    rest = (rest * 2).clamp(REST_MIN, REST_MAX);
                    earliest = begun + rest;
                    // It has gone with the try: a copy of it would be kept for ever by those who
                    // start at once, which is nearly all.
                    self.inbox.repeat();
                }
            }
        }
    }

    /// All that is desired, from what a new index or one that repeats itself says; who is gone is
    /// told once only, and so is added to those of earlier tries.
    fn first(&self, work: Work, gone_before: &mut BTreeSet<IpAddr>) -> Ruleset {
        let Work { changes, ground, verify: _, since: _, sizes } = work;
        self.size(sizes);
        // Of two with one address in the first list, the next may have been led to for long by an
        // earlier process: what it has open stays.
        let Changes { services, node_ports, gone, reused: _ } = changes;
        gone_before.extend(gone);
        let ground = ground.unwrap_or_default();
        let services = services.into_iter();
        let node_ports = node_ports.into_iter();
        Ruleset {
            services: services.filter_map(|(port, backends)| Some((port, backends?))).collect(),
            node_ports: node_ports.filter_map(|(port, backends)| Some((port, backends?))).collect(),
            node_addresses: ground.addresses,
            bridged: ground.bridged,
        }
    }

    fn round(&self, running: &mut Running, work: Work) -> Result<Change, ForwardError> {
        let Work { changes, ground, verify, since, sizes } = work;
        let Changes { services, node_ports, gone, reused } = changes;
        self.end_former(running, reused);
        let forwarder = &mut running.forwarder;
        let table = forwarder.table();
        if let Some(ground) = ground {
            table.set_node_addresses(ground.addresses);
            table.set_bridged(ground.bridged);
        }
        for (port, backends) in services {
            match backends {
                Some(backends) => table.set_service(port, backends),
                None => table.remove_service(port),
            };
        }
        for (port, backends) in node_ports {
            match backends {
                Some(backends) => table.set_node_port(port, backends),
                None => table.remove_node_port(port),
            };
        }
        running.gone.extend(gone);
        self.size(sizes);
        let is_in_the_kernel = || {
            if let Some(since) = since {
                self.metrics.latency.observe(since.elapsed().as_secs_f64());
            }
        };
        // After a failure nothing is known for sure, so all is read again.
        if verify || !running.rest.is_zero() {
            let mut change = forwarder.verify()?;
            is_in_the_kernel();
            // That it was read is no sign of anything; that it had to be read again is.
            change.resyncs -= 1;
            self.metrics.verified.inc();
            // What came while the table was not as it should be was led elsewhere, or nowhere.
            if change.commits > 0 {
                running.unswept.get_or_insert_default();
            }
            self.sweep(running);
            self.end_connections(running);
            return Ok(change);
        }
        let made = forwarder.advance()?;
        is_in_the_kernel();
        if let Some(conntrack) = &mut running.conntrack {
            forwarder.end_at_once(conntrack);
        }
        let settled = forwarder.flush()?;
        self.end_connections(running);
        Ok(sum(made, settled))
    }

    /// Ends what is left of what ended, or was led elsewhere, when nobody looked. All slices have
    /// been listed by now. What fails is tried again with the next reading of the table.
    fn sweep(&self, running: &mut Running) {
        let Running { forwarder, conntrack, unswept, .. } = running;
        if conntrack.is_none() {
            *conntrack = open_conntrack();
            let filters = conntrack.as_ref().map(Conntrack::filters);
            self.opened.send_if_modified(|opened| {
                let opened = opened.as_mut().filter(|opened| opened.filters != filters);
                opened.map(|opened| opened.filters = filters).is_some()
            });
        }
        let (Some(conntrack), Some(former)) = (conntrack, &*unswept) else { return };
        let is_there = |address| self.inbox.may_have(address);
        match conntrack.sweep(forwarder.table().desired(), former, is_there) {
            Ok(ended) => {
                tracing::info!(ended, "Swept connections");
                *unswept = None;
            }
            Err(error) => self.fail_to_end(&error),
        }
    }

    /// Lets the kernel forget connections that lead nowhere any more. What cannot be ended is tried
    /// again, after a rest: a sender of UDP would go on for ever.
    fn end_connections(&self, running: &mut Running) {
        let Running { forwarder, conntrack, gone, unended, unswept, .. } = running;
        let Some(conntrack) = conntrack else {
            // A sweep makes up for it, should connection tracking come.
            gone.clear();
            unswept.get_or_insert_default();
            return;
        };
        // Whoever has the address by now must not lose what it has open.
        self.inbox.forget_listed(gone);
        let ended = forwarder.end_connections(conntrack, gone);
        *unended = ended.err().map(|error| {
            self.fail_to_end(&error);
            let rest = unended.map_or(REST_MIN, |retry| (retry.rest * 2).min(REST_MAX));
            Retry { at: Instant::now() + rest, rest }
        });
    }

    /// Ends what is left of sandboxes whose addresses others have now, before anything is led to
    /// these. It is tried once only: later it would be theirs.
    fn end_former(&self, running: &mut Running, reused: BTreeSet<IpAddr>) {
        running.gone.retain(|address| !reused.contains(address));
        let Some(conntrack) = &mut running.conntrack else { return };
        let flows = reused.into_iter().map(Flows::Sandbox).collect();
        if let Err(Unended { first, .. }) = conntrack.end(&flows) {
            self.fail_to_end(&first);
        }
    }

    /// Says once of a port that not all of its sandboxes get connections: not each time, for it may
    /// stay so.
    fn size(&self, sizes: Sizes) {
        if self.metrics.size(sizes) {
            let (ports, limit) = (sizes.crowded, ENDPOINTS_MAX);
            tracing::warn!(ports, limit, "Ports have more sandboxes than are led to");
        }
    }

    fn fail_to_end(&self, error: &ConntrackError) {
        self.metrics.unended.inc();
        tracing::warn!(error = %ErrorChain(error), "Connections not ended");
    }

    fn note(&self, running: &mut Running, outcome: Result<Change, ForwardError>) {
        match outcome {
            Ok(change) => {
                self.metrics.count(&change);
                self.metrics.elements.set(count(running.forwarder.table().len()));
                let refused = running.forwarder.refused();
                let state = match refused.first() {
                    None => State::Programmed,
                    Some(owner) => {
                        State::Refused { count: refused.len(), example: format!("{owner:?}") }
                    }
                };
                self.publish(state);
            }
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&self, error: &ForwardError) {
        self.metrics.fail(error);
        tracing::warn!(error = %ErrorChain(error), "Not programmed");
        self.publish(match error {
            ForwardError::Foreign(_) => State::Foreign(ErrorChain(error).to_string()),
            ForwardError::Kernel(_) => State::Failed(ErrorChain(error).to_string()),
        });
    }

    fn publish(&self, state: State) {
        self.state.send_if_modified(|current| {
            let is_new = *current != state;
            *current = state;
            is_new
        });
    }
}

/// Programs a kernel for the first time.
fn start(kernel: Kernel, desired: Ruleset) -> Result<(Running, Opened, Change), ForwardError> {
    let (port, features) = (kernel.port(), kernel.features());
    let (mut forwarder, change) = Forwarder::start(kernel, desired)?;
    if change.commits > 0 {
        // A packet under way that the table of before led would bring back what is ended later.
        forwarder.kernel().await_packets();
    }
    let unswept = Some(forwarder.take_former());
    let conntrack = open_conntrack();
    let filters = conntrack.as_ref().map(Conntrack::filters);
    let (gone, rest) = (BTreeSet::new(), Duration::ZERO);
    let running = Running { forwarder, conntrack, gone, rest, unended: None, unswept };
    Ok((running, Opened { port, features, filters }, change))
}

fn open_conntrack() -> Option<Conntrack> {
    let opened = Conntrack::open();
    let tell = |error: &ConntrackError| {
        tracing::error!(error = %ErrorChain(error), "No connection tracking");
    };
    opened.inspect_err(tell).ok()
}

fn sum(a: Change, b: Change) -> Change {
    Change {
        commits: a.commits + b.commits,
        added: a.added + b.added,
        deleted: a.deleted + b.deleted,
        replaced: a.replaced || b.replaced,
        resyncs: a.resyncs + b.resyncs,
    }
}

fn count(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
