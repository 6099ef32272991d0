use super::*;
use crate::fixture::pool;

fn soft(limit: i32) -> PoolScale {
    PoolScale { requests_per_instance: Some(limit), ..pool().spec.scale }
}

fn strict(limit: i32) -> PoolScale {
    PoolScale { concurrency: Concurrency::Strict, ..soft(limit) }
}

/// Gateways as `name=requests`.
fn holders(text: &str) -> Vec<Holder> {
    let grants = parse(text).expect("the table is readable");
    grants.into_iter().map(|(name, count)| Holder { name, demand: count.into() }).collect()
}

/// Divides; `held` and the result are annotations, `-` stands for none.
#[track_caller]
fn check(scale: &PoolScale, held: &[&str], new: usize, gateways: &str, expected: &[&str]) {
    let held: Vec<_> = held.iter().map(|text| (*text != "-").then(|| read(text))).collect();
    let divided = divide(scale, &held, new, &holders(gateways));
    let text = |grants: &Option<Grants>| grants.as_ref().map_or("-".to_owned(), render);
    let divided: Vec<_> = divided.iter().map(text).collect();
    assert_eq!(divided, expected, "{held:?} among {gateways}");
}

#[test]
fn an_annotation_is_read_as_it_was_written() {
    for text in ["", "gw-a=10", "gw-a=5,gw-b=5", "gw-a=0"] {
        assert_eq!(parse(text).map(|grants| render(&grants)).as_deref(), Some(text));
    }
    for text in ["!", "gw-a", "gw-a=", "gw-a=x", "gw-a=-1", "gw-a=99999999999"] {
        assert_eq!(parse(text), None, "{text}");
    }
}

#[test]
fn new_sandboxes_are_divided_evenly_and_the_rest_goes_to_those_with_the_fewest() {
    check(&soft(10), &[], 1, "a=0", &["a=10"]);
    check(&soft(10), &[], 1, "a=0,b=0", &["a=5,b=5"]);
    check(&soft(10), &[], 3, "a=0,b=0,c=0", &["a=4,b=3,c=3", "a=3,b=4,c=3", "a=3,b=3,c=4"]);
    check(&soft(1), &[], 2, "a=0,b=0", &["a=1,b=0", "a=0,b=1"]);
    check(&soft(1), &["a=1,b=0"], 1, "a=0,b=0", &["a=1,b=0", "a=0,b=1"]);
    check(&strict(1), &["a=1"], 1, "a=0,b=0", &["a=1,b=0", "a=0,b=1"]);
}

#[test]
fn a_pool_without_a_limit_counts_no_slots() {
    let scale = PoolScale { requests_per_instance: None, ..soft(1) };
    check(&scale, &["-"], 2, "a=9", &["-", "-", "-"]);
    check(
        &scale,
        &["-", "!", "a=5", ""],
        0,
        "a=9",
        &["-", "a=2147483647", "a=2147483647", "a=2147483647"],
    );
    check(&scale, &["a=5"], 0, "", &[""]);
    assert!(!is_broken(None, &scale, &holders("a=0")));
}

#[test]
fn while_no_gateway_lives_nothing_is_granted_or_taken() {
    for scale in [soft(10), strict(10)] {
        check(&scale, &["a=5,b=5"], 1, "", &["a=5,b=5", ""]);
        assert!(!is_broken(Some("a=5,b=5"), &scale, &[]));
    }
}

#[test]
fn soft_slots_follow_the_gateways() {
    check(&soft(10), &["a=5,b=5"], 0, "a=0", &["a=10"]);
    check(&soft(10), &["a=10"], 0, "a=0,b=0", &["a=5,b=5"]);
    check(&soft(10), &["a=5,b=5"], 0, "a=0,c=0", &["a=5,c=5"]);
    check(&soft(10), &["", "-"], 0, "a=0", &["a=10", "a=10"]);
}

#[test]
fn a_gateway_that_joins_gets_no_slot_that_is_in_use() {
    check(&soft(10), &["a=10"], 0, "a=8,b=0", &["a=8,b=2"]);
    check(&soft(10), &["a=10"], 0, "a=10,b=0", &["a=10,b=0"]);
    check(&soft(10), &["a=10", "a=10"], 0, "a=17,b=0", &["a=7,b=3", "a=10,b=0"]);
    check(&soft(10), &["a=8,b=2"], 0, "a=8,b=0,c=0", &["a=8,b=2,c=0"]);
    check(&soft(9), &["a=5,b=4"], 0, "a=0,b=0,c=0", &["a=3,b=3,c=3"]);
}

