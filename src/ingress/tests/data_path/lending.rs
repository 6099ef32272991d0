//! Two gateways and one program: slots go where the requests are.

use std::time::Duration;

use portolan_ingress::{Concurrency, Link, Message, PeerEnd, SandboxPhase, Slots};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::client::{Reply, fetch, get, send};
use crate::gateway::{App, Gateway, soon, until};
use crate::program::Program;

/// Two gateways that are connected, and the app as each of them knows it.
struct Pair {
    gateways: [Gateway; 2],
    apps: [App; 2],
    wire: Option<JoinHandle<()>>,
}

impl Pair {
    fn new(program: &Program, concurrency: Concurrency, granted: [u32; 2]) -> Self {
        let gateways = [Gateway::start(), Gateway::start()];
        let apps = [0, 1].map(|number: usize| {
            let app = gateways[number].app("shop", program.address.port());
            app.configure(&app.pool, program.address.port(), |config| {
                config.concurrency = concurrency;
            });
            let slots = Slots::Limited(granted[number]);
            app.sandbox("one", program.address.ip(), SandboxPhase::Ready, slots);
            app
        });
        let mut pair = Self { gateways, apps, wire: None };
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        let [first, second] = &self.gateways;
        let ends = (first.ingress.link("second".into()), second.ingress.link("first".into()));
        self.wire = Some(tokio::spawn(carry(ends.0, ends.1)));
    }

    /// The connection is gone.
    async fn cut(&mut self) {
        let wire = self.wire.take().expect("there is a connection");
        wire.abort();
        let _ = wire.await;
    }

    /// Sends so many requests to one of them.
    fn requests(&self, number: usize, count: usize, path: &str) -> Vec<JoinHandle<u16>> {
        let http = self.gateways[number].http;
        let request = || {
            let path = path.to_owned();
            tokio::spawn(async move { fetch(http, get(&path)).await.status.as_u16() })
        };
        (0..count).map(|_| request()).collect()
    }
}

async fn answered(requests: Vec<JoinHandle<u16>>) {
    for request in requests {
        assert_eq!(soon("an answer", request).await.unwrap(), 200);
    }
}

/// Carries messages both ways until one end refuses.
async fn carry(mut first: Link, mut second: Link) {
    let ((to_second, mut from_first), (to_first, mut from_second)) =
        (mpsc::channel(1), mpsc::channel(1));
    let one = async {
        loop {
            tokio::select! {
                Ok((room, message)) = next(&mut first, &to_second) => room.send(message),
                Some(message) = from_second.recv() => first.take(message).unwrap(),
            }
        }
    };
    let other = async {
        loop {
            tokio::select! {
                Ok((room, message)) = next(&mut second, &to_first) => room.send(message),
                Some(message) = from_first.recv() => second.take(message).unwrap(),
            }
        }
    };
    tokio::join!(one, other);
}

async fn next<'a>(
    link: &mut Link,
    to: &'a mpsc::Sender<Message>,
) -> Result<(mpsc::Permit<'a, Message>, Message), mpsc::error::SendError<()>> {
    let room = to.reserve().await?;
    Ok((room, link.next().await))
}

#[tokio::test]
async fn one_strict_slot_serves_both_gateways() {
    let program = Program::start().await;
    let pair = Pair::new(&program, Concurrency::Strict, [0, 1]);
    answered(pair.requests(0, 1, "/echo")).await;
    let begun = Instant::now();
    let (here, there) = (pair.requests(0, 50, "/echo"), pair.requests(1, 50, "/echo"));
    answered(here).await;
    answered(there).await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?} for 100", begun.elapsed());
    assert_eq!(program.peak(), 1, "never two at once");
}

