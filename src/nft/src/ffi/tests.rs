//! Golden bytes, on machines with the least significant byte first, and what they must keep to.
#![cfg(target_endian = "little")]

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::slots::{Class, Target};
use crate::value::{Affinity, Protocol, ServicePort};
use crate::{decode, layout, wire};

#[test]
fn a_batch_is_framed() {
    check(|encoder| encoder.begin(None), "14000000 10000100 07000000 00000000 0000000a");
    // The generation is the one attribute, in network order.
    check(
        |encoder| encoder.begin(Some(0x0102_0304)),
        "1c000000 10000100 07000000 00000000 0000000a 08000100 01020304",
    );
    check(|encoder| encoder.end(false), "14000000 11000100 07000000 00000000 0000000a");
    // Only a request is answered.
    check(|encoder| encoder.end(true), "14000000 11000500 07000000 00000000 0000000a");
}

#[test]
fn a_table_has_flags_and_a_comment() {
    check(
        |encoder| encoder.add_table("mark", 6),
        "38000000 000a0104 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000 \
         08000200 00000006 0b000600 00056d61 726b0000",
    );
    check(
        |encoder| encoder.delete_table(),
        "24000000 020a0100 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000",
    );
}

#[test]
fn a_set_says_what_its_parts_are() {
    // A map of 16 bytes to 8; types are for those who list it.
    let map = Set::Slots(Family::V4, class(2));
    check(
        |encoder| encoder.add_set(map),
        "60000000 090a0104 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000 \
         0a000200 6570342d 32000000 08000300 00000008 08000400 001cc353 08000500 00000010 \
         08000600 000001cd 08000700 00000008 08000a00 0000000b",
    );
    // Intervals of 16 bytes.
    check(
        |encoder| encoder.add_set(Set::Bridged(Family::V6)),
        "54000000 090a0104 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000 \
         0d000200 62726964 67656436 00000000 08000300 00000004 08000400 00000008 08000500 \
         00000010 08000a00 00000038",
    );
}

#[test]
fn elements_have_their_parts_padded() {
    // Addresses and ports in network order, the slot in the host's.
    let (slot, data) =
        slot_of([10, 96, 0, 1].into(), Protocol::Tcp, 80, ([10, 9, 1, 2].into(), 8080));
    check(
        |encoder| encoder.add_elements(slot.set, [(&slot, &data)].into_iter()),
        "60000000 0c0a0106 07000000 00000000 01000000 0a000200 6570342d 32000000 0d000100 \
         706f7274 6f6c616e 00000000 30000380 2c000180 18000180 14000100 0a600001 06000000 \
         00500000 01000000 10000280 0c000100 0a090102 1f900000",
    );
    let (front, end) = ("fd00::1".parse(), "fd00::2".parse());
    let end = (end.expect("an address"), 5353);
    let (slot, data) = slot_of(front.expect("an address"), Protocol::Udp, 53, end);
    check(
        |encoder| encoder.add_elements(slot.set, [(&slot, &data)].into_iter()),
        "78000000 0c0a0106 07000000 00000000 01000000 0a000200 6570362d 32000000 0d000100 \
         706f7274 6f6c616e 00000000 48000380 44000180 24000180 20000100 fd000000 00000000 \
         00000000 00000001 11000000 00350000 01000000 1c000280 18000100 fd000000 00000000 \
         00000000 00000002 14e90000",
    );
    // To delete, the key is enough.
    let gate = Element::service(Set::Services(Family::V4), PORT);
    check(
        |encoder| encoder.delete_elements(gate.set, [gate].iter()),
        "4c000000 0e0a0100 07000000 00000000 01000000 09000200 73766334 00000000 0d000100 \
         706f7274 6f6c616e 00000000 1c000380 18000180 14000180 10000100 0a600001 06000000 \
         00500000",
    );
    // The end of an interval.
    let border = Element::border(Family::V4, 0x0a00_0100, true);
    check(
        |encoder| encoder.add_elements(border.set, [(&border, &Data::EMPTY)].into_iter()),
        "50000000 0c0a0106 07000000 00000000 01000000 0d000200 62726964 67656434 00000000 \
         0d000100 706f7274 6f6c616e 00000000 1c000380 18000180 08000300 00000001 0c000180 \
         08000100 0a000100",
    );
}

