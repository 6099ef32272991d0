//! Peers that send without end: what it takes to be rid of them, and what they may cost until then.

use std::net::SocketAddr;
use std::time::Duration;

use portolan_ingress::{SandboxPhase, Settings, Slots};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::client::{fetch, get, read_until};
use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, HEADERS, Outcome, PING, PRIORITY, SETTINGS, WINDOW_UPDATE,
    block, frame, hello, outcome,
};
use crate::gateway::{Gateway, soon};
use crate::program::Program;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const ENHANCE_YOUR_CALM: u32 = 11;

/// More than the kernel keeps for both ends of a connection, and little beside a memory limit.
const UNREAD_MAX: usize = 32 << 20;

/// Sends the same again and again until the gateway takes no more; returns how many bytes it took.
async fn flood(stream: &mut (impl AsyncWriteExt + Unpin), batch: &[u8]) -> usize {
    let mut sent = 0;
    while let Ok(count) = stream.write(batch).await {
        sent += count;
        // A whole frame each time, or the rest of it would be read as another one.
        if stream.write_all(&batch[count..]).await.is_err() {
            break;
        }
        sent += batch.len() - count;
    }
    sent
}

fn post_head() -> Vec<u8> {
    block(&[
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/never"),
        (b":authority", b"shop.example"),
    ])
}

