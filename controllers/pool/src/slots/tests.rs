use super::*;
use crate::fixture::{at, gateway, pool};

fn soft(limit: i32) -> PoolScale {
    PoolScale { requests_per_instance: Some(limit), ..pool().spec.scale }
}

fn strict(limit: i32) -> PoolScale {
    PoolScale { concurrency: Concurrency::Strict, ..soft(limit) }
}

/// Gateways by instance: `a` serves, `-a` leaves, `~a` left, `!a` is lost.
fn roster(text: &str) -> Roster {
    let gateways = text.split(',').filter(|word| !word.is_empty()).map(|word| {
        let (phase, expires) = match &word[..1] {
            "-" => (GatewayPhase::Leaving, at(15)),
            "~" => (GatewayPhase::Left, at(15)),
            "!" => (GatewayPhase::Serving, at(0)),
            _ => (GatewayPhase::Serving, at(15)),
        };
        let instance = word.trim_start_matches(['-', '~', '!']);
        Gateway { phase, expires, ..gateway(instance, 0, 0) }
    });
    Roster::of(&gateways.collect::<Vec<_>>(), at(0), at(0))
}

/// Divides; `held` and the result are annotations, `-` stands for none.
#[track_caller]
fn check(scale: &PoolScale, held: &[&str], new: usize, gateways: &str, expected: &[&str]) {
    let held: Vec<_> = held.iter().map(|text| (*text != "-").then(|| read(text))).collect();
    let divided = divide(scale, &held, new, &roster(gateways));
    let text = |grants: &Option<Grants>| grants.as_ref().map_or("-".to_owned(), render);
    let divided: Vec<_> = divided.iter().map(text).collect();
    assert_eq!(divided, expected, "{held:?} among {gateways}");
}

#[test]
fn an_annotation_is_read_as_it_was_written() {
    for text in ["", "gw-a=10", "gw-a=5,gw-b=5"] {
        assert_eq!(parse(text).map(|grants| render(&grants)).as_deref(), Some(text));
    }
    assert_eq!(parse("gw-a=0"), Some(Grants::new()), "no slot is no grant");
    for text in ["!", "gw-a", "gw-a=", "gw-a=x", "gw-a=-1", "gw-a=99999999999"] {
        assert_eq!(parse(text), None, "{text}");
    }
}

#[test]
fn new_sandboxes_are_divided_evenly_and_the_rest_goes_to_those_with_the_fewest() {
    check(&soft(10), &[], 1, "a", &["a=10"]);
    check(&soft(10), &[], 1, "a,b", &["a=5,b=5"]);
    check(&soft(10), &[], 3, "a,b,c", &["a=4,b=3,c=3", "a=3,b=4,c=3", "a=3,b=3,c=4"]);
    check(&soft(1), &[], 2, "a,b", &["a=1", "b=1"]);
    check(&soft(3), &[], 2, "a,b", &["a=2,b=1", "a=1,b=2"]);
    check(&soft(1), &["a=1"], 1, "a,b", &["a=1", "b=1"]);
    check(&strict(1), &["a=1"], 1, "a,b", &["a=1", "b=1"]);
}

#[test]
fn a_pool_without_a_limit_counts_no_slots() {
    let scale = PoolScale { requests_per_instance: None, ..soft(1) };
    check(&scale, &["-"], 2, "a", &["-", "-", "-"]);
    let boundless = "a=2147483647";
    check(&scale, &["-", "!", "a=5", ""], 0, "a", &["-", boundless, boundless, boundless]);
    check(&scale, &["a=5"], 0, "", &[""]);
    assert!(!is_broken(None, &scale, &roster("a")));
}

#[test]
fn while_no_gateway_lives_nothing_is_granted_or_taken() {
    for scale in [soft(10), strict(10)] {
        for gateways in ["", "!a,!b", "~a,!b"] {
            check(&scale, &["a=5,b=5"], 1, gateways, &["a=5,b=5", ""]);
            assert!(!is_broken(Some("a=5,b=5"), &scale, &roster(gateways)));
        }
    }
}

#[test]
fn slots_of_a_gateway_that_left_go_to_those_that_serve() {
    for scale in [soft(10), strict(10)] {
        check(&scale, &["a=5,b=5"], 0, "a,~b", &["a=10"]);
        check(&scale, &["a=5,b=5"], 0, "a,~b,c", &["a=5,c=5"]);
        check(&scale, &["a=5,b=5"], 0, "-a,~b,c", &["a=5,c=5"]);
        assert!(!is_broken(Some("a=5,b=5"), &scale, &roster("a,~b")));
    }
}

#[test]
fn soft_slots_of_a_lost_gateway_go_to_others_at_once() {
    for lost in ["a", "a,!b"] {
        check(&soft(10), &["a=5,b=5"], 0, lost, &["a=10"]);
    }
    check(&soft(10), &["", "-"], 0, "a", &["a=10", "a=10"]);
}

#[test]
fn a_gateway_that_leaves_keeps_its_slots_and_gets_none() {
    for scale in [soft(10), strict(10)] {
        check(&scale, &["a=5,b=5"], 1, "a,-b", &["a=5,b=5", "a=10"]);
        check(&scale, &["a=5,b=5"], 1, "-a,-b", &["a=5,b=5", "a=5,b=5"]);
    }
}

