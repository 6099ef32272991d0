//! What a cache knows, without lock or task: every input returns what it changed.
//!
//! Two streams feed it: the watch, which is complete and in order, and the responses to our own
//! writes, which come earlier. Versions of one cluster are compared as numbers, as Kubernetes
//! allows since 1.35 (KEP-5504); the later one wins, whichever stream brings it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::core::ObjectMeta;

use crate::ObjectKey;

/// How long an own write may stay unconfirmed after a relist that did not show it. A watch that
/// is alive delivers within a second; later than this the object was deleted in between.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(60);

/// How many malformed objects are remembered by name; the metric counts all of them.
const MALFORMED_MAX: usize = 1024;

/// Own writes of one object that the watch has not shown yet; a pass makes one or two.
const OWN_MAX: usize = 8;

/// A closure that says under which values an object is found.
pub(crate) type IndexBy<T> = Box<dyn Fn(&T) -> Vec<String> + Send + Sync>;

/// Identity and version of one object, as some response showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) key: ObjectKey,
    pub(crate) uid: String,
    /// Zero when the server sent none that is a number; such an object always counts as new.
    pub(crate) version: u64,
}

impl Sighting {
    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        let version = meta.resource_version.as_deref().and_then(|version| version.parse().ok());
        Self {
            key: ObjectKey {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
            uid: meta.uid.clone().unwrap_or_default(),
            version: version.unwrap_or(0),
        }
    }
}

/// What one input changed. Both sides are the same value when only the version moved.
#[derive(Debug)]
pub(crate) struct Delta<T> {
    pub(crate) key: ObjectKey,
    pub(crate) old: Option<Arc<T>>,
    pub(crate) new: Option<Arc<T>>,
}

struct Entry<T> {
    value: Arc<T>,
    uid: String,
    version: u64,
    /// Versions that our own writes produced and the watch has not shown yet, ascending.
    own: Vec<u64>,
    /// The relist during which the latest own write came.
    own_relist: u64,
}

struct Index<T> {
    name: &'static str,
    by: IndexBy<T>,
    keys: HashMap<String, BTreeSet<ObjectKey>>,
}

/// Objects by key, with indexes that always agree with them.
pub(crate) struct Store<T> {
    entries: BTreeMap<ObjectKey, Entry<T>>,
    indexes: Vec<Index<T>>,
    malformed: BTreeMap<ObjectKey, String>,
    /// UIDs that we saw deleted before the watch did.
    tombstones: HashMap<ObjectKey, String>,
    /// Keys the running relist has shown; `None` between relists.
    seen: Option<HashSet<ObjectKey>>,
    relist: u64,
    /// Entries that only an own write vouches for, since when.
    suspects: Vec<(ObjectKey, Instant)>,
}

impl<T> Store<T> {
    pub(crate) fn new(indexes: Vec<(&'static str, IndexBy<T>)>) -> Self {
        let index = |(name, by)| Index { name, by, keys: HashMap::new() };
        Self {
            entries: BTreeMap::new(),
            indexes: indexes.into_iter().map(index).collect(),
            malformed: BTreeMap::new(),
            tombstones: HashMap::new(),
            seen: None,
            relist: 0,
            suspects: Vec::new(),
        }
    }

    // --- reading ---

    pub(crate) fn find(&self, key: &ObjectKey) -> Option<&Arc<T>> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    pub(crate) fn malformed(&self, key: &ObjectKey) -> Option<&str> {
        self.malformed.get(key).map(String::as_str)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<T>)> {
        self.entries.iter().map(|(key, entry)| (key, &entry.value))
    }

    pub(crate) fn in_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<T>> {
        self.entries
            .range(ObjectKey::new(namespace, "")..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, entry)| &entry.value)
    }

