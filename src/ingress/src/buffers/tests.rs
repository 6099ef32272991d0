use futures::FutureExt;
use http::HeaderName;
use tokio::time::advance;

use super::*;
use crate::metrics::Metrics;
use crate::settings::Settings;

const MAX: u64 = 36_000_000;

fn mk_core() -> Arc<Core> {
    let settings = Settings { response_buffers_max: MAX, ..Settings::standard() };
    Arc::new(Core::new(settings, Arc::new(Metrics::new())))
}

fn mk_account(share: &Arc<Share>) -> Arc<Account> {
    Arc::new(Account::new(Arc::clone(share)))
}

fn mk_share(core: &Arc<Core>) -> Arc<Share> {
    Arc::new(Share::new(Arc::clone(core)))
}

/// Takes as long as there is room; returns how much that was.
fn fill(account: &Arc<Account>, charges: &mut Vec<Charge>) -> i64 {
    const STEP: usize = 1_000;
    let before = account.held.load(Ordering::SeqCst);
    while account.has_room(Need::More) {
        charges.push(account.charge(STEP));
    }
    account.held.load(Ordering::SeqCst) - before
}

#[tokio::test]
async fn what_was_held_is_counted_until_it_is_dropped() {
    let core = mk_core();
    let share = mk_share(&core);
    let accounts = [mk_account(&share), mk_account(&share)];
    let charges = [accounts[0].charge(10), accounts[1].charge(20), accounts[1].charge_piece(1)];
    let held = |account: &Account| account.held.load(Ordering::SeqCst);
    let all = [held(&accounts[0]), held(&accounts[1]), share.held.load(Ordering::SeqCst)];
    assert_eq!(all, [10, 21 + 512, 31 + 512]);
    assert_eq!(core.metrics.response_buffers.get(), 31 + 512);
    drop(charges);
    assert!(accounts.iter().all(|account| account.is_empty()));
    assert_eq!(share.held.load(Ordering::SeqCst), 0);
    assert_eq!(core.metrics.response_buffers.get(), 0);
}

#[tokio::test]
async fn something_is_left_for_whoever_comes() {
    let core = mk_core();
    let mut charges = Vec::new();
    let max = i64::try_from(MAX).unwrap();
    let share = mk_share(&core);
    let first = fill(&mk_account(&share), &mut charges);
    assert!((first - max / 41).abs() < max / 200, "one connection holds {first}");
    for _ in 0..200 {
        fill(&mk_account(&share), &mut charges);
    }
    let of_client = share.held.load(Ordering::SeqCst);
    assert!((of_client - max / 9).abs() < max / 90, "one client holds {of_client}");
    for _ in 0..20 {
        let share = mk_share(&core);
        for _ in 0..50 {
            fill(&mk_account(&share), &mut charges);
        }
    }
    let all = core.metrics.response_buffers.get();
    assert!(all < max, "{all}");
    let next = fill(&mk_account(&mk_share(&core)), &mut charges);
    assert!(next > 64 * 1024, "who comes last may hold {next}");
    drop(charges);
    assert_eq!(core.metrics.response_buffers.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn patience_ends_as_room_does() {
    let core = mk_core();
    let account = mk_account(&mk_share(&core));
    let usual = core.settings.write_stall;
    assert_eq!(account.patience(), usual);
    let half = account.charge(usize::try_from(MAX / 2).unwrap());
    assert_eq!(account.patience(), usual / 2);
    let rest = account.charge(usize::try_from(MAX).unwrap());
    assert_eq!(account.patience(), usual / PATIENCE_PART);
    assert!(!account.is_stuck_for(usual));
    advance(usual).await;
    assert!(account.is_stuck_for(usual));
    drop(half);
    assert!(!account.is_stuck_for(usual), "it took something");
    advance(usual).await;
    drop(rest);
    assert!(!account.is_stuck_for(Duration::ZERO), "nothing is held");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_room_is_woken_by_the_same_client_at_once() {
    let core = mk_core();
    let share = mk_share(&core);
    let mut charges = Vec::new();
    let account = mk_account(&share);
    fill(&account, &mut charges);
    let waiting = tokio::spawn({
        let account = Arc::clone(&account);
        async move {
            let began = Instant::now();
            account.room(Need::More).await.map(|()| began.elapsed())
        }
    });
    tokio::task::yield_now().await;
    assert_eq!(share.waiting.lock().len(), 1);
    charges.pop();
    assert_eq!(waiting.await.unwrap().unwrap(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn and_by_others_before_long() {
    let core = mk_core();
    let other = mk_account(&mk_share(&core)).charge(usize::try_from(MAX).unwrap());
    let account = mk_account(&mk_share(&core));
    let waiting = account.room(Need::First);
    let mut waiting = std::pin::pin!(waiting);
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(other);
    let began = Instant::now();
    assert!(waiting.await.is_ok());
    assert!(began.elapsed() <= LOOK_AGAIN);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_and_its_list_does_not_grow() {
    let core = mk_core();
    let share = mk_share(&core);
    let account = mk_account(&share);
    let _all = account.charge(usize::try_from(MAX).unwrap());
    let waiting: Vec<_> = (0..2 * WAITING_MAX)
        .map(|_| {
            let account = Arc::clone(&account);
            tokio::spawn(async move { account.room(Need::More).await.is_err() })
        })
        .collect();
    let began = Instant::now();
    for waiting in waiting {
        assert!(waiting.await.unwrap(), "there was no room");
        assert!(share.waiting.lock().len() <= WAITING_MAX);
    }
    let spent = began.elapsed();
    assert!(spent <= core.settings.write_stall + LOOK_AGAIN, "{spent:?}");
}

#[tokio::test]
async fn a_stream_needs_its_clients_room_and_a_head_none() {
    let core = mk_core();
    let share = mk_share(&core);
    let mut charges = Vec::new();
    let account = mk_account(&share);
    fill(&account, &mut charges);
    assert!(account.has_room(Need::First), "the client may hold more");
    charges.push(account.charge(usize::try_from(MAX).unwrap()));
    assert!(!account.has_room(Need::First) && account.has_room(Need::Head));
    let head = account.charge_head(100);
    assert!(!account.has_room(Need::Head), "one at a time");
    drop(head);
    assert!(account.has_room(Need::Head));
}

#[tokio::test]
async fn a_head_counts_until_all_of_it_is_gone() {
    let core = mk_core();
    let account = mk_account(&mk_share(&core));
    let mut fields = HeaderMap::new();
    fields.insert(HeaderName::from_static("x-request-id"), HeaderValue::from_static("abc"));
    let size = size_of(&fields);
    assert_eq!(size, 12 + 3 + FIELD_SIZE);
    let value = counting(&fields["x-request-id"], account.charge(size));
    assert!(value == "abc" && value.is_sensitive());
    let (kept, first) = (value.clone(), value);
    drop(first);
    assert!(!account.is_empty());
    drop(kept);
    assert!(account.is_empty());
}
