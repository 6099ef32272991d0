//! Domains: who may have which host.

use portolan_api::conditions::reason::{DOMAIN_DENIED, DUPLICATE_SUFFIX};
use portolan_cluster::wait::until_seen;

use crate::stage::{Stage, with_controller};

#[tokio::test]
async fn a_domain_gives_a_host_to_its_namespaces_and_takes_it_from_others() -> anyhow::Result<()> {
    with_controller(|stage| async move {
        let (ours, theirs) = (&stage.ours, &stage.theirs);
        let (suffix, host) = (stage.host("corp"), stage.host("shop.corp"));
        stage.apply(ours, "shop", &host).await;
        stage.until_claimed(ours, "shop").await;
        stage.apply(theirs, "shop", &host).await;

        stage.domain(&suffix, &[theirs]).await;
        stage.until_claimed(theirs, "shop").await;
        let message = stage.until_refused(ours, "shop", DOMAIN_DENIED).await;
        assert!(message.contains(&format!("namespace {ours}")), "{message}");
        stage.until_held(&[(&host, theirs, "shop")]).await;

        stage.domain(&suffix, &[ours]).await;
        stage.until_claimed(ours, "shop").await;
        stage.until_refused(theirs, "shop", DOMAIN_DENIED).await;
        stage.until_held(&[(&host, ours, "shop")]).await;
    })
    .await
}

#[tokio::test]
async fn under_anothers_wildcard_only_with_a_domain() -> anyhow::Result<()> {
    with_controller(|stage| async move {
        let (ours, theirs) = (&stage.ours, &stage.theirs);
        let (wildcard, host) = (stage.host("*.wide"), stage.host("shop.wide"));
        stage.apply(theirs, "wide", &wildcard).await;
        stage.until_claimed(theirs, "wide").await;
        stage.apply(ours, "shop", &host).await;
        let message = stage.until_refused(ours, "shop", DOMAIN_DENIED).await;
        assert!(message.contains(&format!("a Domain of suffix {host}")), "{message}");

        stage.domain(&host, &[ours]).await;
        stage.until_claimed(ours, "shop").await;
        stage.until_held(&[(&wildcard, theirs, "wide"), (&host, ours, "shop")]).await;
    })
    .await
}

#[tokio::test]
async fn the_end_of_a_wildcard_frees_what_lies_under_it() -> anyhow::Result<()> {
    with_controller(|stage| async move {
        let (ours, theirs) = (&stage.ours, &stage.theirs);
        stage.apply(theirs, "wide", &stage.host("*.wide")).await;
        stage.until_claimed(theirs, "wide").await;
        stage.apply(ours, "shop", &stage.host("shop.wide")).await;
        stage.until_refused(ours, "shop", DOMAIN_DENIED).await;
        stage.delete(theirs, "wide").await;
        stage.until_claimed(ours, "shop").await;
    })
    .await
}

/// Status, reason and message of a Domain's `Ready`.
async fn ready(stage: &Stage, name: &str) -> Option<(String, String, String)> {
    let domain = stage.domains().get(name).await.expect("read");
    let ready = domain.status?.conditions.into_iter().find(|found| found.type_ == "Ready")?;
    Some((ready.status, ready.reason, ready.message))
}

#[tokio::test]
async fn of_two_domains_with_one_suffix_the_older_is_in_force() -> anyhow::Result<()> {
    with_controller(|stage| async move {
        let (ours, theirs, suffix) = (&stage.ours, &stage.theirs, stage.host("twice"));
        let older = stage.named_domain(&format!("a-{ours}"), &suffix, &[ours]).await;
        let younger = stage.named_domain(&format!("b-{ours}"), &suffix, &[theirs]).await;
        let is = |status: &'static str, reason: &'static str| {
            move |seen: &Option<(String, String, String)>| {
                seen.as_ref().is_some_and(|(is, why, _)| is == status && why == reason)
            }
        };
        until_seen("the older is accepted", || ready(&stage, &older), is("True", "Accepted")).await;
        let refused = is("False", DUPLICATE_SUFFIX);
        let seen = until_seen("the younger is not", || ready(&stage, &younger), refused).await;
        assert!(seen.is_some_and(|(_, _, message)| message.contains(&older)));
        stage.apply(ours, "shop", &suffix).await;
        stage.until_claimed(ours, "shop").await;

        stage.domains().delete(&older, &kube::api::DeleteParams::default()).await.expect("deleted");
        until_seen("the younger takes over", || ready(&stage, &younger), is("True", "Accepted"))
            .await;
        stage.until_refused(ours, "shop", DOMAIN_DENIED).await;
    })
    .await
}
