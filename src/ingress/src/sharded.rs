//! A map for many readers and rare small writes: shards of immutable snapshots.
//!
//! A reader takes no lock. A writer copies one shard, a small fraction of the map, so the cost of
//! an update stays in the microseconds with thousands of entries.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

/// 5 000 entries make about 40 per shard; an empty map costs a few kilobytes.
const SHARD_COUNT: usize = 128;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct ShardedMap<K, V> {
    hasher: RandomState,
    shards: Box<[ArcSwap<HashMap<K, V>>]>,
    /// Writers go one after the other, or one would undo the other's copy.
    writing: Mutex<()>,
}

impl<K: Hash + Eq + Clone, V: Clone> ShardedMap<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARD_COUNT).map(|_| ArcSwap::default()).collect(),
            writing: Mutex::new(()),
        }
    }

    pub(crate) fn load<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shard(key).load().get(key).cloned()
    }

    /// Whether the key is known, without copying its value.
    pub(crate) fn contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.shard(key).load().contains_key(key)
    }

    pub(crate) fn insert(&self, key: K, value: V) -> Option<V> {
        let _writing = self.writing.lock();
        let shard = self.shard(&key);
        let mut entries = HashMap::clone(&shard.load());
        let previous = entries.insert(key, value);
        shard.store(Arc::new(entries));
        previous
    }

    /// Removes the entry if `condition` holds for its value.
    pub(crate) fn remove_if<Q>(&self, key: &Q, condition: impl FnOnce(&V) -> bool) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let _writing = self.writing.lock();
        let shard = self.shard(key);
        let current = shard.load();
        current.get(key).filter(|value| condition(value))?;
        let mut entries = HashMap::clone(&current);
        let previous = entries.remove(key);
        shard.store(Arc::new(entries));
        previous
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> &ArcSwap<HashMap<K, V>> {
        let hash = usize::try_from(self.hasher.hash_one(key) >> 32).unwrap_or_default();
        &self.shards[hash % SHARD_COUNT]
    }
}

#[cfg(test)]
mod tests {
    use super::ShardedMap;

    #[test]
    fn entries_come_and_go() {
        let map = ShardedMap::<Box<str>, u32>::new();
        for n in 0..1_000 {
            assert_eq!(map.insert(n.to_string().into(), n), None);
        }
        assert_eq!(map.insert("7".into(), 70), Some(7));
        assert_eq!(map.load("7"), Some(70));
        assert_eq!(map.remove_if("7", |&value| value == 7), None, "the condition decides");
        assert_eq!(map.remove_if("7", |&value| value == 70), Some(70));
        assert!(!map.contains("7") && map.contains("8"));
        assert_eq!(map.load("1000"), None);
    }
}
