//! Certificates from Secrets: one watch for each Secret that a served Route names.
//!
//! A Secret that goes or breaks keeps its last good certificate in use, and is reported.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use parking_lot::Mutex;
use portolan_api::CertificateReport;
use portolan_api::conditions::reason;
use portolan_process::ErrorChain;
use portolan_reconcile::{Connections, Context, ObjectKey, RunError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Ingress;
use crate::feed::snapshot::{Directory, Pem};
use crate::host::HostPattern;
use crate::report::State;
use crate::tls::Certificate;

/// The Secrets that are wanted, and the hosts that each is for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wanted(pub(crate) BTreeMap<ObjectKey, Vec<HostPattern>>);

/// Keeps the certificates of the ingress in line with the Secrets.
pub(crate) struct Certificates {
    ctx: Context,
    installers: Installers,
    state: State,
    directory: Option<Directory>,
    connections: Connections,
}

/// A Secret that is being watched.
struct Watched {
    hosts: watch::Sender<Vec<HostPattern>>,
    stop: CancellationToken,
}

impl Certificates {
    pub(crate) fn new(
        ctx: &Context,
        ingress: &Ingress,
        state: &State,
        directory: Option<Directory>,
        connections: Connections,
    ) -> Self {
        let installers = Installers::new(ingress);
        Self { ctx: ctx.clone(), installers, state: state.clone(), directory, connections }
    }

    /// Follows what is wanted until the context shuts down.
    pub(crate) async fn run(self, mut wishes: watch::Receiver<Wanted>) -> Result<(), RunError> {
        let shutdown = self.ctx.shutdown();
        let mut watched = BTreeMap::<ObjectKey, Watched>::new();
        let mut tasks = JoinSet::new();
        loop {
            let wanted = wishes.borrow_and_update().clone();
            watched.retain(|secret, watch| {
                let is_wanted = wanted.0.contains_key(secret);
                if !is_wanted {
                    watch.stop.cancel();
                }
                is_wanted
            });
            for (secret, hosts) in wanted.0 {
                match watched.get(&secret) {
                    Some(watch) => drop(watch.hosts.send_replace(hosts)),
                    None => {
                        let (sender, receiver) = watch::channel(hosts);
                        let stop = shutdown.child_token();
                        tasks.spawn(self.follow(secret.clone(), receiver, stop.clone()));
                        watched.insert(secret, Watched { hosts: sender, stop });
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = wishes.changed() => if changed.is_err() { break },
                Some(_) = tasks.join_next() => {}
            }
        }
        tasks.shutdown().await;
        Ok(())
    }

    /// Follows one Secret until `stop`, and takes its certificate away then.
    fn follow(
        &self,
        secret: ObjectKey,
        mut hosts: watch::Receiver<Vec<HostPattern>>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        // Apart from the connection of the process: behind a hundred of these its Lease would wait
        // for ever.
        let place = self.connections.place();
        let api: Api<Secret> = Api::namespaced(place.client(), &secret.namespace);
        let shutdown = self.ctx.shutdown();
        let state = self.state.clone();
        let mut installed = Installed::new(&self.installers, self.directory.clone());
        async move {
            let _until_the_watch_ends = place;
            installed.restore(&secret);
            let events = watch_object(api, &secret.name).default_backoff();
            futures::pin_mut!(events);
            installed.move_to(&hosts.borrow_and_update());
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    changed = hosts.changed() => {
                        if changed.is_err() { break }
                        installed.move_to(&hosts.borrow_and_update());
                    }
                    event = events.next() => match event {
                        Some(event) => {
                            let complaint = installed.take(event, &secret);
                            state.certificate(&secret, complaint);
                        }
                        None => break,
                    },
                }
            }
            installed.move_to(&[]);
            state.certificate(&secret, None);
            if !shutdown.is_cancelled() {
                installed.forget(&secret);
            }
        }
    }
}

/// Who has installed a certificate for each host. Clones share it.
///
/// While a host moves from one Secret to another, the task of either may hear of it first: the
/// certificate of who came last is used, and who leaves takes away its own alone.
#[derive(Clone)]
struct Installers {
    ingress: Ingress,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    /// The number of the latest installer.
    latest: u64,
    /// By host the installers' numbers and certificates, in the order in which they came.
    hosts: HashMap<HostPattern, Vec<(u64, Certificate)>>,
}

impl Installers {
    fn new(ingress: &Ingress) -> Self {
        Self { ingress: ingress.clone(), table: Arc::default() }
    }

    /// The number of one more installer.
    fn enter(&self) -> u64 {
        let mut table = self.table.lock();
        table.latest += 1;
        table.latest
    }

    fn install(&self, host: &HostPattern, installer: u64, certificate: &Certificate) {
        let mut table = self.table.lock();
        let held = table.hosts.entry(host.clone()).or_default();
        match held.iter().position(|(other, _)| *other == installer) {
            Some(place) => held[place].1 = certificate.clone(),
            None => held.push((installer, certificate.clone())),
        }
        self.show(host, held);
    }

    fn remove(&self, host: &HostPattern, installer: u64) {
        let mut table = self.table.lock();
        let Some(held) = table.hosts.get_mut(host) else { return };
        held.retain(|(other, _)| *other != installer);
        self.show(host, held);
        if held.is_empty() {
            table.hosts.remove(host);
        }
    }

    /// Under the lock, so that the ingress hears of changes in their order.
    fn show(&self, host: &HostPattern, held: &[(u64, Certificate)]) {
        let last = held.last().map(|(_, certificate)| certificate.clone());
        self.ingress.set_certificate(host, last);
    }
}

/// The certificate of one Secret, and the hosts it is installed for.
struct Installed {
    installers: Installers,
    number: u64,
    certificate: Option<Certificate>,
    hosts: Vec<HostPattern>,
    directory: Option<Directory>,
}

impl Installed {
    fn new(installers: &Installers, directory: Option<Directory>) -> Self {
        let (installers, number) = (installers.clone(), installers.enter());
        Self { installers, number, certificate: None, hosts: Vec::new(), directory }
    }

    /// Begins with what an earlier process kept; the Secret itself takes its place.
    fn restore(&mut self, name: &ObjectKey) {
        let kept = self.directory.as_ref().and_then(|directory| directory.certificate(name));
        self.certificate = kept.and_then(|kept| {
            Certificate::from_pem(kept.chain.as_bytes(), kept.key.as_bytes()).ok()
        });
    }

    fn keep(&self, name: &ObjectKey, kept: Pem) {
        if let Some(directory) = &self.directory {
            directory.keep_certificate(name, kept);
        }
    }

    fn forget(&self, name: &ObjectKey) {
        if let Some(directory) = &self.directory {
            directory.drop_certificate(name);
        }
    }

    fn move_to(&mut self, hosts: &[HostPattern]) {
        for gone in self.hosts.iter().filter(|host| !hosts.contains(host)) {
            self.installers.remove(gone, self.number);
        }
        self.hosts = hosts.to_vec();
        self.install();
    }

    fn install(&self) {
        let Some(certificate) = &self.certificate else { return };
        for host in &self.hosts {
            self.installers.install(host, self.number, certificate);
        }
    }

    /// Takes what the watch says; returns what there is to complain of.
    fn take(
        &mut self,
        event: Result<Option<Secret>, watcher::Error>,
        name: &ObjectKey,
    ) -> Option<CertificateReport> {
        let complain = |reason: &str, message: String| {
            Some(CertificateReport {
                namespace: name.namespace.clone(),
                name: name.name.clone(),
                reason: reason.into(),
                message,
            })
        };
        match event {
            Ok(Some(secret)) => match read(&secret) {
                Ok((certificate, text)) => {
                    self.certificate = Some(certificate);
                    self.install();
                    self.keep(name, text);
                    None
                }
                Err(message) => complain(reason::CERTIFICATE_INVALID, message),
            },
            Ok(None) => {
                let message = format!("Secret {} does not exist", name.name);
                complain(reason::SECRET_NOT_FOUND, message)
            }
            Err(error) if is_forbidden(&error) => {
                let message = format!("the gateway may not read Secret {}", name.name);
                complain(reason::SECRET_FORBIDDEN, message)
            }
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::warn!(namespace = name.namespace, %error, "Certificate watch interrupted");
                None
            }
        }
    }
}

