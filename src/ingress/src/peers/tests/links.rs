//! Links that come about, break, come back and are renewed.

use std::collections::BTreeSet;

use super::*;
use crate::peers::connection::{INSTANCE, PATH};
use crate::peers::exchange::Outgoing;
use crate::peers::frame::encode;
use crate::peers::verify::client_config;
use http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

async fn pair() -> (Place, Place) {
    let (a, b) = (Place::new("a").await, Place::new("b").await);
    a.sees([b.peer()]);
    b.sees([a.peer()]);
    (a, b)
}

/// Waits until so many attempts have failed and links have broken.
async fn fails(place: &Place, count: u64) {
    let failing = async {
        while place.metrics.failures() < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, failing).await.expect("it fails");
}

#[tokio::test]
async fn two_gateways_have_one_link() {
    let (a, b) = pair().await;
    assert_eq!(a.received(1).await, ["hello 1"]);
    assert_eq!(b.received(1).await, ["hello 1"]);
    assert_eq!((a.book.begun(), b.book.begun()), (1, 1));
}

#[tokio::test]
async fn a_link_that_breaks_comes_back() {
    let (a, b) = pair().await;
    a.received(1).await;
    // The process behind the address ends, and another one with the same name comes.
    drop(b);
    let again = Place::new("b").await;
    again.sees([a.peer()]);
    a.sees([again.peer()]);
    assert_eq!(a.received(2).await, ["hello 1", "hello 1"]);
    assert_eq!(again.received(1).await, ["hello 2"]);
}

#[tokio::test]
async fn either_end_notices_that_nobody_listens_any_more() {
    for is_dialler in [true, false] {
        let (a, b) = pair().await;
        a.received(1).await;
        b.received(1).await;
        let (gone, left) = if is_dialler { (a, b) } else { (b, a) };
        let (name, mut unheard) = (Arc::clone(&gone.name), left.unheard.subscribe());
        drop(gone);
        let noticed = timeout(LIMIT, unheard.wait_for(|unheard| unheard.contains(&name))).await;
        assert_eq!(noticed.expect("it is noticed").unwrap().len(), 1);
        // Its Lease is taken away.
        left.sees([]);
        let forgotten = timeout(LIMIT, unheard.wait_for(BTreeSet::is_empty)).await;
        assert!(forgotten.is_ok_and(|known| known.is_ok()), "nobody is left to be heard");
    }
}

#[tokio::test]
async fn nobody_is_missed_who_leaves() {
    let (a, b) = pair().await;
    a.received(1).await;
    let (name, peer) = b.peer();
    a.sees([(Arc::clone(&name), Peer { serves: false, ..peer })]);
    let failures = a.metrics.failures();
    drop(b);
    // The link that broke, and two attempts that failed.
    fails(&a, failures + 3).await;
    assert!(a.unheard.subscribe().borrow().is_empty());
}

#[tokio::test]
async fn nobody_is_missed_who_was_never_met() {
    let (a, b) = (Place::new("a").await, Place::new("b").await);
    let peer = b.peer();
    drop(b);
    a.sees([peer]);
    fails(&a, 3).await;
    assert!(a.unheard.subscribe().borrow().is_empty());
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_noticed() {
    let (a, b) = (Place::new("a").await, Place::new("b").await);
    // Between them stands somebody who stops passing anything on.
    let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (name, mut peer) = b.peer();
    let theirs = peer.address;
    peer.address = between.local_addr().unwrap();
    a.sees([(name, peer)]);
    b.sees([a.peer()]);
    let (mut near, _) = between.accept().await.unwrap();
    let mut far = TcpStream::connect(theirs).await.unwrap();
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => panic!("it was to be stopped"),
        _ = a.received(1) => {}
    }
    let silent = tokio::time::Instant::now();
    // The next attempt of `a` is the sign that it has given the link up.
    let _second = timeout(LIMIT, between.accept()).await.unwrap().unwrap();
    let noticed = silent.elapsed();
    assert!(noticed < Duration::from_secs(4), "noticed after {noticed:?}");
    drop((near, far));
}

#[tokio::test]
async fn a_new_certificate_replaces_the_link_before_the_old_one_ends() {
    let (a, b) = pair().await;
    a.received(1).await;
    b.received(1).await;
    for (round, which) in [(2, "dialler's"), (3, "listener's")] {
        let (changing, watching) = if round == 2 { (&a, &b) } else { (&b, &a) };
        let next = Credential::generate().unwrap();
        let (name, mut peer) = changing.peer();
        let old = peer.certificates[0].clone();
        // Published, used, and the old one withdrawn.
        peer.certificates.push(next.digest().to_string());
        watching.sees([(Arc::clone(&name), peer.clone())]);
        changing.credential.send_replace(next);
        peer.certificates.retain(|digest| *digest != old);
        if round == 3 {
            watching.sees([(name, peer)]);
        }
        assert_eq!(a.received(round).await.len(), round, "the {which}");
        assert_eq!(b.received(round).await.len(), round, "the {which}");
        assert_eq!((a.book.begun(), b.book.begun()), (round, round), "the {which}");
    }
    assert_eq!(a.metrics.failures(), 0, "no attempt failed and no link broke");
}

#[tokio::test]
async fn a_gateway_that_lives_no_more_loses_its_link() {
    let (a, b) = pair().await;
    a.received(1).await;
    b.received(1).await;
    b.sees([]);
    b.ended(1).await;
    a.ended(1).await;
    b.sees([a.peer()]);
    assert_eq!(b.received(2).await.len(), 2);
}

/// Sends `chunks` on a link of its own and returns when the other end has closed it.
async fn misbehave(place: &Place, own: &Credential, chunks: Vec<Bytes>) {
    let stream = TcpStream::connect(place.address).await.unwrap();
    let config = client_config(own, vec![place.digest()]).unwrap();
    let name = ServerName::IpAddress(place.address.ip().into());
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    let (outgoing, body) = Outgoing::new();
    let request = Request::post(format!("https://peer{PATH}")).header(INSTANCE, "a");
    let speak = async {
        let _response = sender.send_request(request.body(body).unwrap()).await;
        for chunk in chunks {
            // It may hang up at any time.
            let _ = outgoing.send(chunk).await;
        }
        pending::<()>().await;
    };
    let hung_up = async {
        tokio::select! {
            () = speak => {}
            _ = connection => {}
        }
    };
    timeout(LIMIT, hung_up).await.unwrap();
}

#[tokio::test]
async fn a_hostile_peer_is_disconnected_and_counted() {
    for chunks in [
        vec![Bytes::from_static(&[0xff; 4])],
        vec![encode(b"good"), Bytes::from_static(&[0, 16, 0, 1])],
        vec![encode(b"forbidden")],
    ] {
        let place = Place::new("b").await;
        let own = Credential::generate().unwrap();
        let certificates = vec![own.digest().to_string()];
        let peer = Peer { address: place.address, certificates, serves: true };
        place.sees([("a".into(), peer)]);
        misbehave(&place, &own, chunks).await;
        assert_eq!((place.metrics.violations(), place.book.begun()), (1, 1));
    }
}
