//! What a watch has shown, kept in memory and found by key or index.

mod store;
#[cfg(test)]
mod tests;
mod wholeness;

use std::{fmt, sync::Arc, time::Instant};

use jiff::Timestamp;
use kube::Resource;
use parking_lot::{RwLock, RwLockWriteGuard};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

pub(crate) use self::{
    store::{Delta, IndexBy, Malformed, Sighting, Store, version_number},
    wholeness::Wholeness,
};
use crate::{ObjectKey, Observed, Pass, Queue, Target};

/// One change of one object, as a handler sees it.
///
/// `old` and `new` are the same value when somebody wrote before one of our own writes: the value
/// is known already, the fact that it was changed is not. Never both `None`.
#[derive(Debug)]
pub struct Change<'a, T> {
    /// The object.
    pub key: &'a ObjectKey,
    /// What was known before; `None` for a new object.
    pub old: Option<&'a Arc<T>>,
    /// What is known now; `None` for an object that is gone or no longer matches.
    pub new: Option<&'a Arc<T>>,
}

impl<T> Change<'_, T> {
    /// The keys that both the old and the new value name, each once.
    ///
    /// The old value matters: an object that moves from one owner to another concerns both.
    pub fn each<I>(&self, keys: impl Fn(&T) -> I) -> Vec<ObjectKey>
    where
        I: IntoIterator<Item = ObjectKey>,
    {
        let sides = self.old.into_iter().chain(self.new);
        let mut named: Vec<ObjectKey> = sides.flat_map(|side| keys(side)).collect();
        named.sort();
        named.dedup();
        named
    }
}

/// On whose behalf a change came: the pass that wrote it needs no waking by its own write.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) queue: &'a Queue,
    pub(crate) key: &'a ObjectKey,
}

/// What is done with every change.
pub(crate) type Handler<T> = Box<dyn Fn(&Change<'_, T>, Option<Origin<'_>>) + Send + Sync>;

/// Turns an object as the API server sends it into what is kept of it, if anything; or says why it
/// cannot be kept.
pub(crate) type Project<K, T> = Box<dyn Fn(K) -> Result<Option<T>, String> + Send + Sync>;

/// Whether two values are the same to everybody who is told of changes.
pub(crate) type IsSame<T> = Box<dyn Fn(&T, &T) -> bool + Send + Sync>;

/// What a cache is made of.
pub(crate) struct CacheParts<K, T> {
    pub(crate) project: Project<K, T>,
    pub(crate) indexes: Vec<(&'static str, IndexBy<T>)>,
    pub(crate) handlers: Vec<Handler<T>>,
    pub(crate) is_same: Option<IsSame<T>>,
    pub(crate) size: Gauge,
    pub(crate) wholeness: Wholeness,
}

/// The objects of one watch: `K` as the API server has them, `T` as they are kept.
///
/// Cheap to clone; all clones are the same cache. Reads never wait for the API server. What is
/// kept lags behind the cluster, but never behind our own writes, if these are handed to
/// [`Cache::observe`].
pub struct Cache<K, T = K> {
    inner: Arc<Inner<K, T>>,
}

struct Inner<K, T> {
    store: RwLock<Store<T>>,
    project: Project<K, T>,
    handlers: Vec<Handler<T>>,
    is_same: Option<IsSame<T>>,
    synced: watch::Sender<bool>,
    size: Gauge,
    wholeness: Wholeness,
}

impl<K, T> Cache<K, T> {
    pub(crate) fn new(parts: CacheParts<K, T>) -> Self {
        let CacheParts { project, indexes, handlers, is_same, size, wholeness } = parts;
        let store = RwLock::new(Store::new(indexes));
        let synced = watch::Sender::new(false);
        let inner = Inner { store, project, handlers, is_same, synced, size, wholeness };
        Self { inner: Arc::new(inner) }
    }

    /// The object, if it is in the cache. For decisions about absence use [`Cache::observed`].
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<T>> {
        self.inner.store.read().find(key).cloned()
    }

    /// What is known of the object: absence only once everything has been listed, and nothing of
    /// an object that is there but could not be understood.
    pub fn observed(&self, key: &ObjectKey) -> Observed<Arc<T>> {
        let store = self.inner.store.read();
        match (store.malformed(key), store.find(key)) {
            (Some(why), _) => Observed::Unknown(format!("object {key} is malformed: {why}")),
            (None, Some(found)) => Observed::Present(found.clone()),
            (None, None) if self.is_synced() => Observed::Absent,
            (None, None) => Observed::Unknown("not listed yet".to_owned()),
        }
    }

    /// All objects, ordered by key.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.inner.store.read().iter().map(|(_, value)| value.clone()).collect()
    }