#[test]
fn no_slot_moves_between_living_gateways() {
    for scale in [soft(10), strict(10)] {
        check(&scale, &["a=10"], 0, "a,b", &["a=10"]);
        check(&scale, &["a=9,b=1"], 0, "a,b,c", &["a=9,b=1"]);
    }
}

#[test]
fn soft_slots_that_somebody_edited_are_divided_anew() {
    for edited in ["!", "", "a=500", "a=1,b=1", "a=9,b=9", "evil=10"] {
        check(&soft(10), &[edited], 0, "a,b", &["a=5,b=5"]);
    }
    check(&soft(20), &["a=5,b=5"], 0, "a,b", &["a=10,b=10"]);
}

#[test]
fn strict_slots_that_nobody_holds_are_given_out() {
    check(&strict(10), &[""], 0, "a,b", &["a=5,b=5"]);
    check(&strict(10), &["a=7"], 0, "a,b", &["a=7,b=3"]);
}

#[test]
fn a_strict_sandbox_is_broken_when_its_slots_cannot_be_proven_free() {
    for (text, gateways, broken) in [
        (Some("a=5,b=5"), "a,b", false),
        (Some("a=5,b=5"), "a,b,c", false),
        (Some("a=5,b=5"), "a,-b", false),
        (Some("a=5,b=5"), "a", true),
        (Some("a=5,b=5"), "a,!b", true),
        (Some("a=10,b=0"), "a", false),
        (Some("a=11"), "a", true),
        (Some("!"), "a", true),
        (None, "a", true),
        (Some(""), "a", false),
    ] {
        let roster = roster(gateways);
        assert_eq!(is_broken(text, &strict(10), &roster), broken, "{text:?} with {gateways}");
        assert!(!is_broken(text, &soft(10), &roster), "Soft is never broken");
    }
}

#[test]
fn a_gateway_whose_lease_was_perhaps_not_seen_is_not_lost() {
    let early = Roster::of(&[gateway("a", 0, 0)], at(15), at(14));
    let late = Roster::of(&[gateway("a", 0, 0)], at(14), at(14));
    let text = "a=5,b=5";
    assert!(early.expects(text) && !late.expects(text) && !early.expects("a=10"));
    assert!(!is_broken(Some(text), &strict(10), &early));
    assert!(is_broken(Some(text), &strict(10), &late));
    let held = [Some(read(text))];
    assert_eq!(divide(&soft(10), &held, 0, &early), held);
    assert_eq!(divide(&soft(10), &held, 0, &late), [Some(read("a=10"))]);
}

/// Two gateways are replaced in turn: the new one comes, the old one leaves and has left.
#[test]
fn twenty_rolling_restarts_in_order_replace_no_sandbox() {
    for limit in [1, 2, 3, 10] {
        let scale = strict(limit);
        let mut grants = divide(&scale, &[], 3, &roster("g00,g01"));
        for old in 0..40 {
            let (old, stays, new) = (format!("g{old:02}"), old + 1, old + 2);
            for fate in ["", "-", "~"] {
                let roster = roster(&format!("{fate}{old},g{stays:02},g{new:02}"));
                for held in &grants {
                    let text = held.as_ref().map(render);
                    assert!(!is_broken(text.as_deref(), &scale, &roster), "{text:?} {old}");
                }
                grants = divide(&scale, &grants, 0, &roster);
                for held in grants.iter().flatten() {
                    assert_eq!(sum(held), i64::from(limit));
                }
                assert_eq!(divide(&scale, &grants, 0, &roster), grants, "the next pass is empty");
            }
            let gone = |held: &Grants| !held.contains_key(&old);
            assert!(grants.iter().flatten().all(gone), "{old} has left: {grants:?}");
        }
    }
}

#[test]
fn no_sandbox_grants_more_than_its_limit() {
    use proptest::prelude::*;
    let grants = prop::collection::btree_map("[abc]", 1..8_i32, 0..3);
    let situation = (
        1..12_i32,
        any::<bool>(),
        prop::collection::vec(prop::option::of(grants), 0..4),
        0..4_usize,
        prop::collection::btree_map("[abcd]", "[-~!]?", 0..4),
    );
    proptest!(|((limit, is_strict, held, new, gateways) in situation)| {
        let scale = if is_strict { strict(limit) } else { soft(limit) };
        let words: Vec<_> = gateways.iter().map(|(name, fate)| format!("{fate}{name}")).collect();
        let roster = roster(&words.join(","));
        let text = |grants: &Option<Grants>| grants.as_ref().map(render);
        let held: Vec<_> = held
            .into_iter()
            .filter(|grants| !is_broken(text(grants).as_deref(), &scale, &roster))
            .collect();
        let divided = divide(&scale, &held, new, &roster);
        prop_assert_eq!(divided.len(), held.len() + new);
        if !roster.takers().is_empty() {
            for grants in divided.iter().flatten() {
                prop_assert_eq!(sum(grants), i64::from(limit), "{:?}", grants);
            }
        }
        prop_assert_eq!(divide(&scale, &divided, 0, &roster), divided, "it rests at once");
    });
}