#[test]
fn soft_slots_that_somebody_edited_are_divided_anew() {
    for edited in ["!", "", "a=500", "a=1,b=1", "a=9,b=9", "evil=10"] {
        check(&soft(10), &[edited], 0, "a=0,b=0", &["a=5,b=5"]);
    }
    check(&soft(20), &["a=5,b=5"], 0, "a=0,b=0", &["a=10,b=10"]);
}

#[test]
fn an_uneven_division_stays_while_it_does() {
    check(&soft(10), &["a=9,b=1"], 0, "a=0,b=0", &["a=9,b=1"]);
    check(&soft(10), &["a=9,b=1"], 0, "a=0,b=1", &["a=9,b=1"]);
}

#[test]
fn unused_slots_move_to_the_gateway_that_needs_them() {
    check(&soft(10), &["a=5,b=5"], 0, "a=6,b=0", &["a=8,b=2"]);
    check(&soft(10), &["a=5,b=5"], 0, "a=6,b=4", &["a=6,b=4"]);
    check(&soft(10), &["a=5,b=5"], 0, "a=9,b=0", &["a=9,b=1"]);
    check(&soft(10), &["a=5,b=5"], 0, "a=99,b=3", &["a=7,b=3"]);
    check(&soft(10), &["a=5,b=5"], 0, "a=6,b=5", &["a=5,b=5"]);
    check(&soft(1), &["a=1,b=0"], 0, "a=0,b=1", &["a=0,b=1"]);
    check(&soft(1), &["a=1,b=0"], 0, "a=1,b=1", &["a=1,b=0"]);
}

#[test]
fn slots_move_on_new_sandboxes_before_old_ones() {
    check(&soft(4), &["a=2,b=2"], 1, "a=6,b=0", &["a=2,b=2", "a=4,b=0"]);
    check(&soft(4), &["a=2,b=2"], 1, "a=7,b=0", &["a=3,b=1", "a=4,b=0"]);
}

#[test]
fn strict_slots_stay_where_they_are() {
    check(&strict(10), &["a=5,b=5"], 0, "a=99,b=0", &["a=5,b=5"]);
    check(&strict(10), &["a=10"], 0, "a=0,b=5", &["a=10,b=0"]);
}

#[test]
fn strict_slots_that_nobody_holds_are_given_out() {
    check(&strict(10), &[""], 0, "a=0,b=0", &["a=5,b=5"]);
    check(&strict(10), &["a=7"], 0, "a=0,b=0", &["a=7,b=3"]);
}

#[test]
fn a_strict_sandbox_is_broken_when_its_slots_cannot_be_proven_free() {
    for (text, gateways, broken) in [
        (Some("a=5,b=5"), "a=0,b=0", false),
        (Some("a=5,b=5"), "a=0,b=0,c=0", false),
        (Some("a=5,b=5"), "a=0", true),
        (Some("a=10,b=0"), "a=0", false),
        (Some("a=11"), "a=0", true),
        (Some("!"), "a=0", true),
        (None, "a=0", true),
        (Some(""), "a=0", false),
    ] {
        let holders = holders(gateways);
        assert_eq!(is_broken(text, &strict(10), &holders), broken, "{text:?} with {gateways}");
        assert!(!is_broken(text, &soft(10), &holders), "Soft is never broken");
    }
}

#[test]
fn no_sandbox_grants_more_than_its_limit() {
    use proptest::prelude::*;
    let grants = prop::collection::btree_map("[abc]", 0..8_i32, 0..3);
    let situation = (
        1..12_i32,
        any::<bool>(),
        prop::collection::vec(prop::option::of(grants), 0..4),
        0..4_usize,
        prop::collection::btree_map("[abcd]", 0..20_i64, 0..4),
    );
    proptest!(|((limit, is_strict, held, new, gateways) in situation)| {
        let scale = if is_strict { strict(limit) } else { soft(limit) };
        let holders: Vec<_> =
            gateways.into_iter().map(|(name, demand)| Holder { name, demand }).collect();
        let text = |grants: &Option<Grants>| grants.as_ref().map(render);
        let held: Vec<_> = held
            .into_iter()
            .filter(|grants| !is_broken(text(grants).as_deref(), &scale, &holders))
            .collect();
        let divided = divide(&scale, &held, new, &holders);
        prop_assert_eq!(divided.len(), held.len() + new);
        if !holders.is_empty() {
            for grants in divided.iter().flatten() {
                prop_assert_eq!(grants.values().sum::<i32>(), limit, "{:?}", grants);
            }
        }
        prop_assert!(settle(&scale, divided, &holders), "slots keep moving although nothing changes");
    });
}

/// Whether dividing again and again comes to rest: each move at least halves what is unused.
fn settle(scale: &PoolScale, mut held: Vec<Option<Grants>>, holders: &[Holder]) -> bool {
    (0..8).any(|_| {
        let next = divide(scale, &held, 0, holders);
        let rests = next == held;
        held = next;
        rests
    })
}
