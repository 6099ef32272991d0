//! Golden bytes, on machines with the least significant byte first: lengths, kinds and the bits of
//! a filter are in the host's order, addresses and ports in the network's.
#![cfg(target_endian = "little")]

use super::*;

#[test]
fn a_filter_names_both_directions_of_what_is_led() {
    let flows = Flows::Led {
        front: SocketAddr::from(([10, 96, 0, 1], 53)),
        protocol: Protocol::Udp,
        endpoint: SocketAddr::from(([10, 9, 1, 2], 8080)),
    };
    check(
        &flows,
        &["24000180 0c000180 08000200 0a600001 14000280 05000100 11000000 06000300 00350000 \
           24000280 0c000180 08000100 0a090102 14000280 05000100 11000000 06000200 1f900000 \
           14001980 08000100 2a000000 08000200 19000000"],
    );
}

#[test]
fn a_sandbox_is_named_as_who_asks_and_as_who_answers() {
    check(
        &Flows::Sandbox([10, 9, 1, 2].into()),
        &[
            "10000280 0c000180 08000100 0a090102 0c001980 08000200 01000000",
            "10000180 0c000180 08000100 0a090102 0c001980 08000100 01000000",
        ],
    );
    // A sandbox of IPv6 has another attribute for its address.
    check(
        &Flows::Sandbox("fd09::2".parse().expect("an address")),
        &[
            "1c000280 18000180 14000300 fd090000 00000000 00000000 00000002 \
             0c001980 08000200 01000000",
            "1c000180 18000180 14000300 fd090000 00000000 00000000 00000002 \
             0c001980 08000100 01000000",
        ],
    );
}

#[test]
fn an_entry_is_read_and_named_as_the_kernel_wrote_it() {
    // From 10.9.0.2:4000 to 10.96.0.1:53 over UDP, led to 10.9.1.2:8080; status, then its number.
    let body = bytes(
        "34000180 14000180 08000100 0a090002 08000200 0a600001 \
         1c000280 05000100 11000000 06000200 0fa00000 06000300 00350000 \
         34000280 14000180 08000100 0a090102 08000200 0a090002 \
         1c000280 05000100 11000000 06000200 1f900000 06000300 0fa00000 \
         08000300 0000018e 08000c00 12345678",
    );
    let entry = entry(&body).expect("an entry");
    let flows = Flows::Led {
        front: SocketAddr::from(([10, 96, 0, 1], 53)),
        protocol: Protocol::Udp,
        endpoint: SocketAddr::from(([10, 9, 1, 2], 8080)),
    };
    assert_eq!(entry.led(), Some(flows));
    for asks in [[10, 9, 0, 2], [10, 9, 1, 2]] {
        assert!(entry.is_of(&[Flows::Sandbox(asks.into())].into()), "{asks:?}");
    }
    assert!(!entry.is_of(&[Flows::Sandbox([10, 96, 0, 1].into())].into()));
    // Its original direction and its number, and nothing else.
    let name = [&body[..0x34], &body[body.len() - 8..]].concat();
    assert_eq!(entry.name, name);
}

#[test]
fn what_is_cut_off_is_no_entry() {
    let body = bytes(
        "34000180 14000180 08000100 0a090002 08000200 0a600001 \
         1c000280 05000100 11000000 06000200 0fa00000 06000300 00350000 \
         0c000280 08000180 04000100",
    );
    for size in 0..body.len() {
        let _ = entry(&body[..size]).map(|entry| assert_eq!(entry.led(), None, "{size} bytes"));
    }
}

#[test]
fn a_dump_of_connections_and_the_end_of_one() {
    let dump = wire::request(GET, 0x300, 7, number(Family::V4), &[]);
    assert_eq!(words(&dump), "14000000 01010103 07000000 00000000 02000000");
    let end = wire::request(DELETE, NLM_F_ACK, 8, number(Family::V6), &[]);
    assert_eq!(words(&end), "14000000 02010500 08000000 00000000 0a000000");
    let table = wire::request(0x0a01, 0, 9, 1, &[(1, "portolan")]);
    assert_eq!(
        words(&table),
        "24000000 010a0100 09000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000"
    );
}

#[track_caller]
fn check(flows: &Flows, expected: &[&str]) {
    let found: Vec<_> =
        directions(flows).iter().map(|(original, reply)| words(&filter(original, reply))).collect();
    assert_eq!(found, expected, "in words of four bytes");
}

fn words(bytes: &[u8]) -> String {
    let word = |word: &[u8]| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    bytes.chunks(4).map(word).collect::<Vec<_>>().join(" ")
}

fn bytes(words: &str) -> Vec<u8> {
    let digits: Vec<_> = words.chars().filter(char::is_ascii_hexdigit).collect();
    let digit = |digit: char| digit.to_digit(16).and_then(|it| u8::try_from(it).ok());
    let byte = |pair: &[char]| digit(pair[0]).zip(digit(pair[1])).map(|(a, b)| a << 4 | b);
    digits.chunks(2).map(|pair| byte(pair).expect("hexadecimal")).collect()
}
