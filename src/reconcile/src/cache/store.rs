//! What a cache knows, without lock or task: every input returns what it changed.
//!
//! Two streams feed it: the watch, which is complete and in order, and the responses to our own
//! writes, which come earlier. Versions of one cluster are compared as numbers, as Kubernetes
//! allows since 1.35 (KEP-5504); the later one wins, whichever stream brings it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::core::ObjectMeta;

use crate::{ObjectKey, Uid};

/// How long an object that only the answer to an own write has shown may stay unconfirmed by a watch
/// that is unbroken. One that is alive delivers within a second, and one that went dead in silence
/// is found out in half this time; later than this the object was deleted in between.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(60);

/// How long a deleted UID is remembered: longer than the answer to a write may be under way, which
/// is at most the time that a pass may take.
const DEAD_FOR: Duration = Duration::from_secs(300);

/// How many deleted UIDs are remembered; those that were deleted first are forgotten first.
const DEAD_MAX: usize = 50_000;

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
    pub(crate) uid: Uid,
    /// Zero when the server sent none that is a number; such an object always counts as new.
    pub(crate) version: u64,
}

impl Sighting {
    pub(crate) fn of(meta: &ObjectMeta) -> Self {
        Self {
            key: ObjectKey {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            version: meta.resource_version.as_deref().map_or(0, version_number),
        }
    }
}

/// A version as it is compared; zero for a text that is no number.
pub(crate) fn version_number(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

/// An object that is there and cannot be understood, or cannot be kept.
#[derive(Debug)]
pub(crate) struct Malformed {
    pub(crate) sighting: Sighting,
    pub(crate) why: String,
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
    uid: Uid,
    version: u64,
    own: Option<Box<Own>>,
    /// The latest relist that has shown something of this name.
    seen: u32,
    /// Whether the watch has shown it, at this or at an earlier version, since the last relist.
    is_shown: bool,
}

/// Our own writes of an object that the watch has not shown yet. Few objects have any.
#[derive(Default)]
struct Own {
    /// The versions that they produced, ascending; at least one.
    versions: Vec<u64>,
    /// The relist during which the latest came.
    relist: u32,
}

/// UIDs of objects that are gone, and at which version they went. What is heard of them is late if
/// it is not of a later version; if it is, the object had only left what is watched, and is back.
#[derive(Default)]
struct Dead {
    versions: HashMap<Uid, u64>,
    since: VecDeque<(Instant, Uid, u64)>,
}

impl Dead {
    fn has(&self, sighting: &Sighting) -> bool {
        self.versions.get(&sighting.uid).is_some_and(|gone| sighting.version <= *gone)
    }

    /// Without a version, zero, whatever is heard is late.
    fn add(&mut self, uid: &Uid, version: u64, now: Instant) {
        let version = if version == 0 { u64::MAX } else { version };
        let is_later = self.versions.get(uid).is_none_or(|known| *known < version);
        if !uid.is_empty() && is_later {
            self.versions.insert(uid.clone(), version);
            self.since.push_back((now, uid.clone(), version));
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while let Some((since, ..)) = self.since.front() {
            let is_old = now.saturating_duration_since(*since) >= DEAD_FOR;
            if !is_old && self.since.len() <= DEAD_MAX {
                return;
            }
            if let Some((_, uid, version)) = self.since.pop_front()
                && self.versions.get(&uid) == Some(&version)
            {
                self.versions.remove(&uid);
            }
        }
    }
}

struct Index<T> {
    name: &'static str,
    by: IndexBy<T>,
    /// One flat set: nearly all values have one key, and a set of their own each would be mostly
    /// empty.
    keys: BTreeSet<(Box<str>, Arc<ObjectKey>)>,
}

/// Objects by key, with indexes that always agree with them.
pub(crate) struct Store<T> {
    /// Keys are shared with the indexes.
    entries: BTreeMap<Arc<ObjectKey>, Entry<T>>,
    indexes: Vec<Index<T>>,
    /// Why, and the latest relist that has shown it.
    malformed: BTreeMap<ObjectKey, (String, u32)>,
    dead: Dead,
    /// The number of the latest relist, from 1, and whether it is under way.
    relist: u32,
    is_listing: bool,
    /// Entries that only an own write vouches for, since when. Of others only until the next sweep.
    suspects: BTreeMap<ObjectKey, Instant>,
    /// How many entries there were when the trees were built anew.
    compacted: usize,
}

impl<T> Store<T> {
    pub(crate) fn new(indexes: Vec<(&'static str, IndexBy<T>)>) -> Self {
        let index = |(name, by)| Index { name, by, keys: BTreeSet::new() };
        Self {
            entries: BTreeMap::new(),
            indexes: indexes.into_iter().map(index).collect(),
            malformed: BTreeMap::new(),
            dead: Dead::default(),
            relist: 0,
            is_listing: false,
            suspects: BTreeMap::new(),
            compacted: 0,
        }
    }

    // --- reading ---

    pub(crate) fn find(&self, key: &ObjectKey) -> Option<&Arc<T>> {
        self.entries.get(key).map(|entry| &entry.value)
    }

    pub(crate) fn malformed(&self, key: &ObjectKey) -> Option<&str> {
        self.malformed.get(key).map(|(why, _)| why.as_str())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Arc<T>)> {
        self.entries.iter().map(|(key, entry)| (&**key, &entry.value))
    }

    pub(crate) fn in_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<T>> {
        self.entries
            .range::<ObjectKey, _>(ObjectKey::new(namespace, "")..)
            .take_while(move |(key, _)| key.namespace == namespace)
            .map(|(_, entry)| &entry.value)
    }

    /// # Panics
    ///
    /// When no index has that name: asking for it is a mistake in the caller.
    pub(crate) fn keys_by_index<'a>(
        &'a self,
        name: &str,
        value: &'a str,
    ) -> impl Iterator<Item = &'a ObjectKey> {
        let index = self.indexes.iter().find(|index| index.name == name);
        index.expect("the index was declared when the watch was built").of(value)
    }

    /// # Panics
    ///
    /// When no index has that name: asking for it is a mistake in the caller.
    pub(crate) fn by_index<'a>(
        &'a self,
        name: &str,
        value: &'a str,
    ) -> impl Iterator<Item = &'a Arc<T>> {
        self.keys_by_index(name, value).filter_map(|key| self.find(key))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes in what an earlier process knew, before the watch begins. Whatever the watch shows
    /// then is newer, and what it does not show is gone.
    pub(crate) fn seed(&mut self, key: ObjectKey, value: T) -> Option<Delta<T>> {
        self.replace(Sighting { key, uid: Uid::default(), version: 0 }, Some(value), true)
    }

    // --- the watch ---

    /// The watch begins to show everything there is.
    pub(crate) fn begin_relist(&mut self) {
        self.relist += 1;
        self.is_listing = true;
    }

    /// The watch shows an object; `value` is `None` for one that is not to be kept.
    pub(crate) fn shown(&mut self, sighting: Sighting, value: Option<T>) -> Option<Delta<T>> {
        self.mark_seen(&sighting.key);
        self.malformed.remove(&sighting.key);
        if self.dead.has(&sighting) {
            return None;
        }
        if let Some(entry) = self.entries.get_mut(&sighting.key)
            && sighting.version != 0
            && sighting.version <= entry.version
        {
            return entry.confirm(sighting);
        }
        self.replace(sighting, value, true)
    }

    /// The watch shows that an object is gone.
    pub(crate) fn gone(&mut self, sighting: &Sighting, now: Instant) -> Option<Delta<T>> {
        self.malformed.remove(&sighting.key);
        // The answer to a write of ours may come later than this.
        self.dead.add(&sighting.uid, sighting.version, now);
        let entry = self.entries.get(&sighting.key)?;
        // A later object of the same name may be known already from our own create.
        (entry.uid == sighting.uid).then(|| self.remove(&sighting.key)).flatten()
    }

    /// The watch shows an object that cannot be understood. What was known of it stays.
    pub(crate) fn shown_malformed(&mut self, malformed: Malformed) {
        let Malformed { sighting, why } = malformed;
        // The answer to a write of ours that comes after the deletion.
        if self.dead.has(&sighting) {
            return;
        }
        let key = sighting.key;
        self.mark_seen(&key);
        if self.malformed.len() < MALFORMED_MAX || self.malformed.contains_key(&key) {
            self.malformed.insert(key, (why, self.relist));
        }
    }

    /// The watch has shown everything there is at `version`: what it did not show is gone.
    pub(crate) fn end_relist(&mut self, version: u64, now: Instant) -> Vec<Delta<T>> {
        if !std::mem::take(&mut self.is_listing) {
            return Vec::new();
        }
        self.malformed.retain(|_, (_, seen)| *seen == self.relist);
        let mut gone = Vec::new();
        for (key, entry) in &mut self.entries {
            if entry.seen == self.relist {
                continue;
            }
            // Created while the list was under way: perhaps after its snapshot.
            if entry.own.as_ref().is_some_and(|own| own.relist == self.relist) {
                entry.is_shown = false;
                self.suspects.insert((**key).clone(), now);
            } else {
                self.dead.add(&entry.uid, version, now);
                gone.push(key.clone());
            }
        }
        let gone = gone.iter().filter_map(|key| self.remove(key)).collect();
        self.compact();
        gone
    }

    /// Builds the trees anew if many entries came since that was last done. A tree that is filled
    /// in order, as a list fills it, has half of each node empty; built at once, it is full.
    fn compact(&mut self) {
        let count = self.entries.len();
        self.compacted = self.compacted.min(count);
        if count <= self.compacted + self.compacted / 4 {
            return;
        }
        self.compacted = count;
        self.entries = std::mem::take(&mut self.entries).into_iter().collect();
        for index in &mut self.indexes {
            index.keys = std::mem::take(&mut index.keys).into_iter().collect();
        }
    }

    /// Drops what only an own write vouched for and the watch did not confirm in time, of which
    /// only that counts in which it could: since when it is `unbroken`.
    pub(crate) fn sweep(&mut self, unbroken: Option<Instant>, now: Instant) -> Vec<Delta<T>> {
        self.dead.forget(now);
        let entries = &self.entries;
        self.suspects.retain(|key, _| entries.get(key).is_some_and(|entry| !entry.is_shown));
        let is_due = |since: Instant| {
            let waited = |begun| now.saturating_duration_since(since.max(begun));
            unbroken.is_some_and(|begun| waited(begun) >= CONFIRMED_WITHIN)
        };
        let expired = self.suspects.extract_if(.., |_, since| is_due(*since));
        let expired: Vec<_> = expired.map(|(key, _)| key).collect();
        let expired = expired.iter().filter_map(|key| self.remove(key)).collect();
        self.compact();
        expired
    }

    // --- our own writes ---

    /// The API server answered one of our writes with this object.
    pub(crate) fn wrote(
        &mut self,
        sighting: Sighting,
        value: Option<T>,
        now: Instant,
    ) -> Option<Delta<T>> {
        // Deleted while the answer was under way: taken in, it would stay for ever.
        if self.dead.has(&sighting) {
            return None;
        }
        let version = sighting.version;
        let (mut own, mut seen, mut is_shown) = (None, 0, false);
        if let Some(entry) = self.entries.get_mut(&sighting.key) {
            if version == 0 || version <= entry.version {
                return None;
            }
            seen = entry.seen;
            if entry.uid == sighting.uid {
                own = entry.own.take();
                is_shown = entry.is_shown;
            }
        }
        if !is_shown {
            self.suspects.insert(sighting.key.clone(), now);
        }
        let mut own = own.unwrap_or_default();
        own.versions.push(version);
        if own.versions.len() > OWN_MAX {
            own.versions.remove(0);
        }
        own.relist = self.relist;
        let key = sighting.key.clone();
        let delta = self.replace(sighting, value, is_shown);
        if let Some(entry) = self.entries.get_mut(&key) {
            (entry.own, entry.seen) = (Some(own), seen);
        }
        delta
    }

    /// The API server answered that our delete removed this object.
    pub(crate) fn deleted(&mut self, key: &ObjectKey, uid: &str, now: Instant) -> Option<Delta<T>> {
        // Older events of it may still be on their way and must not bring it back.
        let uid = Uid::from(uid);
        self.dead.add(&uid, 0, now);
        let entry = self.entries.get(key)?;
        (entry.uid == uid).then(|| self.remove(key)).flatten()
    }

    // --- one object ---

    fn mark_seen(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.seen = self.relist;
        }
    }

