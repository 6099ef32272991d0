use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::element::Set;
use crate::value::Family;
use crate::{decode, wire};

const MAP: Set = Set::StickyServices(Family::V6);

#[test]
fn an_attribute_is_padded_and_its_length_is_without_padding() {
    for size in 0..=8 {
        let value: Vec<u8> = (1..=size).collect();
        let mut bytes = Vec::new();
        attribute(&mut bytes, 7, &value);
        assert_eq!(bytes[..4], header(4 + value.len(), 7), "{size} bytes");
        assert_eq!(bytes[4..4 + value.len()], value, "{size} bytes");
        let padding = &bytes[4 + value.len()..];
        assert!(padding.len() < 4 && padding.iter().all(|byte| *byte == 0), "{size} bytes");
        assert_eq!(bytes.len() % 4, 0, "{size} bytes");
    }
}

#[test]
fn attributes_are_in_those_that_hold_them() {
    let mut bytes = vec![0xff; 8];
    nest(&mut bytes, 1, |bytes| {
        nest(bytes, 2, |bytes| attribute(bytes, 3, b"abcde"));
        nest(bytes, 4, |_| ());
        attribute(bytes, 5, b"f");
    });
    attribute(&mut bytes, 6, b"");
    let (before, bytes) = bytes.split_at(8);
    assert_eq!(before, [0xff; 8], "what was there stays");
    // Of a nested attribute the length counts the padding of what it holds.
    assert_eq!(bytes[..4], header(4 + (4 + 12) + 4 + 8, NLA_F_NESTED | 1));
    assert_eq!(wire::attributes(bytes).map(|(kind, _)| kind).collect::<Vec<_>>(), [1, 6]);
    let outer = wire::attribute(bytes, 1).expect("the outer");
    let inner: Vec<_> = wire::attributes(outer).collect();
    assert_eq!(inner[0], (2, [&header(9, 3)[..], b"abcde\0\0\0"].concat().as_slice()));
    assert_eq!(inner[1..], [(4, &b""[..]), (5, b"f")]);
}

#[test]
fn a_message_says_what_becomes_of_elements_of_which_set() {
    let element = Element::address(Set::Virtual(Family::V4), [10, 96, 0, 1].into());
    let additions = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL;
    for (change, kind, flags) in
        [(Change::Add, NEW, additions), (Change::Delete, DELETE, NLM_F_REQUEST)]
    {
        let head = Head { change, table: c"portolan", set: c"vip4" };
        let mut bytes = Vec::new();
        let next = append(&mut bytes, head, 9, [(&element, &Data::EMPTY)].into_iter());
        assert_eq!(next, 10);
        let messages: Vec<_> = wire::messages(&bytes).collect();
        let [message] = messages[..] else { panic!("{} messages", messages.len()) };
        assert_eq!((message.kind, message.sequence, message.port), (kind, 9, 0));
        assert_eq!(bytes[6..8], flags.to_ne_bytes());
        assert_eq!(bytes[HEADER..HEADER + 4], NETFILTER);
        let names = [TABLE, SET].map(|kind| wire::text(message.body(), kind));
        assert_eq!(names, [Some("portolan"), Some("vip4")]);
    }
}

#[test]
fn without_elements_there_is_no_message() {
    let mut bytes = vec![1, 2, 3, 4];
    assert_eq!(append(&mut bytes, head(), 3, std::iter::empty()), 3);
    assert_eq!(bytes, [1, 2, 3, 4]);
}

#[test]
fn no_element_is_larger_than_the_largest() {
    assert_eq!(Key::new(&[1; Key::SIZE_MAX + 1]), None, "a longer key is none");
    assert_eq!(Data::new(&[1; Data::SIZE_MAX + 1]), None, "nor is there longer data");
    let (element, data) = largest();
    let mut bytes = Vec::new();
    item(&mut bytes, &element, &data);
    assert_eq!(bytes.len(), ELEMENT_MAX);
}

#[test]
fn a_message_is_as_full_as_the_length_of_its_list_can_say() {
    let largest = largest();
    let most = (ATTRIBUTE_MAX - ATTRIBUTE) / ELEMENT_MAX;
    check_sizes(&vec![largest; most], &[most]);
    check_sizes(&vec![largest; most + 1], &[most, 1]);
    check_sizes(&vec![largest; 2 * most + 5], &[most, most, 5]);
    // Of the least ones there is always room for a large one left.
    let least = (Element::address(Set::Local(Family::V4), [10, 1, 1, 1].into()), Data::EMPTY);
    let most = (ATTRIBUTE_MAX - ATTRIBUTE - ELEMENT_MAX) / 16 + 1;
    check_sizes(&vec![least; most + 1], &[most, 1]);
}

#[test]
fn numbers_of_messages_begin_again_after_the_last() {
    let elements = vec![largest(); 2_000];
    let mut bytes = Vec::new();
    let next = append(&mut bytes, head(), u32::MAX - 1, pairs(&elements));
    let numbers: Vec<_> = wire::messages(&bytes).map(|message| message.sequence).collect();
    assert_eq!((numbers, next), (vec![u32::MAX - 1, u32::MAX, 0], 1));
}

proptest! {
    #[test]
    fn elements_are_read_as_they_were_written(elements in vec(any_element(), 0..3_000)) {
        prop_assert!(read(&elements).concat() == elements);
    }
}

/// Which elements there are in each message, as they are read.
fn read(elements: &[(Element, Data)]) -> Vec<Vec<(Element, Data)>> {
    let mut bytes = Vec::new();
    let next = append(&mut bytes, head(), 0, pairs(elements));
    let messages: Vec<_> = wire::messages(&bytes).collect();
    assert_eq!(next as usize, messages.len(), "each has its number");
    let size: usize = messages.iter().map(|message| HEADER + 4 + message.body().len()).sum();
    assert_eq!(size, bytes.len(), "there is nothing between messages");
    messages.iter().map(|message| decode::elements(MAP, message.body())).collect()
}

#[track_caller]
fn check_sizes(elements: &[(Element, Data)], expected: &[usize]) {
    let sizes: Vec<_> = read(elements).iter().map(Vec::len).collect();
    assert_eq!(sizes, expected, "elements of each message");
}

fn pairs(elements: &[(Element, Data)]) -> impl Iterator<Item = (&Element, &Data)> {
    elements.iter().map(|(element, data)| (element, data))
}

fn head() -> Head<'static> {
    Head { change: Change::Add, table: c"portolan", set: c"svc6-src" }
}

/// An element with all that one can have.
fn largest() -> (Element, Data) {
    let key = Key::new(&[1; Key::SIZE_MAX]).expect("a key");
    let data = Data::new(&[2; Data::SIZE_MAX]).expect("data");
    (Element { end: true, ..Element::new(MAP, key) }, data)
}

/// An element of any size, also of sizes that no set has.
fn any_element() -> impl Strategy<Value = (Element, Data)> {
    let key = vec(any::<u8>(), 0..=Key::SIZE_MAX);
    let data = vec(any::<u8>(), 0..=Data::SIZE_MAX);
    (key, data, any::<bool>()).prop_map(|(key, data, end)| {
        let element = Element::new(MAP, Key::new(&key).expect("a key"));
        (Element { end, ..element }, Data::new(&data).expect("data"))
    })
}