    /// The objects of one namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        self.inner.store.read().in_namespace(namespace).cloned().collect()
    }

    /// The objects that an index finds under `value`, ordered by key.
    ///
    /// # Panics
    ///
    /// When the watch was built without that index.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<T>> {
        self.inner.store.read().by_index(index, value).cloned().collect()
    }

    /// The keys of the objects that an index finds under `value`, in order.
    ///
    /// # Panics
    ///
    /// When the watch was built without that index.
    pub fn keys_by_index(&self, index: &str, value: &str) -> Vec<ObjectKey> {
        self.inner.store.read().keys_by_index(index, value).cloned().collect()
    }

    /// The keys of all objects, in order.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.inner.store.read().iter().map(|(key, _)| key.clone()).collect()
    }

    /// All objects with their keys, in order.
    pub fn entries(&self) -> Vec<(ObjectKey, Arc<T>)> {
        let store = self.inner.store.read();
        store.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.inner.store.read().len()
    }

    /// Whether there are no objects.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether everything has been listed once.
    pub fn is_synced(&self) -> bool {
        *self.inner.synced.borrow()
    }

    /// Waits until everything has been listed once.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn synced(&self) {
        let mut synced = self.inner.synced.subscribe();
        synced.wait_for(|synced| *synced).await.expect("the cache holds the sender");
    }

    /// Since when every change has been seen without a gap: a span of it that is older than this
    /// was waited out by a reader that nothing was hidden from. `None` while the watch is
    /// interrupted, and before everything has been listed.
    ///
    /// The end of a watch that is resumed at once is no gap. Coming back after an interruption
    /// begins anew, even if all that was missed could be read afterwards: it came late.
    pub fn unbroken_since(&self) -> Option<Timestamp> {
        self.inner.wholeness.unbroken_since()
    }

    /// Since when changes may have been missed: the age of what is kept. `None` while the watch is
    /// unbroken, and before everything has been listed.
    pub fn interrupted_since(&self) -> Option<Timestamp> {
        self.inner.wholeness.interrupted_since()
    }

    /// Takes in what the API server answered to a write of this pass, if it is later than what is
    /// known, so that the next pass reads our own write.
    ///
    /// Handlers run as for a watched change, but the pass's own key is not woken; nor does the
    /// echo from the watch wake anybody. A foreign write between the read and our write does.
    pub fn observe(&self, object: K, pass: &Pass)
    where
        K: Resource,
    {
        let sighting = Sighting::of(object.meta());
        let delta = match (self.inner.project)(object) {
            Ok(value) => self.change(|store| store.wrote(sighting, value, now())),
            // The watch shows it, too, and reports it.
            Err(why) => return self.shown_malformed(Malformed { sighting, why }),
        };
        self.tell(delta.as_ref(), Some(pass.origin()));
    }

    /// Takes in that a delete of this pass removed the object at once.
    pub fn observe_gone(&self, target: &Target, pass: &Pass) {
        let delta = self.change(|store| store.deleted(&target.key, &target.uid, now()));
        self.tell(delta.as_ref(), Some(pass.origin()));
    }

    // --- the watch's side ---

    pub(crate) fn seed(&self, key: ObjectKey, value: T) {
        let delta = self.change(|store| store.seed(key, value));
        self.tell(delta.as_ref(), None);
    }

    pub(crate) fn begin_relist(&self) {
        self.inner.store.write().begin_relist();
    }

    /// An object that cannot be kept is given back as malformed.
    pub(crate) fn shown(&self, object: K) -> Result<(), Malformed>
    where
        K: Resource,
    {
        let sighting = Sighting::of(object.meta());
        let delta = match (self.inner.project)(object) {
            Ok(value) => self.change(|store| store.shown(sighting, value)),
            Err(why) => return Err(Malformed { sighting, why }),
        };
        self.tell(delta.as_ref(), None);
        Ok(())
    }

    pub(crate) fn gone(&self, sighting: &Sighting) {
        let delta = self.change(|store| store.gone(sighting, now()));
        self.tell(delta.as_ref(), None);
    }

    pub(crate) fn shown_malformed(&self, malformed: Malformed) {
        self.inner.store.write().shown_malformed(malformed);
    }

    /// `version` is that of the list.
    pub(crate) fn end_relist(&self, version: u64, at: Timestamp) {
        let deltas = self.change(|store| store.end_relist(version, now()));
        // Whoever waits to be synced finds it whole.
        self.inner.wholeness.begin(at, now());
        self.inner.synced.send_replace(true);
        deltas.iter().for_each(|delta| self.tell(Some(delta), None));
    }

    /// From `at` on changes arrive as they happen.
    pub(crate) fn followed(&self, at: Timestamp) {
        self.inner.wholeness.begin(at, now());
    }

    /// From `at` on changes may be missed.
    pub(crate) fn interrupted(&self, at: Timestamp) {
        self.inner.wholeness.end(at);
    }

    pub(crate) fn sweep(&self) {
        let unbroken = self.inner.wholeness.unbroken_instant();
        let deltas = self.change(|store| store.sweep(unbroken, now()));
        deltas.iter().for_each(|delta| self.tell(Some(delta), None));
    }

    fn change<R>(&self, input: impl FnOnce(&mut Store<T>) -> R) -> R {
        let mut store: RwLockWriteGuard<'_, _> = self.inner.store.write();
        let result = input(&mut store);
        self.inner.size.set(i64::try_from(store.len()).unwrap_or(i64::MAX));
        result
    }

    /// Handlers run outside the lock: they may read the cache.
    fn tell(&self, delta: Option<&Delta<T>>, origin: Option<Origin<'_>>) {
        let Some(Delta { key, old, new }) = delta else { return };
        if let (Some(old), Some(new), Some(is_same)) = (old, new, &self.inner.is_same)
            // One value on both sides is somebody's write that our own one hid.
            && !Arc::ptr_eq(old, new)
            && is_same(old, new)
        {
            return;
        }
        let change = Change { key, old: old.as_ref(), new: new.as_ref() };
        for handler in &self.inner.handlers {
            handler(&change, origin);
        }
    }
}

impl<K, T> Clone for Cache<K, T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K, T> fmt::Debug for Cache<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Cache");
        debug.field("len", &self.len()).field("synced", &self.is_synced()).finish()
    }
}

/// Tokio's clock, so that tests can hold it still.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
