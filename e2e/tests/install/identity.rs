//! A gateway speaks for itself only.

use anyhow::{Context, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use portolan_api::{GatewayReport, GatewayReportSpec, ReportShard};
use portolan_cluster::platform::NAMESPACE;
use portolan_e2e::space::Space;
use portolan_e2e::with_platform;
use serde_json::json;

const ACCOUNT: &str = "portolan-gateway";

#[tokio::test]
async fn a_gateway_writes_only_its_own_lease_and_reports() -> anyhow::Result<()> {
    with_platform("identity", async |space| {
        let gateways = gateways(space).await?;
        let [one, other, ..] = &gateways[..] else {
            anyhow::bail!("two gateways are needed, there are {}", gateways.len());
        };
        let gateway = Gateway { client: as_gateway(space, Some(one)).await? };
        gateway.patch_lease(&one.name_any()).await.context("its own Lease")?;
        gateway.write_report(&one.name_any()).await.context("its own report")?;
        for foreign in [&other.name_any(), "portolan-pool"] {
            refused(gateway.patch_lease(foreign).await, foreign)?;
            refused(gateway.delete_lease(foreign).await, foreign)?;
        }
        refused(gateway.write_report(&other.name_any()).await, "a report of another gateway")
    })
    .await
}

#[tokio::test]
async fn a_token_of_no_pod_writes_nothing() -> anyhow::Result<()> {
    with_platform("unbound", async |space| {
        let gateways = gateways(space).await?;
        let one = gateways.first().context("a gateway runs")?;
        let gateway = Gateway { client: as_gateway(space, None).await? };
        refused(gateway.patch_lease(&one.name_any()).await, "the Lease of a gateway")?;
        refused(gateway.patch_lease("").await, "a Lease without a name")?;
        refused(gateway.write_report(&one.name_any()).await, "a report")
    })
    .await
}

/// What somebody who has a gateway's token can try. Everything is a dry run.
struct Gateway {
    client: Client,
}

impl Gateway {
    async fn patch_lease(&self, name: &str) -> kube::Result<()> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), NAMESPACE);
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": name },
            "spec": { "preferredHolder": "somebody" },
        });
        let params = PatchParams { dry_run: true, ..PatchParams::apply("e2e") };
        leases.patch(name, &params, &Patch::Apply(lease)).await.map(drop)
    }

    async fn delete_lease(&self, name: &str) -> kube::Result<()> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), NAMESPACE);
        leases.delete(name, &DeleteParams { dry_run: true, ..DeleteParams::default() }).await?;
        Ok(())
    }

    async fn write_report(&self, gateway: &str) -> kube::Result<()> {
        let reports = Api::<GatewayReport>::namespaced(self.client.clone(), NAMESPACE);
        let spec = GatewayReportSpec {
            gateway: gateway.to_owned(),
            shard: ReportShard::State,
            pools: Vec::new(),
            epochs: Vec::new(),
            certificates: Vec::new(),
            unheard: Vec::new(),
        };
        let params = PostParams { dry_run: true, ..PostParams::default() };
        reports.create(&params, &GatewayReport::new("e2e-identity", spec)).await.map(drop)
    }
}

#[track_caller]
fn refused(answer: kube::Result<()>, what: &str) -> anyhow::Result<()> {
    match answer {
        Ok(()) => anyhow::bail!("{what} was written"),
        // A name that is none fails before anybody is asked.
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
        Err(error) => {
            ensure!(what == "a Lease without a name", "{what}: {error}");
            Ok(())
        }
    }
}

async fn gateways(space: &Space) -> anyhow::Result<Vec<Pod>> {
    let pods = Api::<Pod>::namespaced(space.client(), NAMESPACE);
    let of_gateways = ListParams::default().labels("app.kubernetes.io/component=gateway");
    let mut pods = pods.list(&of_gateways).await?.items;
    pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(pods)
}

/// A client with a token of the gateways' account, made for this Pod if there is one.
async fn as_gateway(space: &Space, pod: Option<&Pod>) -> anyhow::Result<Client> {
    let accounts = Api::<ServiceAccount>::namespaced(space.client(), NAMESPACE);
    let bound = pod.map(|pod| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        uid: pod.uid(),
    });
    let spec = TokenRequestSpec { bound_object_ref: bound, ..TokenRequestSpec::default() };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let params = PostParams::default();
    let answer = accounts.create_token_request(ACCOUNT, &params, &request).await?;
    let token = answer.status.context("the answer holds a token")?.token;
    let file = Kubeconfig::read_from(space.cluster().files().kubeconfig())?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    // Nothing of the administrator: its certificate would be asked first.
    config.auth_info = serde_json::from_value(json!({ "token": token }))?;
    Ok(Client::try_from(config)?)
}