    /// # Panics
    ///
    /// When no index has that name: asking for it is a mistake in the caller.
    pub(crate) fn by_index<'a>(
        &'a self,
        name: &str,
        value: &str,
    ) -> impl Iterator<Item = &'a Arc<T>> {
        let index = self.indexes.iter().find(|index| index.name == name);
        let index = index.expect("the index was declared when the watch was built");
        let keys = index.keys.get(value).into_iter().flatten();
        keys.filter_map(|key| self.find(key))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    // --- the watch ---

    /// The watch begins to show everything there is.
    pub(crate) fn begin_relist(&mut self) {
        self.relist += 1;
        self.seen = Some(HashSet::new());
    }

    /// The watch shows an object; `value` is `None` for one that is not to be kept.
    pub(crate) fn shown(&mut self, sighting: Sighting, value: Option<T>) -> Option<Delta<T>> {
        self.mark_seen(&sighting.key);
        self.malformed.remove(&sighting.key);
        if self.tombstones.get(&sighting.key) == Some(&sighting.uid) {
            return None;
        }
        if let Some(entry) = self.entries.get_mut(&sighting.key)
            && sighting.version != 0
            && sighting.version <= entry.version
        {
            return entry.confirm(sighting);
        }
        self.replace(sighting, value)
    }

    /// The watch shows that an object is gone.
    pub(crate) fn gone(&mut self, sighting: &Sighting) -> Option<Delta<T>> {
        self.malformed.remove(&sighting.key);
        if self.tombstones.get(&sighting.key) == Some(&sighting.uid) {
            self.tombstones.remove(&sighting.key);
        }
        let entry = self.entries.get(&sighting.key)?;
        // A later object of the same name may be known already from our own create.
        (entry.uid == sighting.uid).then(|| self.remove(&sighting.key)).flatten()
    }

    /// The watch shows an object that cannot be understood. What was known of it stays.
    pub(crate) fn shown_malformed(&mut self, key: ObjectKey, why: String) {
        self.mark_seen(&key);
        if self.malformed.len() < MALFORMED_MAX || self.malformed.contains_key(&key) {
            self.malformed.insert(key, why);
        }
    }

    /// The watch has shown everything there is: what it did not show is gone.
    pub(crate) fn end_relist(&mut self, now: Instant) -> Vec<Delta<T>> {
        let Some(seen) = self.seen.take() else { return Vec::new() };
        self.tombstones.clear();
        self.malformed.retain(|key, _| seen.contains(key));
        let mut gone = Vec::new();
        for (key, entry) in &self.entries {
            if seen.contains(key) {
                continue;
            }
            // Created while the list was under way: perhaps after its snapshot.
            if !entry.own.is_empty() && entry.own_relist == self.relist {
                self.suspects.push((key.clone(), now));
            } else {
                gone.push(key.clone());
            }
        }
        gone.iter().filter_map(|key| self.remove(key)).collect()
    }

    /// Drops what only an own write vouched for and the watch did not confirm in time.
    pub(crate) fn sweep(&mut self, now: Instant) -> Vec<Delta<T>> {
        let due = |since: Instant| now.saturating_duration_since(since) >= CONFIRMED_WITHIN;
        let (expired, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.suspects).into_iter().partition(|(_, since)| due(*since));
        self.suspects = waiting;
        let unconfirmed =
            |key: &ObjectKey| self.entries.get(key).is_some_and(|entry| !entry.own.is_empty());
        let expired: Vec<_> = expired.into_iter().map(|(key, _)| key).filter(unconfirmed).collect();
        expired.iter().filter_map(|key| self.remove(key)).collect()
    }

    // --- our own writes ---

    /// The API server answered one of our writes with this object.
    pub(crate) fn wrote(&mut self, sighting: Sighting, value: Option<T>) -> Option<Delta<T>> {
        let version = sighting.version;
        let mut own = Vec::new();
        if let Some(entry) = self.entries.get(&sighting.key) {
            if version == 0 || version <= entry.version {
                return None;
            }
            if entry.uid == sighting.uid {
                own.clone_from(&entry.own);
            }
        }
        own.push(version);
        if own.len() > OWN_MAX {
            own.remove(0);
        }
        let (key, relist) = (sighting.key.clone(), self.relist);
        let delta = self.replace(sighting, value);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.own = own;
            entry.own_relist = relist;
        }
        delta
    }

    /// The API server answered that our delete removed this object.
    pub(crate) fn deleted(&mut self, key: &ObjectKey, uid: &str) -> Option<Delta<T>> {
        let entry = self.entries.get(key)?;
        if entry.uid != uid {
            return None;
        }
        // Older events of it may still be on their way and must not bring it back.
        self.tombstones.insert(key.clone(), uid.to_owned());
        self.remove(key)
    }

    // --- one object ---

    fn mark_seen(&mut self, key: &ObjectKey) {
        if let Some(seen) = &mut self.seen {
            seen.insert(key.clone());
        }
    }

    fn replace(&mut self, sighting: Sighting, value: Option<T>) -> Option<Delta<T>> {
        let Some(value) = value else { return self.remove(&sighting.key) };
        let Sighting { key, uid, version } = sighting;
        let new = Arc::new(value);
        let entry = Entry { value: new.clone(), uid, version, own: Vec::new(), own_relist: 0 };
        let old = self.entries.insert(key.clone(), entry).map(|entry| entry.value);
        for index in &mut self.indexes {
            index.move_key(&key, old.as_deref(), Some(&new));
        }
        Some(Delta { key, old, new: Some(new) })
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Delta<T>> {
        let old = self.entries.remove(key)?.value;
        for index in &mut self.indexes {
            index.move_key(key, Some(&old), None);
        }
        Some(Delta { key: key.clone(), old: Some(old), new: None })
    }
}

impl<T> Entry<T> {
    /// The watch reaches a version that is not later than what we know.
    ///
    /// If it is one of our own writes nothing is new. If not, somebody wrote before our write:
    /// the value is known already, because our response included it, but nobody was told.
    fn confirm(&mut self, sighting: Sighting) -> Option<Delta<T>> {
        if self.own.is_empty() || sighting.uid != self.uid {
            return None;
        }
        let echo = self.own.contains(&sighting.version);
        self.own.retain(|version| *version > sighting.version);
        (!echo).then(|| {
            let value = self.value.clone();
            Delta { key: sighting.key, old: Some(value.clone()), new: Some(value) }
        })
    }
}

impl<T> Index<T> {
    fn move_key(&mut self, key: &ObjectKey, old: Option<&T>, new: Option<&T>) {
        let mut from: BTreeSet<String> = old.map(&self.by).into_iter().flatten().collect();
        for value in new.map(&self.by).into_iter().flatten() {
            if !from.remove(&value) {
                self.keys.entry(value).or_default().insert(key.clone());
            }
        }
        for value in from {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}
