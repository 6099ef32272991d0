//! The elements of one owner as they are kept: without room that they do not need. Pure.

use super::Owned;
use crate::element::{Data, Element, Key, Set};

/// The elements of one owner, in order.
///
/// For each of them a byte for the set, one for the length of the key (with [`END`]) and one for
/// that of the data; then both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept(Box<[u8]>);

/// Set where an interval ends before the key; no key is as long.
const END: u8 = 0x80;

impl Kept {
    pub(super) fn pack(owned: &[(Element, Data)]) -> Self {
        let lengths = owned
            .iter()
            .map(|(element, data)| 3 + element.key.as_slice().len() + data.as_slice().len());
        let mut bytes = Vec::with_capacity(lengths.sum());
        for (Element { set, key, end }, data) in owned {
            let (key, data) = (key.as_slice(), data.as_slice());
            let end = if *end { END } else { 0 };
            bytes.extend([set.number(), key.len() as u8 | end, data.len() as u8]);
            bytes.extend(key);
            bytes.extend(data);
        }
        Self(bytes.into_boxed_slice())
    }

    pub(super) fn unpack(&self) -> Owned {
        let element = |(set, key, end, data): (u8, &[u8], bool, &[u8])| {
            let key = Key::new(key).expect("it was a key");
            let element = Element { set: Set::from_number(set), key, end };
            (element, Data::new(data).expect("it was data"))
        };
        self.parts().map(element).collect()
    }

    /// How many there are; asked for all owners with every change, so nothing is unpacked.
    pub(super) fn len(&self) -> usize {
        self.parts().count()
    }

    /// Of each element the set, the key, whether an interval ends before it, and the data.
    fn parts(&self) -> impl Iterator<Item = (u8, &[u8], bool, &[u8])> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let [set, length, data, tail @ ..] = rest else { return None };
            let (key, tail) = tail.split_at(usize::from(length & !END));
            let (data, tail) = tail.split_at(usize::from(*data));
            rest = tail;
            Some((*set, key, length & END != 0, data))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Family;

    #[test]
    fn what_is_kept_comes_back() {
        let address = Element::address(Set::Local(Family::V6), [7; 16].into());
        let slots = Set::all().filter(|set| !set.data().is_empty());
        let slot =
            |set: Set| (Element::slot(set, address, 200), Data::target(([9; 16].into(), 80)));
        let borders = [false, true].map(|end| (Element::border(Family::V4, 9, end), Data::EMPTY));
        let owned: Owned = borders.into_iter().chain(slots.map(slot)).collect();
        assert_eq!(Kept::pack(&owned).unpack(), owned);
        assert_eq!(Kept::pack(&owned).len(), owned.len());
        assert_eq!(Kept::pack(&[]).unpack(), vec![]);
        assert_eq!(Kept::pack(&owned[..1]).0.len(), 3 + 4, "of IPv4");
    }
}