    fn replace(
        &mut self,
        sighting: Sighting,
        value: Option<T>,
        is_shown: bool,
    ) -> Option<Delta<T>> {
        let Some(value) = value else { return self.remove(&sighting.key) };
        let Sighting { key, uid, version } = sighting;
        let new = Arc::new(value);
        // What only a write of ours has shown gets the right number from whoever knows.
        let (value, seen) = (new.clone(), self.relist);
        let entry = Entry { value, uid, version, own: None, seen, is_shown };
        let known = self.entries.get_key_value(&key).map(|(known, _)| known.clone());
        let shared = known.unwrap_or_else(|| key.shared());
        let old = self.entries.insert(shared.clone(), entry).map(|entry| entry.value);
        for index in &mut self.indexes {
            index.move_key(&shared, old.as_deref(), Some(&new));
        }
        Some(Delta { key, old, new: Some(new) })
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Delta<T>> {
        let (shared, Entry { value: old, .. }) = self.entries.remove_entry(key)?;
        for index in &mut self.indexes {
            index.move_key(&shared, Some(&old), None);
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
        let own = self.own.as_mut().filter(|_| sighting.uid == self.uid)?;
        self.is_shown = true;
        let echo = own.versions.contains(&sighting.version);
        own.versions.retain(|version| *version > sighting.version);
        if own.versions.is_empty() {
            self.own = None;
        }
        (!echo).then(|| {
            let value = self.value.clone();
            Delta { key: sighting.key, old: Some(value.clone()), new: Some(value) }
        })
    }
}

impl<T> Index<T> {
    /// The keys of a value, in order.
    fn of<'a>(&'a self, value: &'a str) -> impl Iterator<Item = &'a ObjectKey> {
        let first = (value.into(), Arc::default());
        let all = self.keys.range(first..).take_while(move |(other, _)| **other == *value);
        all.map(|(_, key)| &**key)
    }

    fn move_key(&mut self, key: &Arc<ObjectKey>, old: Option<&T>, new: Option<&T>) {
        let mut from: BTreeSet<String> = old.map(&self.by).into_iter().flatten().collect();
        for value in new.map(&self.by).into_iter().flatten() {
            if !from.remove(&value) {
                self.keys.insert((value.into(), key.clone()));
            }
        }
        for value in from {
            self.keys.remove(&(value.into(), key.clone()));
        }
    }
}
