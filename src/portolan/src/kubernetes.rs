//! The connection to the API server.

use anyhow::Context as _;
use kube::Client;

/// A client from the Pod's service account, else from the kubeconfig.
pub(crate) async fn client() -> anyhow::Result<Client> {
    // One provider for the whole process, chosen before anything makes a connection.
    let _already_chosen = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::try_default().await.context("connect to the API server")
}
