//! Who may do what, asked of the API server.

use anyhow::{Context, ensure};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use portolan_cluster::platform::NAMESPACE;
use portolan_e2e::space::Space;
use portolan_e2e::with_platform;

#[tokio::test]
async fn processes_may_do_their_work_and_no_more() -> anyhow::Result<()> {
    with_platform("processes", async |space| {
        let team = space.namespace();
        for (process, allowed, verb, resource, namespace) in [
            ("controller", true, "create", "pods", team),
            ("controller", true, "patch", "apps.portolan.dev/status", team),
            ("controller", true, "patch", "sandboxpools.portolan.dev/scale", team),
            ("controller", false, "patch", "apps.portolan.dev", team),
            ("controller", false, "patch", "routes.portolan.dev", team),
            ("controller", false, "patch", "claims.portolan.dev", ""),
            ("controller", false, "get", "secrets", team),
            ("controller", false, "list", "secrets", NAMESPACE),
            ("controller", false, "create", "pods/exec", team),
            ("controller", false, "create", "serviceaccounts/token", team),
            ("controller", false, "list", "nodes", ""),
            ("controller", true, "create", "leases.coordination.k8s.io", NAMESPACE),
            ("controller", false, "create", "leases.coordination.k8s.io", team),
            ("controller", false, "patch", "deployments.apps", NAMESPACE),
            ("gateway", true, "watch", "routes.portolan.dev", team),
            ("gateway", true, "create", "gatewayreports.portolan.dev", NAMESPACE),
            ("gateway", false, "create", "gatewayreports.portolan.dev", team),
            ("gateway", true, "watch", "leases.coordination.k8s.io", NAMESPACE),
            ("gateway", false, "delete", "leases.coordination.k8s.io", NAMESPACE),
            ("gateway", false, "watch", "leases.coordination.k8s.io", team),
            ("gateway", false, "patch", "routes.portolan.dev/status", team),
            ("gateway", false, "delete", "pods", team),
            ("gateway", false, "get", "secrets", team),
            ("gateway", false, "get", "secrets", NAMESPACE),
            ("gateway", false, "list", "appversions.portolan.dev", team),
            ("gateway", false, "create", "claims.portolan.dev", ""),
        ] {
            let user = format!("system:serviceaccount:{NAMESPACE}:portolan-{process}");
            check(space, Subject::User(&user), allowed, verb, resource, namespace).await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
async fn teams_write_apps_and_routes_of_their_namespace_only() -> anyhow::Result<()> {
    with_platform("teams", async |space| {
        let team = space.namespace();
        for role in ["admin", "edit", "view"] {
            let binding = format!("--group={team}-{role}");
            let name = format!("e2e-{role}");
            let clusterrole = format!("--clusterrole={role}");
            space.kubectl(&["create", "rolebinding", &name, &clusterrole, &binding]).await?;
        }
        for (role, allowed, verb, resource, namespace) in [
            ("edit", true, "create", "apps.portolan.dev", team),
            ("edit", true, "delete", "routes.portolan.dev", team),
            ("admin", true, "patch", "apps.portolan.dev", team),
            ("view", true, "list", "apps.portolan.dev", team),
            ("view", true, "watch", "sandboxpools.portolan.dev", team),
            ("view", false, "create", "apps.portolan.dev", team),
            ("edit", false, "create", "apps.portolan.dev", "default"),
            ("edit", false, "create", "appversions.portolan.dev", team),
            ("edit", false, "patch", "sandboxpools.portolan.dev", team),
            ("edit", false, "patch", "apps.portolan.dev/status", team),
            ("admin", false, "create", "claims.portolan.dev", ""),
            ("admin", false, "create", "domains.portolan.dev", ""),
            ("admin", false, "list", "gatewayreports.portolan.dev", NAMESPACE),
        ] {
            let group = format!("{team}-{role}");
            check(space, Subject::Group(&group), allowed, verb, resource, namespace).await?;
        }
        Ok(())
    })
    .await
}

#[derive(Clone, Copy, Debug)]
enum Subject<'a> {
    User(&'a str),
    Group(&'a str),
}

/// `resource` is `plural.group/subresource`; an empty namespace is the cluster.
async fn check(
    space: &Space,
    subject: Subject<'_>,
    allowed: bool,
    verb: &str,
    resource: &str,
    namespace: &str,
) -> anyhow::Result<()> {
    let (kind, subresource) = match resource.split_once('/') {
        Some((kind, subresource)) => (kind, Some(subresource.to_owned())),
        None => (resource, None),
    };
    let (plural, group) = kind.split_once('.').unwrap_or((kind, ""));
    let attributes = ResourceAttributes {
        verb: Some(verb.to_owned()),
        resource: Some(plural.to_owned()),
        group: Some(group.to_owned()),
        subresource,
        namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()),
        ..ResourceAttributes::default()
    };
    let mut spec = SubjectAccessReviewSpec {
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    match subject {
        Subject::User(name) => spec.user = Some(name.to_owned()),
        Subject::Group(name) => spec.groups = Some(vec![name.to_owned()]),
    }
    let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
    let reviews = Api::<SubjectAccessReview>::all(space.client());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    let answer = answer.status.context("a review has an answer")?;
    ensure!(
        answer.allowed == allowed,
        "{subject:?} {} {verb} {resource} in {namespace:?}",
        if answer.allowed { "may" } else { "may not" },
    );
    Ok(())
}
