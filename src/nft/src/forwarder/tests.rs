use std::collections::BTreeSet;
use std::io;

use nix::errno::Errno;

use super::*;
use crate::kernel::Features;
use crate::kernel::tests::in_namespace;
use crate::value::{Backends, Endpoint, Protocol, Range, ServicePort};

fn refused(errno: Errno) -> Error {
    Error::Refused { element: None, reason: None, errno: io::Error::from(errno) }
}

fn owners(count: u32) -> Vec<Owner> {
    (0..count).map(|number| Owner::Local(number.to_be_bytes().into())).collect()
}

/// Looks for `bad` among a thousand; gives what was found, and how many parts were tried.
fn search(bad: &[u32]) -> (Culprits, usize) {
    let all = owners(1000);
    let bad: BTreeSet<_> = bad.iter().map(|number| all[*number as usize]).collect();
    let mut tries = 0;
    let mut done = BTreeSet::new();
    let found = culprits(all.clone(), |part| {
        tries += 1;
        if part.iter().any(|owner| bad.contains(owner)) {
            return Err(refused(Errno::ENFILE));
        }
        done.extend(part.iter().copied());
        Ok(())
    });
    if found.unfinished.is_none() {
        let left: BTreeSet<_> = all.into_iter().filter(|owner| !done.contains(owner)).collect();
        assert_eq!(left, bad, "all others are done");
    }
    (found, tries)
}

fn names(found: &Culprits) -> Vec<Owner> {
    found.alone.iter().map(|(owner, _)| *owner).collect()
}

#[test]
fn culprits_are_found_by_halves_in_order() {
    for bad in [&[][..], &[0], &[999], &[17, 500, 501]] {
        let (found, tries) = search(bad);
        let expected: Vec<_> = bad.iter().map(|number| owners(1000)[*number as usize]).collect();
        assert_eq!(names(&found), expected);
        assert!(found.unfinished.is_none());
        assert!(tries <= 1 + bad.len() * 20, "{tries} tries for {bad:?}");
    }
}

#[test]
fn a_search_has_an_end_and_keeps_what_it_found() {
    let all: Vec<u32> = (0..1000).collect();
    let (found, tries) = search(&all);
    assert!(found.unfinished.is_some() && tries == REFUSALS_MAX + 1, "{tries} tries");
    assert!(found.alone.len() > REFUSALS_MAX / 4, "{} were found", found.alone.len());
    // One that says nothing of what is in the batch ends it.
    let ended = culprits(owners(8), |_| Err(refused(Errno::ENOMEM)));
    assert!(ended.alone.is_empty() && ended.unfinished.is_some());
}

#[test]
fn what_tells_how_the_kernel_is_is_about_nobody() {
    for errno in [Errno::ENOBUFS, Errno::ENOMEM, Errno::EINTR, Errno::EAGAIN, Errno::EBUSY] {
        assert!(!refused(errno).is_anonymous(), "{errno}");
    }
    assert!(refused(Errno::EINVAL).is_anonymous());
    assert!(!Error::Owned.is_anonymous() && !Error::Unknown.is_anonymous());
}

/// Each message of the batch is refused, and there is no room for so many answers.
#[test]
fn a_commit_whose_answer_is_lost_ends_as_desired() {
    in_namespace(|| {
        let owned = Features { owned_tables: true, ..Features::default() };
        let open = || Kernel::open().expect("nf_tables").without(owned);
        let addresses: [IpAddr; 2] = [[10, 9, 0, 1].into(), [0xfd09, 0, 0, 0, 0, 0, 0, 1].into()];
        let endpoints = addresses.map(|address| Endpoint { address, port: 80, local: true });
        let backends =
            Backends { endpoints: endpoints.into_iter().collect(), ..Backends::default() };
        let services = addresses.map(|address| {
            (ServicePort { address, protocol: Protocol::Tcp, port: 80 }, backends.clone())
        });
        let desired = Ruleset {
            services: services.into(),
            node_addresses: addresses.into(),
            bridged: addresses.map(|address| Range { address, length: 8 }).into(),
            ..Ruleset::default()
        };
        let (mut forwarder, _) = Forwarder::start(open(), desired).expect("the table");
        let delete = forwarder.table().elements().into_keys().collect();
        let empty = Batch { delete, add: Vec::new() };
        open().commit(&empty, None).expect("another empties the table");
        forwarder.kernel().shrink_receive_buffer();
        let error = forwarder.kernel().commit(&empty, None).expect_err("nothing is there");
        assert!(matches!(error, Error::Unknown), "{error}");
        forwarder.table().replace(Ruleset::default());
        let change = forwarder.flush().expect("the table");
        assert_eq!(change.resyncs, 1, "{change:?}");
        let found = forwarder.kernel().read().expect("the table");
        assert!(matches!(found, Found::Current(elements, _) if elements.is_empty()));
        assert!(forwarder.refused().is_empty());
    });
}
