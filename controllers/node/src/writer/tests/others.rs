//! What others do to a table that has no owner: what becomes of it, and who is told.

use super::*;

#[test]
fn what_the_kernel_refuses_is_told_and_keeps_nothing_else_back() {
    in_namespace(|| {
        let agent = Agent::shared(&[(1, &[1])]);
        // It stands for all keys and has none, so it cannot be deleted by its key.
        nft("add element inet portolan vip4 { * }");
        feed(&agent.inbox, &[(2, &[2])]);
        agent.inbox.verify();
        agent.await_state(&State::Refused { count: 1, example: "Stray".into() });
        await_listed("10.96.0.2 . tcp . 6667");
        feed(&agent.inbox, &[(3, &[3])]);
        await_listed("10.96.0.3 . tcp . 6667");
        nft("delete element inet portolan vip4 { * }");
        agent.inbox.verify();
        agent.await_state(&State::Programmed);
        agent.stop();
        let services: [(u8, &[u8]); 3] = [(1, &[1]), (2, &[2]), (3, &[3])];
        let kernel = open_shared().expect("a kernel");
        assert_eq!(read(kernel), Table::new(ruleset(&services)).elements());
    });
}

#[test]
fn a_table_that_is_not_what_it_was_is_read_again_and_that_is_counted() {
    in_namespace(|| {
        let agent = Agent::shared(&[(1, &[1, 2, 3])]);
        assert_eq!(agent.sample("portolan_node_services"), 1.0);
        assert_eq!(agent.sample("portolan_node_sandboxes"), 3.0);
        assert_eq!(agent.sample("portolan_node_resyncs_total"), 0.0);
        assert!(agent.sample("portolan_node_first_programming_seconds") > 0.0);
        let rounds = "portolan_node_event_to_kernel_seconds_count";
        let (before, commits) = (agent.sample(rounds), agent.sample("portolan_node_commits_total"));
        nft("delete table inet portolan");
        feed(&agent.inbox, &[(2, &[4])]);
        await_that("the table to be read", || match agent.metrics.resyncs.get() {
            0 => Err("none was read".to_owned()),
            _ => Ok(()),
        });
        await_listed("10.96.0.2 . tcp . 6667");
        assert!(nft("list ruleset").contains("10.96.0.1 . tcp . 6667"), "and all that was there");
        assert!(agent.sample("portolan_node_resyncs_total") >= 1.0);
        assert!(agent.sample(rounds) > before);
        assert!(agent.sample("portolan_node_commits_total") > commits);
        assert_eq!(agent.sample("portolan_node_services"), 2.0);
        assert_eq!(agent.sample("portolan_node_sandboxes"), 4.0);
        agent.stop();
    });
}

#[test]
fn who_has_lost_messages_reads_the_table_and_repairs_it() {
    in_namespace(|| {
        let services: [(u8, &[u8]); 1] = [(1, &[1, 2, 3])];
        let agent = Agent::shared(&services);
        let shutdown = CancellationToken::new();
        let mut ear = Box::pin(listen(agent.inbox.clone(), agent.opened.clone(), shutdown.clone()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        // It hears only while this thread lets it.
        let mut hear_until_looked = |times: u64| {
            runtime.block_on(async {
                let looked = async {
                    while agent.metrics.verified.get() < times {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::select! {
                    ended = &mut ear => panic!("it listens no more: {ended:?}"),
                    looked = tokio::time::timeout(PATIENCE, looked) => {
                        looked.unwrap_or_else(|_| panic!("waited in vain for look {times}"));
                    }
                }
            });
        };
        // The look at its beginning: from then on it hears everything.
        hear_until_looked(1);
        deafen();
        nft("delete element inet portolan vip4 { 10.96.0.1 }");
        hear_until_looked(2);
        shutdown.cancel();
        runtime.block_on(ear).expect("an end in order");
        agent.stop();
        let kernel = open_shared().expect("a kernel");
        assert_eq!(read(kernel), Table::new(ruleset(&services)).elements());
    });
}

/// Changes another's table until who does not listen must have lost messages. None of them is about
/// the agent's own: whoever has lost nothing has no reason to look at that.
fn deafen() {
    // Each message has both names, so that few fill the room there is.
    let name = "x".repeat(200);
    nft(&format!("add table inet {name}"));
    nft(&format!("add set inet {name} {name} {{ type mark; }}"));
    let marks: Vec<_> = (0..10_000).map(|mark| mark.to_string()).collect();
    let marks = marks.join(", ");
    let is_deaf = (0..100).any(|_| {
        nft(&format!("add element inet {name} {name} {{ {marks} }}"));
        nft(&format!("flush set inet {name} {name}"));
        lost() > 0
    });
    assert!(is_deaf, "two million messages were kept");
}

/// How many messages the sockets of this namespace to netfilter have lost.
fn lost() -> u64 {
    const NETFILTER: &str = "12";
    let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").expect("/proc");
    let ours = sockets.lines().filter(|line| line.split_whitespace().nth(1) == Some(NETFILTER));
    let lost = ours.filter_map(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    lost.sum()
}