#[test]
fn a_chain_is_hooked_before_kube_proxys() {
    let chain = chain("prerouting");
    check(
        |encoder| encoder.add_chain(&chain),
        "58000000 030a0104 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000 \
         0f000300 70726572 6f757469 6e670000 14000480 08000100 00000000 08000200 ffffff92 \
         08000500 00000001 08000700 6e617400",
    );
    check(
        |encoder| encoder.add_rules(&chain),
        "78000000 060a010e 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000 \
         0f000200 70726572 6f757469 6e670000 44000480 40000180 0e000100 696d6d65 64696174 \
         65000000 2c000280 08000100 00000000 20000280 1c000280 08000100 fffffffd 0d000200 \
         73657276 69636573 00000000",
    );
}

#[test]
fn a_service_is_led_by_a_random_slot() {
    check(
        |encoder| encoder.add_rules(&rule("lb4", 1)),
        "98010000 060a010e 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000 \
         08000200 6c623400 6c010480 24000180 09000100 6d657461 00000000 14000280 08000200 \
         0000000f 08000100 00000008 2c000180 08000100 636d7000 20000280 08000100 00000008 \
         08000200 00000000 0c000380 05000100 02000000 34000180 0c000100 7061796c 6f616400 \
         24000280 08000100 00000008 08000200 00000001 08000300 00000010 08000400 00000004 \
         24000180 09000100 6d657461 00000000 14000280 08000200 00000010 08000100 00000009 \
         34000180 0c000100 7061796c 6f616400 24000280 08000100 0000000a 08000200 00000002 \
         08000300 00000002 08000400 00000002 2c000180 0b000100 6e756d67 656e0000 1c000280 \
         08000100 0000000b 08000200 00000002 08000300 00000001 30000180 0b000100 6c6f6f6b \
         75700000 20000280 08000200 00000008 08000300 00000008 0a000100 6570342d 32000000 \
         30000180 08000100 6e617400 24000280 08000100 00000001 08000200 00000002 08000300 \
         00000008 08000500 00000009",
    );
}

#[test]
fn a_sticky_service_is_led_by_the_hash_of_the_client() {
    check(
        |encoder| encoder.add_rules(&rule("lb6-src", 0)),
        "e8010000 060a010e 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000 \
         0c000200 6c62362d 73726300 b8010480 24000180 09000100 6d657461 00000000 14000280 \
         08000200 0000000f 08000100 00000008 2c000180 08000100 636d7000 20000280 08000100 \
         00000008 08000200 00000000 0c000380 05000100 0a000000 34000180 0c000100 7061796c \
         6f616400 24000280 08000100 00000010 08000200 00000001 08000300 00000008 08000400 \
         00000010 34000180 0c000100 7061796c 6f616400 24000280 08000100 00000008 08000200 \
         00000001 08000300 00000018 08000400 00000010 24000180 09000100 6d657461 00000000 \
         14000280 08000200 00000010 08000100 0000000c 34000180 0c000100 7061796c 6f616400 \
         24000280 08000100 0000000d 08000200 00000002 08000300 00000002 08000400 00000002 \
         44000180 09000100 68617368 00000000 34000280 08000100 00000010 08000200 0000000e \
         08000300 00000010 08000400 00000080 08000500 00005eed 08000700 00000000 30000180 \
         0b000100 6c6f6f6b 75700000 20000280 08000200 00000008 08000300 00000008 0c000100 \
         6570362d 31323800 30000180 08000100 6e617400 24000280 08000100 00000001 08000200 \
         0000000a 08000300 00000008 08000500 0000000c",
    );
}

#[test]
fn refusal_and_masquerade() {
    check(
        |encoder| encoder.add_rules(&rule("noep", 1)),
        "a8000000 060a010e 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000 \
         09000200 6e6f6570 00000000 78000480 24000180 09000100 6d657461 00000000 14000280 \
         08000200 00000010 08000100 00000008 2c000180 08000100 636d7000 20000280 08000100 \
         00000008 08000200 00000000 0c000380 05000100 11000000 24000180 0b000100 72656a65 \
         63740000 14000280 08000100 00000002 05000200 01000000",
    );
    check(
        |encoder| encoder.add_rules(&rule("postrouting", 0)),
        "f8000000 060a010e 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000 \
         10000200 706f7374 726f7574 696e6700 c4000480 20000180 07000100 63740000 14000280 \
         08000200 00000002 08000100 00000008 44000180 0c000100 62697477 69736500 34000280 \
         08000100 00000008 08000200 00000008 08000300 00000004 0c000480 08000100 20000000 \
         0c000580 08000100 00000000 2c000180 08000100 636d7000 20000280 08000100 00000008 \
         08000200 00000000 0c000380 08000100 00000000 30000180 0e000100 696d6d65 64696174 \
         65000000 1c000280 08000100 00000000 10000280 0c000280 08000100 fffffffb",
    );
    check(
        |encoder| encoder.add_rules(&rule("postrouting", 9)),
        "6c010000 060a010e 07000000 00000000 01000000 0d000100 706f7274 6f6c616e 00000000 \
         10000200 706f7374 726f7574 696e6700 38010480 24000180 09000100 6d657461 00000000 \
         14000280 08000200 0000000f 08000100 00000008 2c000180 08000100 636d7000 20000280 \
         08000100 00000008 08000200 00000000 0c000380 05000100 02000000 28000180 07000100 \
         63740000 1c000280 08000200 00000014 08000100 00000008 05000300 00000000 28000180 \
         0b000100 6c6f6f6b 75700000 18000280 08000200 00000008 0c000100 6e6f6465 69703400 \
         24000180 09000100 6d657461 00000000 14000280 08000200 00000010 08000100 00000008 \
         28000180 07000100 63740000 1c000280 08000200 0000000c 08000100 00000009 05000300 \
         00000000 2c000180 0b000100 6c6f6f6b 75700000 1c000280 08000200 00000008 0d000100 \
         6e6f6465 706f7274 00000000 1c000180 09000100 6d617371 00000000 0c000280 08000100 \
         00000010",
    );
}