async fn serve_neighbour(gateway: &Gateway) {
    let reply = soon("a neighbour's answer", fetch(gateway.http, get("/echo"))).await;
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn answers_that_nobody_reads_do_not_pile_up() {
    let program = Program::start().await;
    let floods = [
        ("pings", frame(PING, 0, 0, &[7; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("settings with content", frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
    ];
    for (name, one) in floods {
        let gateway = Gateway::start_with(|settings| {
            settings.write_stall = Duration::from_millis(300);
            // A connection without a request is looked at that often.
            settings.header_timeout = Duration::from_millis(300);
        });
        let app = gateway.app("shop", program.address.port());
        app.sandbox("one", program.address.ip(), SandboxPhase::Ready, Slots::Unlimited);
        let socket = TcpSocket::new_v4().unwrap();
        // What the kernel keeps for us is not what the gateway keeps.
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(gateway.http).await.unwrap();
        stream.write_all(&hello()).await.unwrap();
        let batch = one.repeat(500);
        let flooding = async {
            let sent = soon(name, flood(&mut stream, &batch)).await;
            assert!(sent < UNREAD_MAX, "{name}: {sent} bytes were taken of a peer that reads none");
        };
        tokio::join!(flooding, serve_neighbour(&gateway));
    }
}

#[tokio::test]
async fn frames_without_a_request_do_not_keep_a_connection() {
    let gateway = Gateway::start_with(|settings| {
        settings.header_timeout = Duration::from_millis(200);
        settings.keep_alive = Duration::from_millis(300);
    });
    let floods = [
        ("pings", frame(PING, 0, 0, &[7; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[])),
        ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 9])),
        ("unknown frames", frame(0xbe, 0, 0, b"what is this")),
        ("windows", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
    ];
    for (name, one) in floods {
        let stream = TcpStream::connect(gateway.http).await.unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let reading = async {
            let mut buffer = vec![0; 64 * 1024];
            let mut read = 0;
            while let Ok(count @ 1..) = reader.read(&mut buffer).await {
                read += count;
            }
            read
        };
        let writing = async {
            writer.write_all(&hello()).await.unwrap();
            flood(&mut writer, &one.repeat(20)).await
        };
        let (read, sent) = soon(name, async { tokio::join!(reading, writing) }).await;
        assert!(read <= sent + 1024, "{name}: {read} bytes answer {sent}");
    }
}

#[tokio::test]
async fn frames_that_carry_nothing_end_the_connection() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let head = frame(HEADERS, END_HEADERS, 1, &post_head());
    let open = frame(HEADERS, 0, 1, &post_head());
    let window = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let floods = [
        ("empty data", head, frame(DATA, 0, 1, &[]), 1_000, ENHANCE_YOUR_CALM),
        (
            "endless continuation",
            open.clone(),
            frame(CONTINUATION, 0, 1, &block(&[(b"x", b"y")])),
            100_000,
            ENHANCE_YOUR_CALM,
        ),
        ("empty continuation", open, frame(CONTINUATION, 0, 1, &[]), 100_000, ENHANCE_YOUR_CALM),
        ("too wide a window", Vec::new(), window(0, 0x7fff_ffff), 2, FLOW_CONTROL_ERROR),
        ("a window of nothing", Vec::new(), window(0, 0), 1, PROTOCOL_ERROR),
    ];
    for (name, first, one, count, code) in floods {
        let mut stream = TcpStream::connect(gateway.http).await.unwrap();
        stream.write_all(&[hello(), first].concat()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let writing = async {
            for _ in 0..count {
                if writer.write_all(&one).await.is_err() {
                    break;
                }
            }
        };
        // Read while writing: what comes after the end resets the connection, GOAWAY and all.
        let reading = outcome(&mut reader, 1);
        let (ended, ()) = soon(name, async { tokio::join!(reading, writing) }).await;
        assert_eq!(ended, Outcome::GoAway(code), "{name}");
        drop(stream);
        app.reaches(0, 0).await;
        serve_neighbour(&gateway).await;
    }
}

#[tokio::test]
async fn a_body_is_counted_chunk_by_chunk() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    app.route(|route| route.request_body_max = Some(10_000));
    let (mut reader, mut writer) = TcpStream::connect(gateway.http).await.unwrap().into_split();
    let head = "POST /echo HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    writer.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("64\r\n{}\r\n", "x".repeat(100));
    let refused = read_until(&mut reader, "HTTP/1.1 413");
    let both = async { tokio::join!(refused, flood(&mut writer, chunk.as_bytes())) };
    let (_, sent) = soon("both end", both).await;
    assert!(sent < UNREAD_MAX, "{sent} bytes were taken");
    app.reaches(0, 0).await;
}

#[tokio::test]
async fn a_body_that_stops_gives_its_slot_back() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    app.route(|route| route.timeouts.idle = Duration::from_millis(200));
    let mut stream = TcpStream::connect(gateway.http).await.unwrap();
    let request = "POST /echo HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 10\r\n\r\nhello";
    stream.write_all(request.as_bytes()).await.unwrap();
    app.reaches(0, 1).await;
    app.reaches(0, 0).await;
    let mut answer = Vec::new();
    let _ = soon("it is closed", stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    serve_neighbour(&gateway).await;
}

#[tokio::test]
async fn chunk_extensions_are_bounded() {
    let program = Program::start().await;
    let (gateway, app) = Gateway::serving(program.address, Slots::Limited(1));
    let forms = [
        ("one without end", "1;", "x".repeat(1_000)),
        ("one for each chunk", "", format!("1;{}\r\ny\r\n", "x".repeat(1_000))),
    ];
    for (name, first, more) in forms {
        let (mut reader, mut writer) = TcpStream::connect(gateway.http).await.unwrap().into_split();
        let head =
            "POST /echo HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n";
        writer.write_all(format!("{head}{first}").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let reading = reader.read_to_end(&mut answer);
        let both = async { tokio::join!(reading, flood(&mut writer, more.as_bytes())) };
        let (_, sent) = soon(name, both).await;
        assert!(sent < UNREAD_MAX, "{name}: {sent} bytes were taken");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{name}: {answer}");
        app.reaches(0, 0).await;
    }
    serve_neighbour(&gateway).await;
}

#[tokio::test]
async fn connections_that_never_begin_are_closed() {
    let short = |settings: &mut Settings| {
        settings.handshake_timeout = Duration::from_millis(200);
        settings.header_timeout = Duration::from_millis(200);
        settings.keep_alive = Duration::from_millis(300);
    };
    let gateway = Gateway::start_with(short);
    // A TLS record that says 512 bytes of handshake, and the first of them.
    let half_handshake: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    let cases: [(&str, SocketAddr, &[u8]); 6] = [
        ("nothing in plain text", gateway.http, b""),
        ("half a request line", gateway.http, b"GE"),
        ("half a preface", gateway.http, b"PRI * HT"),
        ("a preface and no settings", gateway.http, crate::frames::PREFACE),
        ("nothing over TLS", gateway.https, b""),
        ("half a handshake", gateway.https, half_handshake),
    ];
    for (name, address, bytes) in cases {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = soon(name, stream.read_to_end(&mut answer)).await;
        assert!(answer.len() < 1024, "{name}: {} bytes", answer.len());
    }
    assert_eq!(gateway.metric("connections"), 0.0);
}
