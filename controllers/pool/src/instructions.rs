//! What a plan costs: with ten thousand pools, most of what a pass does.

use portolan_instructions::Hot;

use crate::{
    fixture::{at, gateway, pool, sandbox, settings, situation},
    plan::plan,
};

#[test]
fn a_plan_costs_what_is_committed() {
    let hot = Hot {
        row: "pool controller: plan a pool of 3 sandboxes with 3 gateways",
        module: module_path!(),
        test: "a_plan_costs_what_is_committed",
        rounds: 1_000,
    };
    let prepare = || {
        let sandboxes = (0..3).map(|ordinal| sandbox(ordinal, 1)).collect();
        let gateways = ["gw-a", "gw-b", "gw-c"].map(|name| gateway(name, 0, 8)).into();
        (situation(pool(), sandboxes, gateways), settings())
    };
    hot.check(prepare, |(situation, settings), _| plan(situation, settings, at(5)));
}
