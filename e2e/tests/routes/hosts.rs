//! First come, first served; one holder; nothing is left behind.

use portolan_api::Holder;
use portolan_api::conditions::reason::HOST_CONFLICT;
use portolan_cluster::wait::until_seen;

use crate::stage::{alone, with_controller};

#[tokio::test]
async fn of_two_namespaces_that_race_one_wins_and_the_other_follows() -> anyhow::Result<()> {
    with_controller(|stage| async move {
        let (ours, theirs, host) = (&stage.ours, &stage.theirs, stage.host("shop"));
        tokio::join!(stage.apply(ours, "mine", &host), stage.apply(theirs, "yours", &host));
        let held = until_seen("the host is held", || stage.held(), |held| held.len() == 1);
        let we_won = held.await[&host].0 == format!("{ours}/mine");
        let (winner, loser) = match we_won {
            true => ((ours, "mine"), (theirs, "yours")),
            false => ((theirs, "yours"), (ours, "mine")),
        };
        stage.until_claimed(winner.0, winner.1).await;
        let message = stage.until_refused(loser.0, loser.1, HOST_CONFLICT).await;
        assert!(message.contains(winner.0.as_str()), "names the namespace: {message}");
        assert!(!message.contains(winner.1), "tells no name of another's object: {message}");

        stage.delete(winner.0, winner.1).await;
        stage.until_claimed(loser.0, loser.1).await;
        stage.until_held(&[(&host, loser.0, loser.1)]).await;
    })
    .await
}

#[tokio::test]
async fn in_one_namespace_the_older_route_holds_the_host() -> anyhow::Result<()> {
    with_controller(|stage| async move {
        let (ours, host, other) = (&stage.ours, stage.host("shop"), stage.host("other"));
        // The first by name, so that it comes first even within one second.
        stage.apply(ours, "a-older", &host).await;
        stage.apply(ours, "b-younger", &host).await;
        stage.until_claimed(ours, "a-older").await;
        let message = stage.until_refused(ours, "b-younger", HOST_CONFLICT).await;
        assert!(message.contains("Route a-older"), "{message}");

        stage.apply(ours, "a-older", &other).await;
        stage.until_held(&[(&host, ours, "b-younger"), (&other, ours, "a-older")]).await;

        stage.apply(ours, "a-older", &host).await;
        stage.until_held(&[(&host, ours, "a-older")]).await;
        stage.until_refused(ours, "b-younger", HOST_CONFLICT).await;

        stage.delete(ours, "a-older").await;
        stage.until_claimed(ours, "b-younger").await;
    })
    .await
}

#[tokio::test]
async fn a_route_made_again_holds_its_host_with_its_new_uid() -> anyhow::Result<()> {
    with_controller(|stage| async move {
        let (ours, host) = (&stage.ours, stage.host("shop"));
        let first = stage.apply(ours, "shop", &host).await;
        stage.until_claimed(ours, "shop").await;
        stage.delete(ours, "shop").await;
        let second = stage.apply(ours, "shop", &host).await;
        assert_ne!(first, second);
        let uid = || async { stage.held().await.remove(&host).map(|(_, uid)| uid) };
        until_seen("the new Route holds it", uid, |uid| uid.as_ref() == Some(&second)).await;
        stage.until_claimed(ours, "shop").await;
    })
    .await
}

#[tokio::test]
async fn two_namespaces_can_swap_their_hosts() -> anyhow::Result<()> {
    with_controller(|stage| async move {
        let (ours, theirs) = (&stage.ours, &stage.theirs);
        let (one, other) = (stage.host("one"), stage.host("other"));
        stage.apply(ours, "shop", &one).await;
        stage.apply(theirs, "shop", &other).await;
        stage.until_held(&[(&one, ours, "shop"), (&other, theirs, "shop")]).await;
        stage.apply(ours, "shop", &other).await;
        stage.until_refused(ours, "shop", HOST_CONFLICT).await;
        stage.until_held(&[(&one, ours, "shop"), (&other, theirs, "shop")]).await;
        stage.apply(theirs, "shop", &one).await;
        stage.until_held(&[(&one, theirs, "shop"), (&other, ours, "shop")]).await;
        stage.until_claimed(ours, "shop").await;
        stage.until_claimed(theirs, "shop").await;
    })
    .await
}

#[tokio::test]
async fn who_waits_for_a_host_has_it_when_its_holder_asks_in_vain_for_another() -> anyhow::Result<()>
{
    with_controller(|stage| async move {
        let (ours, theirs) = (&stage.ours, &stage.theirs);
        let (left, taken) = (stage.host("left"), stage.host("taken"));
        stage.apply(ours, "moves", &left).await;
        stage.apply(theirs, "stays", &taken).await;
        stage.until_held(&[(&left, ours, "moves"), (&taken, theirs, "stays")]).await;
        stage.apply(theirs, "waits", &left).await;
        stage.until_refused(theirs, "waits", HOST_CONFLICT).await;

        stage.apply(ours, "moves", &taken).await;
        stage.until_held(&[(&left, theirs, "waits"), (&taken, theirs, "stays")]).await;
        stage.until_refused(ours, "moves", HOST_CONFLICT).await;
    })
    .await
}

#[tokio::test]
async fn claims_whose_route_went_while_nobody_looked_are_deleted() -> anyhow::Result<()> {
    alone(|stage| async move {
        let (ours, theirs) = (&stage.ours, &stage.theirs);
        let holder = |name: &str, uid: &str| Holder {
            kind: "Route".into(),
            namespace: theirs.clone(),
            name: name.into(),
            uid: uid.into(),
        };
        let hosts = ["gone", "again", "wanted", "lives"].map(|prefix| stage.host(prefix));
        let [gone, again, wanted, lives] = &hosts;
        let elsewhere = stage.host("elsewhere");
        stage.apply(theirs, "again", &elsewhere).await;
        stage.apply(ours, "shop", wanted).await;
        let lives_uid = stage.apply(theirs, "lives", lives).await;
        stage.claim(gone, holder("gone", "uid-gone")).await;
        stage.claim(again, holder("again", "uid-before")).await;
        stage.claim(wanted, holder("gone-too", "uid-gone-too")).await;
        stage.claim(lives, holder("lives", &lives_uid)).await;

        let running = stage.start(stage.client.clone());
        let expected = [
            (wanted.as_str(), ours.as_str(), "shop"),
            (lives.as_str(), theirs.as_str(), "lives"),
            (elsewhere.as_str(), theirs.as_str(), "again"),
        ];
        stage.until_held(&expected).await;
        running.stop().await;
    })
    .await
}

#[tokio::test]
async fn a_host_that_was_reserved_by_hand_stays_so() -> anyhow::Result<()> {
    with_controller(|stage| async move {
        let (ours, host) = (&stage.ours, stage.host("reserved"));
        let holder = Holder {
            kind: "Reservation".into(),
            namespace: "kube-system".into(),
            name: "admin".into(),
            uid: "none".into(),
        };
        stage.claim(&host, holder).await;
        stage.apply(ours, "shop", &host).await;
        let message = stage.until_refused(ours, "shop", HOST_CONFLICT).await;
        assert!(message.contains("reserved"), "{message}");
        let name = portolan_api::names::claim(portolan_api::ClaimKind::Host, &host);
        stage.claims().delete(&name, &kube::api::DeleteParams::default()).await.expect("deleted");
        stage.until_claimed(ours, "shop").await;
    })
    .await
}
