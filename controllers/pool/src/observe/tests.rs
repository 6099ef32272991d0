use portolan_api::SandboxPoolStatus;

use super::*;
use crate::{
    fixture::{at, pool},
    scale,
};

#[test]
fn a_packed_pool_is_the_pool() {
    let mut pool = pool();
    pool.status = Some(SandboxPoolStatus {
        incarnation: 7,
        last_activity: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0))),
        ..SandboxPoolStatus::default()
    });
    let packed = Packed::of(pool.clone()).expect("every pool is kept");
    assert_eq!(packed.unpack(), pool);
}

#[test]
fn what_is_remembered_belongs_to_one_pool() {
    let (memory, first) = (Memory::default(), pool());
    let mut second = pool();
    second.metadata.uid = Some("uid-of-the-next".to_owned());
    let key = ObjectKey::of(&first);
    let demand = [1];
    let input = scale::Input {
        role: first.spec.role,
        scale: &first.spec.scale,
        floor: 0,
        replicas: 1,
        woken: 0,
        demand: &demand,
        waits: true,
        is_stale: false,
        reported: None,
        stored: None,
        history: None,
    };
    let history = scale::decide(&input, at(0)).history;
    assert!(history.is_some(), "a busy pool is remembered");
    let with_history = Remembered { history: history.clone(), ..Remembered::default() };
    memory.keep(&first, with_history);
    let uid = first.metadata.uid.as_deref();
    assert_eq!(memory.recall(&key, uid).and_then(|pool| pool.history), history);
    assert_eq!(memory.recall(&key, second.metadata.uid.as_deref()), None, "same name, other pool");
    memory.keep(&first, Remembered { incarnation: 7, ..Remembered::default() });
    assert_eq!(memory.recall(&key, uid).map(|pool| pool.incarnation), Some(7));
    memory.keep(&first, Remembered::default());
    assert_eq!(memory.recall(&key, uid), None);
}
