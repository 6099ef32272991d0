//! What one client can take from the others.

use std::time::Duration;

use portolan_ingress::{AccessLog, SandboxPhase, Settings, Slots};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::client::{fetch, get, h1, h2, raw, read_until};
use crate::frames::{
    END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, WINDOW_UPDATE, block, frame,
};
use crate::gateway::{Gateway, soon, until};
use crate::log::Lines;
use crate::program::Program;
use crate::upgrades;

/// What is read of a sandbox at once, at most.
const READ_SIZE_MAX: u64 = 128 * 1024;
/// More than the kernel keeps for both ends of a connection whose reader has little room.
const KERNEL_SIZE_MAX: u64 = 4 << 20;

#[tokio::test]
async fn one_address_has_its_share_of_connections() {
    let gateway = Gateway::start_with(|settings| settings.connections_per_client_max = 2);
    let kept = [h1(gateway.http).await, h1(gateway.http).await];
    until("both are taken", || {
        let open = gateway.metric("connections");
        if open == 2.0 { Ok(()) } else { Err(open) }
    })
    .await;
    assert_eq!(raw(gateway.http, b"").await, "", "the third is closed");
    drop(kept);
    until("both are gone", || {
        let open = gateway.metric("connections");
        if open == 0.0 { Ok(()) } else { Err(open) }
    })
    .await;
    assert_eq!(fetch(gateway.http, get("/")).await.status, 404);
}

#[tokio::test]
async fn a_connection_that_was_upgraded_is_still_one() {
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| settings.connections_per_client_max = 2);
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let mut sockets = vec![upgrades::connect(&gateway).await, upgrades::connect(&gateway).await];
    app.reaches(0, 2).await;
    assert_eq!(raw(gateway.http, b"").await, "", "the third is closed");
    assert!(gateway.metric("connections") == 2.0);
    drop(sockets.pop());
    until("one is gone", || {
        let open = gateway.metric("connections");
        if open == 1.0 { Ok(()) } else { Err(open) }
    })
    .await;
    assert_eq!(fetch(gateway.http, get("/echo")).await.status, 200);
}

#[tokio::test]
async fn all_connections_together_are_bounded() {
    let gateway = Gateway::start_with(|settings| settings.connections_max = 1);
    let kept = h1(gateway.http).await;
    until("it is taken", || {
        let open = gateway.metric("connections");
        if open == 1.0 { Ok(()) } else { Err(open) }
    })
    .await;
    assert_eq!(raw(gateway.http, b"").await, "");
    drop(kept);
}

#[tokio::test]
async fn what_visitors_ask_for_makes_no_new_series() {
    let program = Program::start().await;
    let (gateway, _app) = Gateway::serving(program.address, Slots::Unlimited);
    fetch(gateway.http, get("/echo")).await;
    let before = gateway.series();
    for number in 0..100 {
        fetch(gateway.http, get(&format!("/bytes/{number}"))).await;
        let mut elsewhere = get("/");
        elsewhere.headers_mut().insert("host", format!("{number}.example").parse().unwrap());
        fetch(gateway.http, elsewhere).await.assert_error(404, "no_route");
    }
    assert_eq!(gateway.series(), before);
}

#[tokio::test]
async fn a_head_must_come_in_time() {
    let gateway = Gateway::start_with(|settings| {
        settings.header_timeout = Duration::from_millis(200);
        settings.keep_alive = Duration::from_secs(60);
    });
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let mut answer = Vec::new();
    let trickle = async {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: shop.example\r\n").await.unwrap();
        loop {
            tokio::select! {
                read = stream.read_buf(&mut answer) => if read.unwrap_or(0) == 0 { return },
                () = tokio::time::sleep(Duration::from_millis(50)) => {
                    let _ = stream.write_all(b"X: y\r\n").await;
                }
            }
        }
    };
    soon("the trickle is cut", trickle).await;
}

