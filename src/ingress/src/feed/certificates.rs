//! Certificates from Secrets: one watch for each Secret that a served Route names.
//!
//! A Secret that goes or breaks keeps its last good certificate in use, and is reported.

use std::collections::BTreeMap;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use portolan_api::CertificateReport;
use portolan_api::conditions::reason;
use portolan_process::ErrorChain;
use portolan_reconcile::{Context, ObjectKey, RunError};
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
    ingress: Ingress,
    state: State,
    directory: Option<Directory>,
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
    ) -> Self {
        Self { ctx: ctx.clone(), ingress: ingress.clone(), state: state.clone(), directory }
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
        let api: Api<Secret> = Api::namespaced(self.ctx.client(), &secret.namespace);
        let shutdown = self.ctx.shutdown();
        let state = self.state.clone();
        let mut installed = Installed::new(self.ingress.clone(), self.directory.clone());
        async move {
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

/// The certificate of one Secret, and the hosts it is installed for.
struct Installed {
    ingress: Ingress,
    certificate: Option<Certificate>,
    hosts: Vec<HostPattern>,
    directory: Option<Directory>,
}

impl Installed {
    fn new(ingress: Ingress, directory: Option<Directory>) -> Self {
        Self { ingress, certificate: None, hosts: Vec::new(), directory }
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
            self.ingress.set_certificate(gone, None);
        }
        self.hosts = hosts.to_vec();
        self.install();
    }

    fn install(&self) {
        let Some(certificate) = &self.certificate else { return };
        for host in &self.hosts {
            self.ingress.set_certificate(host, Some(certificate.clone()));
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
