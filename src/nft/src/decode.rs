//! What the kernel says the table is: rules and elements, read back into values.

use crate::element::{Data, Element, Key, Set};
use crate::layout::{Base, Connection, Expr, HASH_SEED, Meta, Register, number};
use crate::value::Family;
use crate::wire::{self, attributes};

/// The bytes of a key or of data.
const VALUE: u16 = 1;

/// The elements in a piece of a dump; one that cannot be ours has the longest key it can have.
pub(crate) fn elements(set: Set, body: &[u8]) -> Vec<(Element, Data)> {
    let list = wire::attribute(body, 3).unwrap_or_default();
    list_items(list).map(|item| element(set, item)).collect()
}

/// One element of a list.
pub(crate) fn element(set: Set, item: &[u8]) -> (Element, Data) {
    let bytes = |kind| wire::attribute(item, kind).and_then(|nest| wire::attribute(nest, VALUE));
    let key = bytes(1).unwrap_or_default();
    let key = Key::new(key).unwrap_or(Key::EMPTY);
    let data = Data::new(bytes(2).unwrap_or_default()).unwrap_or(Data::EMPTY);
    let end = wire::number(item, 3).is_some_and(|flags| flags & 1 != 0);
    (Element { end, ..Element::new(set, key) }, data)
}

/// The chain of a rule and its steps; `None` for a step that this program would not make.
pub(crate) fn rule(body: &[u8]) -> Option<(&str, Vec<Expr>)> {
    let chain = wire::text(body, 2)?;
    let list = wire::attribute(body, 4)?;
    let steps: Option<_> = list_items(list)
        .map(|item| {
            let name = wire::text(item, 1)?;
            expression(name, wire::attribute(item, 2).unwrap_or_default())
        })
        .collect();
    Some((chain, steps?))
}

/// The items of a list of elements or expressions, which all have the same kind.
fn list_items(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    attributes(list).map(|(_, item)| item)
}

/// The numbers below are those of the kernel's attributes, in its header `nf_tables.h`.
fn expression(name: &str, body: &[u8]) -> Option<Expr> {
    let get = |kind| wire::number(body, kind);
    let register = |kind| get(kind).map(canonical);
    let bytes = |kind| wire::attribute(body, kind).and_then(|nest| wire::attribute(nest, VALUE));
    let expression = match name {
        "meta" => {
            let key = match get(2)? {
                15 => Meta::Family,
                16 => Meta::Protocol,
                _ => return None,
            };
            Expr::Meta(key, register(1)?)
        }
        "payload" => {
            let base = match get(2)? {
                1 => Base::Network,
                2 => Base::Transport,
                _ => return None,
            };
            Expr::Payload { base, offset: get(3)?, length: get(4)?, to: register(1)? }
        }
        "cmp" if get(2)? == 0 => Expr::Equal(register(1)?, bytes(3)?.to_vec()),
        "bitwise" if get(1) == get(2) && bytes(5)?.iter().all(|byte| *byte == 0) => {
            Expr::Mask(register(1)?, u32::from_ne_bytes(bytes(4)?.try_into().ok()?))
        }
        "ct" => connection(body)?,
        "numgen" if get(3)? == 1 => Expr::Random(get(2)?, register(1)?),
        "hash" if get(5)? == HASH_SEED => {
            Expr::Hash { from: register(1)?, length: get(3)?, modulus: get(4)?, to: register(2)? }
        }
        "lookup" if get(5).unwrap_or(0) == 0 => {
            Expr::Lookup(Set::from_name(wire::text(body, 1)?)?, register(2)?, register(3))
        }
        "nat" if get(1)? == 1 => {
            let family = Family::ALL.into_iter().find(|f| Some(number(*f).into()) == get(2))?;
            Expr::Dnat(family, register(3)?, register(5)?)
        }
        "masq" => Expr::Masquerade,
        "reject" => match get(1)? {
            1 => Expr::RejectReset,
            2 => Expr::RejectPort,
            _ => return None,
        },
        "immediate" => verdict(wire::attribute(wire::attribute(body, 2)?, 2)?)?,
        _ => return None,
    };
    Some(expression)
}

fn connection(body: &[u8]) -> Option<Expr> {
    let direction = wire::attribute(body, 3);
    let what = match (wire::number(body, 2)?, direction) {
        (2, None) => Connection::Status,
        (20, Some([0])) => Connection::OriginalAddress(Family::V4),
        (22, Some([0])) => Connection::OriginalAddress(Family::V6),
        (12, Some([0])) => Connection::OriginalPort,
        _ => return None,
    };
    Some(Expr::Connection(what, canonical(wire::number(body, 1)?)))
}

fn verdict(body: &[u8]) -> Option<Expr> {
    let chain = || wire::text(body, 2).map(ToOwned::to_owned);
    match wire::number(body, 1)?.cast_signed() {
        -3 => chain().map(Expr::Jump),
        -4 => chain().map(Expr::Goto),
        -5 => Some(Expr::Return),
        _ => None,
    }
}

/// The kernel names every fourth register by the number that registers of 16 bytes have.
fn canonical(register: Register) -> Register {
    match register {
        1..=4 => 4 + 4 * register,
        other => other,
    }
}
