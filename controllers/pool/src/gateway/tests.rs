use super::*;
use crate::fixture::{at, yaml};

fn lease(renewed: &str) -> Option<LeaseView> {
    LeaseView::of(yaml(&format!(
        "
metadata: {{ name: gw-a, namespace: portolan-system }}
spec: {{ holderIdentity: gw-a, leaseDurationSeconds: 15{renewed} }}
"
    )))
}

fn renewed_at(second: i64) -> LeaseView {
    lease(&format!(", renewTime: \"{}\"", at(second))).expect("it is taken")
}

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
fn a_lease_holds_from_its_renewal() {
    assert_eq!(renewed_at(0).expires, at(15));
    assert_eq!(renewed_at(0).gateway, "gw-a");
    assert_eq!(lease(""), None, "nobody has taken it");
}

#[test]
fn a_gateway_lives_strictly_before_its_lease_lapses() {
    let gateway = Gateway { name: "gw-a".into(), expires: at(15), demand: Demand::default() };
    assert!(gateway.is_live(at(14)));
    assert!(!gateway.is_live(at(15)));
}

#[test]
fn a_renewal_in_time_concerns_nobody() {
    let (first, second, late) = (renewed_at(0), renewed_at(14), renewed_at(15));
    assert!(LeaseView::came_or_went(None, Some(&first)));
    assert!(LeaseView::came_or_went(Some(&first), None));
    assert!(!LeaseView::came_or_went(Some(&first), Some(&second)));
    assert!(LeaseView::came_or_went(Some(&first), Some(&late)), "it had lapsed");
}

#[test]
fn only_the_shard_of_demand_is_kept() {
    assert_eq!(report("State", ""), None);
    let view = report(
        "Demand",
        "{ namespace: team-a, name: p, queued: 2, running: 3, lastActivity: 2027-01-15T08:00:00.5Z,
           draining: [ { pod: p-0-1, epoch: 7, running: 1 } ] }",
    );
    let demand = Demand {
        queued: 2,
        running: 3,
        last_activity: Some("2027-01-15T08:00:00.5Z".parse().unwrap()),
        draining: vec![DrainReport { pod: "p-0-1".to_owned(), epoch: 7, running: 1 }],
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
