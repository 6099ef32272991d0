use std::net::IpAddr;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::element::{Data, Element};
use crate::value::Family;
use crate::wire::Complaint;

#[test]
fn an_answer_that_is_lost_leaves_the_outcome_unknown() {
    in_namespace(|| {
        let mut kernel = Kernel::open().expect("nf_tables");
        kernel.install(&[]).expect("the table");
        kernel.shrink_receive_buffer();
        // Each of the sets has an element too few, so each message is answered.
        let delete = Set::all().filter(|set| set.key().len() == 1).map(|set| match set {
            Set::Bridged(family) | Set::Local(family) | Set::Virtual(family) => {
                Element::address(set, address(family))
            }
            Set::NodeAddresses(family) => Element::address(set, address(family)),
            other => unreachable!("{other} has a longer key"),
        });
        let batch = Batch { delete: delete.collect(), add: Vec::new() };
        let error = kernel.commit(&batch, None).expect_err("nothing is there");
        assert!(matches!(error, Error::Unknown), "{error}");
        assert!(error.asks_for_reading());
        let found = kernel.read().expect("the table");
        assert!(matches!(found, Found::Current(elements, _) if elements.is_empty()));
    });
}

#[test]
fn silence_is_success_where_the_kernel_does_not_prove_it() {
    in_namespace(|| {
        let silent = Features { proves_commits: true, ..Features::default() };
        let mut kernel = Kernel::open().expect("nf_tables").without(silent);
        kernel.install(&[]).expect("the table");
        let element = Element::address(Set::Virtual(Family::V4), address(Family::V4));
        let add = vec![(element, Data::EMPTY)];
        let batch = Batch { delete: Vec::new(), add };
        kernel.commit(&batch, None).expect("the batch");
        let error = kernel.commit(&batch, None).expect_err("it is there");
        assert!(matches!(error, Error::Refused { element: Some(e), .. } if e == element));
    });
}

#[test]
fn a_batch_larger_than_any_default_buffer_is_one_commit_and_read_whole() {
    for uncounted in [false, true] {
        in_namespace(|| {
            let without = Features { counts_elements: uncounted, ..Features::default() };
            let mut kernel = Kernel::open().expect("nf_tables").without(without);
            kernel.install(&[]).expect("the table");
            let before = kernel.generation().expect("a generation");
            let elements = (0..60_000_u32).map(|n| {
                let address = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
                (Element::address(Set::Local(Family::V4), address), Data::EMPTY)
            });
            let batch = Batch { delete: Vec::new(), add: elements.collect() };
            kernel.commit(&batch, None).expect("the batch");
            assert_eq!(kernel.generation().expect("a generation"), before + 1);
            // The kernel now moves the set to a larger table, while it is read.
            let Found::Current(found, _) = kernel.read().expect("the table") else { panic!() };
            assert_eq!(found.len(), 60_000, "without counts: {uncounted}");
        });
    }
}

#[test]
fn each_complaint_of_the_kernel_has_its_meaning() {
    let complaint = |errno: Errno| Complaint {
        sequence: 1,
        errno: errno as i32,
        text: Some("because".to_owned()),
        offset: None,
    };
    let cases = [
        (Errno::ERESTART, "Stale", true),
        (Errno::EPERM, "Owned", false),
        (Errno::EEXIST, "Refused", true),
        (Errno::ENOENT, "Refused", true),
        (Errno::EINVAL, "Refused", false),
    ];
    for (errno, category, reads) in cases {
        let error = explain(&[], complaint(errno));
        assert_eq!((error.category(), error.asks_for_reading()), (category, reads), "{errno}");
    }
    let error = explain(&[], complaint(Errno::EINVAL)).to_string();
    assert_eq!(error, "nf_tables refuses a batch: because");
}

fn address(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 1, 1, 1].into(),
        Family::V6 => [0xfd01, 0, 0, 0, 0, 0, 0, 1].into(),
    }
}

/// Runs in a network namespace that is gone afterwards.
pub(crate) fn in_namespace(f: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("the privilege to make network namespaces");
            f();
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