#[tokio::test]
async fn unused_connections_are_closed() {
    let gateway = Gateway::start_with(|settings| {
        settings.header_timeout = Duration::from_millis(200);
        settings.keep_alive = Duration::from_millis(300);
    });
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x.example\r\n\r\n").await.unwrap();
    read_until(&mut stream, "Request: ").await;
    let mut rest = Vec::new();
    soon("it is closed", stream.read_to_end(&mut rest)).await.unwrap();

    let mut sender = h2(gateway.http).await;
    soon("so is HTTP/2", async {
        while !sender.is_closed() {
            let _ = sender.ready().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn heads_are_bounded_in_size_and_number() {
    let gateway = Gateway::start_with(|settings| {
        settings.header_size_max = 16 * 1024;
        settings.header_count_max = 20;
    });
    let head = |lines: String| format!("GET / HTTP/1.1\r\nHost: x.example\r\n{lines}\r\n");
    let many = (0..30).map(|number| format!("X-{number}: y\r\n")).collect();
    let answer = raw(gateway.http, head(many).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let long = format!("X: {}\r\n", "y".repeat(40_000));
    let answer = raw(gateway.http, head(long).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let line = format!("GET /{} HTTP/1.1\r\nHost: x.example\r\n\r\n", "y".repeat(70_000));
    let answer = raw(gateway.http, line.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

#[tokio::test]
async fn a_balancer_says_for_whom_it_connects() {
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| {
        settings.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    });
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let request = "GET / HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 198.51.100.1\r\n\
                   Connection: close\r\n\r\n";
    let ask = async |header: &[u8]| raw(gateway.http, &[header, request.as_bytes()].concat()).await;
    let answer = ask(b"PROXY TCP4 192.0.2.7 10.0.0.1 5555 80\r\n").await;
    assert!(answer.contains("x-forwarded-for: 192.0.2.7\n"), "{answer}");
    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x08\x0a\0\0\x01\0\x05\0\x50";
    let answer = ask(v2).await;
    assert!(answer.contains("x-forwarded-for: 192.0.2.8\n"), "{answer}");
    assert_eq!(ask(b"").await, "", "a trusted balancer must say it");
    assert!(gateway.metric("connections_refused_total{reason=\"proxy_header\"}") == 1.0);
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let gateway = Gateway::start_with(|settings| settings.h2_pending_resets_max = 5);
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for stream_id in (1_u32..2_000).step_by(2) {
        // HEADERS, end of stream and of headers: GET http /, then RST_STREAM with CANCEL.
        bytes.extend([0, 0, 3, 1, 5]);
        bytes.extend(stream_id.to_be_bytes());
        bytes.extend([0x82, 0x86, 0x84]);
        bytes.extend([0, 0, 4, 3, 0]);
        bytes.extend(stream_id.to_be_bytes());
        bytes.extend([0, 0, 0, 8]);
    }
    let _ = stream.write_all(&bytes).await;
    let mut answer = Vec::new();
    let _ = soon("the gateway ends it", stream.read_to_end(&mut answer)).await;
    // GOAWAY with ENHANCE_YOUR_CALM.
    let is_calmed = answer.windows(4).any(|window| window == [0, 0, 0, 0x0b]);
    assert!(is_calmed, "{answer:?}");
}

#[tokio::test]
async fn giving_up_again_and_again_ends_the_connection() {
    let gateway = Gateway::start_with(|settings| settings.h2_given_up_max = 5);
    let app = gateway.app("shop", 1);
    let mut sender = h2(gateway.http).await;
    for _ in 0..6 {
        assert!(!sender.is_closed());
        let asked = tokio::spawn(sender.send_request(get("http://shop.example/")));
        app.reaches(1, 0).await;
        asked.abort();
        app.reaches(0, 0).await;
    }
    // Only what comes next is not read.
    let next = sender.send_request(get("http://shop.example/"));
    assert!(soon("the gateway ends it", next).await.is_err());
    assert!(sender.is_closed());
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut() {
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| {
        settings.write_stall = Duration::from_millis(300);
        settings.header_timeout = Duration::from_millis(300);
    });
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Limited(1));
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let request = "GET /bytes/50000000 HTTP/1.1\r\nHost: shop.example\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    app.reaches(0, 1).await;
    app.reaches(0, 0).await;
    drop(stream);
}

#[tokio::test]
async fn a_stream_that_takes_nothing_is_cut() {
    check_stalled_stream(0).await;
}

#[tokio::test]
async fn so_is_one_of_a_connection_that_began_in_pieces() {
    check_stalled_stream(4).await;
}

/// `first`: how many bytes of the connection come before a pause.
async fn check_stalled_stream(first: usize) {
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| {
        settings.write_stall = Duration::from_millis(300);
        // Longer than the pause, on a busy machine too.
        settings.header_timeout = Duration::from_secs(2);
    });
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Limited(1));
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // Settings with an initial window of nothing, then a GET for more than one frame: the first
    // is fetched before the window is looked at.
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    let mut head = vec![0x82, 0x86, 0x04, 14];
    head.extend(b"/bytes/9000000");
    head.extend([0x01, 12]);
    head.extend(b"shop.example");
    bytes.extend([0, 0, u8::try_from(head.len()).unwrap(), 1, 5, 0, 0, 0, 1]);
    bytes.extend(head);
    let (first, rest) = bytes.split_at(first);
    if !first.is_empty() {
        stream.write_all(first).await.unwrap();
        until("the connection is taken", || {
            let open = gateway.metric("connections");
            if open == 1.0 { Ok(()) } else { Err(open) }
        })
        .await;
        // For the bytes to be read before the others come.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stream.write_all(rest).await.unwrap();
    program.begins(1).await;
    app.reaches(0, 1).await;
    app.reaches(0, 0).await;
    let mut answer = Vec::new();
    assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "the connection itself lives on");
}

#[tokio::test]
async fn what_a_client_does_not_read_is_not_held_for_it() {
    const COUNT: u32 = 120;
    const SIZE: u64 = 500_000;
    let (lines, _logging) = Lines::collect();
    let program = Program::start().await;
    let gateway = Gateway::start_with(|settings| {
        settings.access_log = AccessLog::On;
        // The end, which is when requests are logged.
        settings.write_stall = Duration::from_secs(2);
    });
    let app = gateway.app("shop", program.address.port());
    app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
    let socket = TcpSocket::new_v4().unwrap();
    // What the kernel keeps for us is not what the gateway keeps.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(gateway.http).await.unwrap();
    // The widest window there is, for each stream and for all of them.
    let widest = 0x7fff_ffff_u32;
    let of_each = frame(SETTINGS, 0, 0, &[&[0_u8, 4][..], &widest.to_be_bytes()].concat());
    let of_all = frame(WINDOW_UPDATE, 0, 0, &(widest - 0xffff).to_be_bytes());
    let mut bytes = [PREFACE, &of_each, &of_all].concat();
    let head = block(&[
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":path", format!("/bytes/{SIZE}").as_bytes()),
        (b":authority", b"shop.example"),
    ]);
    for stream_id in (1..2 * COUNT).step_by(2) {
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream_id, &head));
    }
    stream.write_all(&bytes).await.unwrap();
    let lines = lines.reach(usize::try_from(COUNT).unwrap()).await;
    assert!(lines.iter().all(|line| line["fields"]["status"] == 200), "{lines:?}");
    let handed: u64 = lines.iter().map(|line| line["fields"]["bytes"].as_u64().unwrap()).sum();
    let buffer = u64::try_from(Settings::standard().h2_send_buffer).unwrap();
    // For each stream what is in its buffer, with the read that filled it, and the next read.
    let bound = u64::from(COUNT) * (buffer + 2 * READ_SIZE_MAX) + KERNEL_SIZE_MAX;
    assert!(bound < u64::from(COUNT) * SIZE, "less than all is to be seen");
    assert!(handed < bound, "{handed} bytes were handed over for a client that reads none");
    drop(stream);
}

#[tokio::test]
async fn answers_that_nobody_reads_do_not_pile_up() {
    const SENT_MAX: usize = 64 << 20;
    let gateway = Gateway::start();
    for request in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"HEAD / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nA",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nA",
    ] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(gateway.http).await.unwrap();
        let many = request.repeat(1_000);
        let mut sent = 0;
        // Until the gateway takes no more, or has closed.
        while let Ok(Ok(())) = timeout(Duration::from_secs(1), stream.write_all(&many)).await {
            sent += many.len();
            let text = String::from_utf8_lossy(request);
            assert!(sent < SENT_MAX, "all is taken, and none of the answers: {text}");
        }
    }
}
