//! Where texts are kept that are many and much alike.
//!
//! Several controllers of one process watch the same objects, each for itself. What they keep of
//! them is the same text, so it is kept once. And all objects of a kind say the same words in the
//! same order, so one of them is the dictionary of the others, and most of a text goes without
//! saying.

use std::{
    any::TypeId,
    collections::{HashMap, HashSet},
    fmt, mem,
    sync::{Arc, LazyLock},
};

use lz4_flex::block::{compress_prepend_size_with_dict, decompress_size_prepended_with_dict};
use parking_lot::Mutex;

/// The shelves of all kinds. They are of the process because its controllers know nothing of each
/// other; nothing but memory depends on who else keeps a text.
static SHELVES: LazyLock<Mutex<HashMap<TypeId, Arc<Shelf>>>> = LazyLock::new(Mutex::default);

/// The texts of one kind.
pub(crate) struct Shelf {
    /// The first text of the kind.
    dictionary: Box<[u8]>,
    /// Every text that somebody has, compressed.
    texts: Mutex<HashSet<Arc<[u8]>>>,
}

/// A text on a shelf. Equal when the texts are.
#[derive(Clone)]
pub(crate) struct Text {
    shelf: Arc<Shelf>,
    compressed: Arc<[u8]>,
}

impl Shelf {
    /// The shelf of a kind; `first` is its dictionary if it is new.
    pub(crate) fn of<K: 'static>(first: &[u8]) -> Arc<Self> {
        let mut shelves = SHELVES.lock();
        let new = || Arc::new(Self { dictionary: first.into(), texts: Mutex::default() });
        shelves.entry(TypeId::of::<K>()).or_insert_with(new).clone()
    }

    /// Keeps a text until what is returned is dropped.
    pub(crate) fn keep(self: Arc<Self>, text: &[u8]) -> Text {
        let compressed = compress_prepend_size_with_dict(text, &self.dictionary);
        let mut texts = self.texts.lock();
        let compressed = match texts.get(&*compressed) {
            Some(known) => known.clone(),
            None => {
                let new: Arc<[u8]> = compressed.into();
                texts.insert(new.clone());
                new
            }
        };
        drop(texts);
        Text { shelf: self, compressed }
    }
}

impl Text {
    /// The text.
    pub(crate) fn read(&self) -> Vec<u8> {
        decompress_size_prepended_with_dict(&self.compressed, &self.shelf.dictionary)
            .expect("what was compressed with a dictionary can be decompressed with it")
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.compressed, &other.compressed)
    }
}

impl Eq for Text {}

impl Drop for Text {
    fn drop(&mut self) {
        let mut texts = self.shelf.texts.lock();
        // Given up before the shelf is unlocked, so that the last one knows that it is the last.
        let mine = mem::take(&mut self.compressed);
        if Arc::strong_count(&mine) == 2 {
            texts.remove(&*mine);
        }
    }
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").field("texts", &self.texts.lock().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(number: u32) -> Vec<u8> {
        format!(r#"{{"kind":"App","metadata":{{"name":"app-{number}"}},"spec":{{"image":"i"}}}}"#)
            .into_bytes()
    }

    #[test]
    fn a_text_is_kept_once_and_as_long_as_somebody_has_it() {
        struct Kind;
        let shelf = || Shelf::of::<Kind>(&text(0));
        let (one, another, other) =
            (shelf().keep(&text(1)), shelf().keep(&text(1)), shelf().keep(&text(2)));
        assert!(one == another && one != other);
        assert_eq!(shelf().texts.lock().len(), 2);
        drop(one);
        assert_eq!(another.read(), text(1));
        assert_eq!(shelf().texts.lock().len(), 2);
        drop(another);
        assert_eq!(shelf().texts.lock().len(), 1);
        assert_eq!(other.read(), text(2));
    }

    #[test]
    fn what_all_say_takes_no_room() {
        struct Kind;
        let all: Vec<_> = (0..10).map(|n| Shelf::of::<Kind>(&text(0)).keep(&text(n))).collect();
        assert!(all.iter().all(|text| text.compressed.len() < 24), "{:?}", all[1].compressed);
        assert!(all.iter().zip(0..).all(|(kept, number)| kept.read() == text(number)));
    }

    #[test]
    fn many_who_keep_and_drop_at_once_leave_nothing() {
        struct Kind;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for number in 0..2_000 {
                        let kept = Shelf::of::<Kind>(&text(0)).keep(&text(number % 7));
                        assert_eq!(kept.read(), text(number % 7));
                    }
                });
            }
        });
        assert!(Shelf::of::<Kind>(&text(0)).texts.lock().is_empty());
    }
}