#[tokio::test]
async fn all_slots_of_a_sandbox_are_there_for_one_gateway() {
    let program = Program::start().await;
    let mut pair = Pair::new(&program, Concurrency::Soft, [5, 5]);
    let requests = pair.requests(0, 10, "/hold");
    program.begins(10).await;
    pair.apps[0].reaches(0, 10).await;
    // What runs goes on when the connection breaks, and nobody else runs in its place.
    pair.cut().await;
    let more = pair.requests(1, 3, "/hold");
    pair.apps[1].reaches(3, 0).await;
    pair.connect();
    program.open_gate(13);
    answered(requests).await;
    answered(more).await;
    assert_eq!(program.peak(), 10);
}

#[tokio::test]
async fn a_request_of_its_own_calls_a_slot_home() {
    let program = Program::start().await;
    let pair = Pair::new(&program, Concurrency::Strict, [0, 1]);
    let response = send(pair.gateways[0].http, get("/ticks")).await;
    program.tick("one");
    let own = pair.requests(1, 1, "/echo");
    pair.apps[1].reaches(1, 0).await;
    assert_eq!(program.begun(), 1, "the stream goes on alone");
    program.end_ticks();
    assert_eq!(Reply::read(response).await.status, 200);
    answered(own).await;
    assert_eq!(program.peak(), 1);
}

#[tokio::test]
async fn clients_that_give_up_leave_no_slot_behind() {
    let program = Program::start().await;
    let pair = Pair::new(&program, Concurrency::Soft, [0, 2]);
    for _ in 0..20 {
        let requests = pair.requests(0, 6, "/never");
        until("two run", || {
            let running = pair.apps[0].demand().running;
            if running == 2 { Ok(()) } else { Err(running) }
        })
        .await;
        requests.iter().for_each(JoinHandle::abort);
        pair.apps[0].reaches(0, 0).await;
    }
    answered(pair.requests(1, 4, "/echo")).await;
    answered(pair.requests(0, 4, "/echo")).await;
    assert_eq!(program.peak(), 2);
}

#[tokio::test]
async fn a_gateway_that_leaves_is_square_and_one_that_is_lost_is_not_believed() {
    let program = Program::start().await;
    let mut pair = Pair::new(&program, Concurrency::Strict, [0, 1]);
    answered(pair.requests(0, 1, "/echo")).await;
    pair.gateways[0].ingress.call_home();
    pair.gateways[1].ingress.call_home();
    until("both owe nothing", || {
        let square = [0, 1].map(|number: usize| pair.gateways[number].ingress.is_square());
        if square == [true, true] { Ok(()) } else { Err(square) }
    })
    .await;

    let mut pair_again = Pair::new(&program, Concurrency::Strict, [0, 1]);
    let _held = pair_again.requests(0, 1, "/hold");
    pair_again.apps[0].reaches(0, 1).await;
    assert!(!pair_again.gateways[0].ingress.is_square());
    pair_again.cut().await;
    pair_again.gateways[1].ingress.forget_peer("first", PeerEnd::Lost);
    assert!(pair_again.apps[1].demand().sandboxes[0].retired, "what ran there may run still");
    pair.cut().await;
}

#[tokio::test]
async fn a_gateway_that_drains_lends_what_it_does_not_use() {
    let program = Program::start().await;
    let mut pair = Pair::new(&program, Concurrency::Soft, [2, 0]);
    let stream = send(pair.gateways[0].http, get("/ticks")).await;
    program.tick("one");
    pair.gateways[0].shut_down();
    answered(pair.requests(1, 3, "/echo")).await;
    // To one that it meets only now, too.
    pair.cut().await;
    pair.connect();
    answered(pair.requests(1, 3, "/echo")).await;
    assert!(!pair.gateways[0].ingress.is_idle(), "the stream goes on");

    program.end_ticks();
    assert_eq!(Reply::read(stream).await.status, 200);
    pair.gateways[0].ingress.call_home();
    until("nothing is owed", || {
        let is_square = pair.gateways[0].ingress.is_square();
        if is_square { Ok(()) } else { Err(is_square) }
    })
    .await;
    assert!(program.peak() <= 2);
}