fn read(secret: &Secret) -> Result<(Certificate, Pem), String> {
    let field = |key: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.map(|bytes| bytes.0.as_slice()).ok_or_else(|| format!("the Secret has no {key}"))
    };
    let (chain, key) = (field("tls.crt")?, field("tls.key")?);
    let certificate = Certificate::from_pem(chain, key);
    let certificate = certificate.map_err(|error| ErrorChain(&error).to_string())?;
    // What is no text is between the PEM blocks, where it says nothing.
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((certificate, Pem { chain: text(chain), key: text(key) }))
}

fn is_forbidden(error: &watcher::Error) -> bool {
    let source = match error {
        watcher::Error::InitialListFailed(source)
        | watcher::Error::WatchStartFailed(source)
        | watcher::Error::WatchFailed(source) => source,
        _ => return false,
    };
    matches!(source, kube::Error::Api(status) if status.code == 403)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Installed, Installers};
    use crate::host::HostPattern;
    use crate::{Certificate, Ingress, Metrics, Settings};

    const HOST: &str = "shop.example";

    fn mk_certificate() -> Certificate {
        let issued = rcgen::generate_simple_self_signed([HOST.to_owned()]).expect("issued");
        let (chain, key) = (issued.cert.pem(), issued.signing_key.serialize_pem());
        Certificate::from_pem(chain.as_bytes(), key.as_bytes()).expect("valid")
    }

    #[tokio::test]
    async fn a_secret_takes_away_only_what_it_installed() {
        let ingress = Ingress::new(Settings::standard(), Arc::new(Metrics::new()));
        let is_covered = || ingress.shared().certificates.covers(HOST);
        let installers = Installers::new(&ingress);
        let [mut before, mut after] = [(), ()].map(|()| {
            let mut installed = Installed::new(&installers, None);
            installed.certificate = Some(mk_certificate());
            installed
        });
        let host = [HostPattern::Exact(HOST.into())];

        // The host moves, and the Secret that gets it hears of that first.
        before.move_to(&host);
        after.move_to(&host);
        before.move_to(&[]);
        assert!(is_covered(), "the other Secret has it");

        // It moves back, and the Secret that loses it is renewed before it hears of that.
        before.move_to(&host);
        after.install();
        after.move_to(&[]);
        assert!(is_covered(), "the first one has it again");
        before.move_to(&[]);
        assert!(!is_covered(), "nobody has it");
    }
}
