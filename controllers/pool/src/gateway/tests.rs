use super::*;
use crate::fixture::{at, gateway, yaml};

fn report(shard: &str, pools: &str) -> Option<ReportView> {
    ReportView::of(yaml(&format!(
        "
apiVersion: portolan.dev/v1alpha1
kind: GatewayReport
metadata: {{ name: gw-a, namespace: portolan-system }}
spec: {{ gateway: gw-a, shard: {shard}, pools: [ {pools} ] }}
"
    )))
}

#[test]
fn a_gateway_lives_strictly_before_its_lease_lapses() {
    let serving = gateway("gw-a", 0, 0);
    assert!(serving.is_live(at(14)));
    assert!(!serving.is_live(at(15)));
}

#[test]
fn a_gateway_that_leaves_lives_until_it_has_left() {
    let phase = |phase| Gateway { phase, ..gateway("gw-a", 0, 0) };
    assert!(phase(GatewayPhase::Leaving).is_live(at(0)));
    assert!(!phase(GatewayPhase::Left).is_live(at(0)));
}

#[test]
fn only_the_shard_of_demand_is_kept() {
    assert_eq!(report("State", ""), None);
    let view = report(
        "Demand",
        "{ namespace: team-a, name: p, queued: 2, running: 3, lastActivity: 2027-01-15T08:00:00.5Z,
           draining: [ { pod: p-0-1, epoch: 7, running: 1 } ], retired: [ p-1-2 ] }",
    );
    let demand = Demand {
        queued: 2,
        running: 3,
        last_activity: Some("2027-01-15T08:00:00.5Z".parse().unwrap()),
        draining: vec![DrainReport { pod: "p-0-1".to_owned(), epoch: 7, running: 1 }],
        retired: vec!["p-1-2".to_owned()],
    };
    let pools = HashMap::from([(ObjectKey::new("team-a", "p"), demand)]);
    assert_eq!(view, Some(ReportView { gateway: "gw-a".to_owned(), pools }));
}

#[test]
fn a_change_concerns_only_the_pools_whose_numbers_changed() {
    let (p, q, r) = (
        "{ namespace: team-a, name: p, queued: 1 }",
        "{ namespace: team-a, name: q, running: 1 }",
        "{ namespace: team-b, name: p, queued: 1 }",
    );
    let before = report("Demand", &format!("{p}, {q}"));
    let after = report("Demand", &format!("{p}, {}, {r}", q.replace("running: 1", "running: 2")));
    let changed = |old: &Option<ReportView>, new: &Option<ReportView>| {
        let keys = ReportView::changed(old.as_ref(), new.as_ref());
        keys.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(changed(&before, &after), ["team-a/q", "team-b/p"]);
    assert_eq!(changed(&after, &None), ["team-a/p", "team-a/q", "team-b/p"]);
    assert!(changed(&after, &after).is_empty());
}

#[test]
fn counts_below_zero_are_none() {
    let demand = Demand { queued: -5, running: 2, ..Demand::default() };
    assert_eq!(demand.total(), 2);
    let vast = Demand { queued: i64::MAX, running: i64::MAX, ..Demand::default() };
    assert_eq!(vast.total(), i64::MAX);
}

#[test]
fn shards_of_one_gateway_add_up() {
    let mut sum = Demand { queued: 1, last_activity: Some(at(5)), ..Demand::default() };
    sum.add(&Demand { queued: 2, running: 3, last_activity: Some(at(4)), ..Demand::default() });
    let expected =
        Demand { queued: 3, running: 3, last_activity: Some(at(5)), ..Demand::default() };
    assert_eq!(sum, expected);
}