#[test]
fn every_rule_is_read_back_as_it_was_written() {
    for chain in layout::chains() {
        let mut encoder = Encoder::new("portolan", 1);
        encoder.add_rules(&chain);
        let (bytes, _) = encoder.finish();
        let rules: Vec<_> = wire::messages(&bytes)
            .map(|message| decode::rule(message.body()).expect("a rule of ours"))
            .collect();
        assert_eq!(rules.len(), chain.rules.len(), "{}", chain.name);
        for ((name, rule), written) in rules.into_iter().zip(chain.rules) {
            assert_eq!((name, rule), (chain.name.as_str(), written));
        }
    }
}

#[test]
fn elements_are_split_where_an_attribute_ends() {
    let gate = Element::service(Set::Services(Family::V4), PORT);
    let target = Data::target(([10, 9, 1, 2].into(), 8080));
    let set = Set::Slots(Family::V4, class(2));
    let elements: Vec<_> =
        (0..5_000).map(|slot| (Element::slot(set, gate, slot), target)).collect();
    let mut encoder = Encoder::new("portolan", 1);
    encoder.add_elements(set, elements.iter().map(|(element, data)| (element, data)));
    let (bytes, next) = encoder.finish();
    let messages: Vec<_> = wire::messages(&bytes).collect();
    assert!(messages.len() > 1 && messages.len() < 10, "{} messages", messages.len());
    assert_eq!(next as usize, 1 + messages.len(), "each has its number");
    let read: Vec<_> =
        messages.iter().flat_map(|message| decode::elements(set, message.body())).collect();
    assert!(read == elements, "none is lost, and their order is kept");
}

#[test]
fn names_and_comments_keep_to_the_limits_of_nft() {
    // The kernel takes names of 255 bytes and keys of 64; `nft` comments of 128.
    for set in Set::all() {
        assert!(set.to_string().len() <= 255, "{set}");
        assert!(concatenation(&set.key()).1 <= 64, "{set}");
        assert_eq!(Set::from_name(&set.to_string()), Some(set), "names are unique");
    }
    assert_eq!(user_data(&"c".repeat(127)).len(), 2 + 128);
}

const PORT: ServicePort = ServicePort {
    address: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)),
    protocol: Protocol::Tcp,
    port: 80,
};

#[track_caller]
fn check(write: impl FnOnce(&mut Encoder), expected: &str) {
    let mut encoder = Encoder::new("portolan", 7);
    write(&mut encoder);
    let words = encoder.finish().0;
    let word = |word: &[u8]| word.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let words: Vec<_> = words.chunks(4).map(word).collect();
    assert_eq!(words.join(" "), expected, "in words of four bytes");
}

fn class(size: usize) -> Class {
    Class::of(size, Affinity::None).expect("a class")
}

fn slot_of(address: IpAddr, protocol: Protocol, port: u16, target: Target) -> (Element, Data) {
    let family = Family::of(address);
    let gate = Element::service(Set::Services(family), ServicePort { address, protocol, port });
    (Element::slot(Set::Slots(family, class(2)), gate, 1), Data::target(target))
}

fn chain(name: &str) -> Chain {
    layout::chains().into_iter().find(|chain| chain.name == name).expect("a chain")
}

/// A chain with one of its rules.
fn rule(name: &str, index: usize) -> Chain {
    let chain = chain(name);
    Chain { rules: vec![chain.rules[index].clone()], ..chain }
}
