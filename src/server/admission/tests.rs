//! Tests of the limits on connections and buffer memory.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::config::Settings;
use crate::protocol::Verdict;

fn admission(connections: usize, connections_per_source: u32) -> Arc<Admission> {
    Admission::new(&Limits { connections, connections_per_source, ..limits(1000) }, Waker::noop().clone())
}

fn limits(buffer_memory: usize) -> Limits {
    Limits { buffer_memory, ..Settings::default().limits }
}

fn claimed(admission: &Arc<Admission>, source: Source) -> Result<Permit, Verdict> {
    let mut permit = admission.try_acquire(false).unwrap();
    permit.claim(Some(source));
    permit.decide().map(|()| {
        assert!(permit.try_reacquire());
        permit
    })
}

fn v4(last: u8) -> Source {
    Source::of_ip(IpAddr::V4(Ipv4Addr::new(192, 0, 2, last))).unwrap()
}

#[test]
fn the_number_of_permits_is_exactly_the_limit() {
    let admission = admission(2, 0);
    let first = admission.try_acquire(false).unwrap();
    let _second = admission.try_acquire(false).unwrap();
    assert!(admission.try_acquire(false).is_none());
    drop(first);
    assert!(admission.try_acquire(false).is_some());
    assert_eq!(admission.open(), 1);
}

#[test]
fn while_an_acceptor_waits_with_a_client_other_acceptors_get_every_other_permit() {
    let admission = admission(2, 0);
    let mut held = vec![admission.try_acquire(false).unwrap(), admission.try_acquire(false).unwrap()];
    let waiting = admission.wait_with_client();
    held.remove(0);
    held.push(admission.try_acquire(false).unwrap());
    held.remove(0);
    assert_eq!(admission.shortage(false), Some(Shortage::Turn));
    assert!(admission.try_acquire(false).is_none());
    held.push(admission.try_acquire(true).unwrap());
    drop(waiting);
    held.remove(0);
    held.push(admission.try_acquire(false).unwrap());

    let waiting = admission.wait_with_client();
    held.remove(0);
    held.push(admission.try_acquire(false).unwrap());
    held.remove(0);
    assert!(admission.try_acquire(false).is_none());
    // The client has gone.
    drop(waiting);
    assert!(admission.try_acquire(false).is_some());
}

#[test]
fn a_source_has_its_own_limit() {
    let admission = admission(100, 2);
    let claimed = |source| claimed(&admission, source);
    let first = claimed(v4(1)).unwrap();
    let _second = claimed(v4(1)).unwrap();
    assert_eq!(claimed(v4(1)).unwrap_err(), Verdict::TooMany { limit: 2 });
    let other = claimed(v4(2)).unwrap();
    drop(first);
    let _third = claimed(v4(1)).unwrap();
    drop(other);
    assert_eq!(admission.sources.len(), 1, "nothing is remembered of sources without connections");
}

#[test]
fn a_connection_counts_for_the_client_that_its_proxy_header_names() {
    let admission = admission(100, 2);
    let claimed = |source| claimed(&admission, source);
    let mut first = claimed(v4(1)).unwrap();
    let mut second = claimed(v4(1)).unwrap();
    assert!(first.claim(Some(v4(2))));
    assert!(second.claim(None));
    let _others = [claimed(v4(1)).unwrap(), claimed(v4(1)).unwrap(), claimed(v4(2)).unwrap()];
    assert!(!second.claim(Some(v4(2))));
    assert_eq!(second.decide(), Err(Verdict::TooMany { limit: 2 }));
    drop((first, second));
    assert!(claimed(v4(2)).is_ok() && claimed(v4(1)).is_err());
}

#[test]
fn new_connections_do_not_overtake_pending_ones_of_their_source() {
    let admission = admission(100, 2);
    let acquire = || admission.try_acquire(false).unwrap();
    let [mut first, mut second, mut third, mut fourth] = [acquire(), acquire(), acquire(), acquire()];
    assert!(first.claim(Some(v4(1))) && second.claim(Some(v4(1))) && !third.claim(Some(v4(1))));
    drop(first);
    assert!(!fourth.claim(Some(v4(1))), "the third was here before");
    assert!(acquire().claim(Some(v4(2))), "others do not have to wait");
    assert_eq!(third.decide(), Ok(()));
    assert!(third.try_reacquire());
    assert_eq!(fourth.decide(), Err(Verdict::TooMany { limit: 2 }));
    drop(second);
    assert!(fourth.claim(Some(v4(1))), "no slot is pending");
    assert!(!acquire().claim(Some(v4(1))), "and it ended while its slot was pending");
    drop((third, fourth));
    assert!(admission.sources.len() == 0);
}

/// Acquires a permit for a connection whose source is at its limit.
fn pending(admission: &Arc<Admission>, source: Source) -> Permit {
    let mut permit = admission.try_acquire(false).unwrap();
    assert!(!permit.claim(Some(source)));
    permit
}

#[test]
fn a_connection_whose_source_is_at_its_limit_holds_no_permit_that_another_source_needs() {
    let admission = admission(2, 1);
    let _first = claimed(&admission, v4(1)).unwrap();
    let refused: Vec<_> = (0..10).map(|_| pending(&admission, v4(1))).collect();
    assert_eq!(admission.open(), 1);
    let other = claimed(&admission, v4(2)).unwrap();
    assert!(admission.try_acquire(false).is_none());
    drop(other);
    for mut permit in refused {
        assert_eq!(permit.decide(), Err(Verdict::TooMany { limit: 1 }));
        assert!(permit.refuse());
    }
    assert_eq!((admission.open(), admission.pending.load(Ordering::Relaxed)), (1, 0));
}

#[test]
fn pending_connections_are_limited_and_keep_the_server_from_being_idle() {
    let admission = admission(1, 1);
    let first = claimed(&admission, v4(1)).unwrap();
    assert_eq!(admission.shortage(false), Some(Shortage::Connections));
    admission.set_limits(&Limits { connections: 2, connections_per_source: 1, ..limits(10) });
    let mut all: Vec<_> = (0..MAX_PENDING).map(|_| pending(&admission, v4(1))).collect();
    assert_eq!(admission.shortage(false), Some(Shortage::Pending));
    assert!(admission.try_acquire(false).is_none());
    all.pop();
    assert!(admission.try_acquire(false).is_some());
    drop(first);
    assert!(admission.open() == 0 && !admission.is_idle());
    drop(all);
    assert!(admission.is_idle() && admission.sources.len() == 0);
}

#[test]
fn the_next_permit_belongs_to_the_connection_whose_source_turned_out_to_have_room() {
    let admission = admission(2, 1);
    let first = claimed(&admission, v4(1)).unwrap();
    let mut second = pending(&admission, v4(1));
    let other = admission.try_acquire(false).unwrap();
    drop(first);
    let another = admission.try_acquire(false).unwrap();
    assert_eq!(second.decide(), Ok(()));
    assert!(!second.try_reacquire(), "two are served");
    drop(other);
    assert!(admission.try_acquire(false).is_none(), "it would overtake the one that was accepted before");
    assert!(second.try_reacquire());
    assert!(admission.try_acquire(false).is_none());
    drop(another);
    assert!(admission.try_acquire(false).is_some());
    // A connection that ends meanwhile is no longer counted.
    let mut third = pending(&admission, v4(1));
    drop(second);
    assert_eq!(third.decide(), Ok(()));
    drop(third);
    assert!(admission.is_idle() && admission.sources.len() == 0);
    assert_eq!(admission.reserved.load(Ordering::Relaxed), 0);
}

#[test]
fn while_all_permits_are_taken_one_connection_waits_for_the_next_and_those_without_room_are_refused() {
    let admission = admission(1, 1);
    let first = claimed(&admission, v4(1)).unwrap();
    let accept = || admission.try_accept_undecided();
    let mut refused: Vec<_> = (0..MAX_PENDING).map(|_| accept().unwrap()).collect();
    assert!(accept().is_none(), "as many as may wait for a decision");
    for permit in &mut refused {
        assert!(!permit.claim(Some(v4(1))));
        assert_eq!(permit.decide(), Err(Verdict::TooMany { limit: 1 }));
    }
    drop(refused);
    for source in [Some(v4(2)), None] {
        let mut next = accept().unwrap();
        assert!(!next.claim(source) && next.decide().is_ok() && !next.try_reacquire());
        assert!(accept().is_none() && !admission.is_idle(), "it waits for the next permit");
    }
    let mut next = accept().unwrap();
    assert!(!next.claim(Some(v4(2))));
    drop(first);
    assert!(admission.try_acquire(false).is_none(), "it would overtake the one that was accepted before");
    assert!(next.try_reacquire());
    assert_eq!(admission.open(), 1);
    let unused = accept().unwrap();
    unused.release_unused();
    drop((accept(), next));
    assert!(admission.is_idle() && admission.sources.len() == 0);
    assert_eq!([&admission.pending, &admission.reserved].map(|count| count.load(Ordering::SeqCst)), [0, 0]);
}

#[test]
fn a_quarter_of_all_connections_may_await_their_header_but_always_one() {
    for (connections, expected) in [(1, 1), (3, 1), (8, 2), (4096, 1024)] {
        let admission = admission(connections, 1);
        let mut waiting: Vec<_> = (0..expected).map(|_| admission.try_acquire(true).unwrap()).collect();
        assert!(admission.try_acquire(true).is_none());
        assert_eq!(admission.try_acquire(false).is_some(), connections > 1, "others are accepted");
        // The header, valid or not, and the end of the connection free a place.
        assert!(waiting[0].claim(Some(v4(1))));
        let next = if connections > 1 { admission.try_acquire(true) } else { None };
        assert_eq!(next.is_some(), connections > 1);
        drop((waiting, next));
        assert_eq!((admission.open(), admission.awaiting_header.load(Ordering::Relaxed)), (0, 0));
    }
}

#[test]
fn connections_that_await_their_header_count_for_no_source() {
    let admission = admission(100, 1);
    let mut waiting: Vec<_> = (0..25).map(|_| admission.try_acquire(true).unwrap()).collect();
    for (permit, last) in waiting.iter_mut().zip(1..) {
        assert!(permit.claim(Some(v4(last))));
    }
    assert_eq!(admission.sources.len(), 25);
}

#[test]
fn new_limits_apply_to_new_connections_and_close_none() {
    let admission = admission(3, 0);
    let claimed = || claimed(&admission, v4(1));
    let mut served = vec![claimed().unwrap(), claimed().unwrap(), claimed().unwrap()];
    admission.set_limits(&Limits { connections: 2, connections_per_source: 2, ..limits(10) });
    assert_eq!((admission.open(), admission.limit()), (3, 2));
    assert!(!served[0].set_memory(11) && served[0].set_memory(10));
    served.pop();
    assert!(admission.try_acquire(false).is_none(), "as many as the limit allows are there");
    served.pop();
    served.push(claimed().expect("it is the second"));
    admission.set_limits(&Limits { connections: 9, connections_per_source: 2, ..limits(10) });
    assert_eq!(claimed().unwrap_err(), Verdict::TooMany { limit: 2 }, "those from before the limit count");
}

#[test]
fn restored_connections_count_but_are_never_refused() {
    let admission = admission(2, 2);
    let restored: Vec<_> = (0..3).map(|_| admission.acquire_unchecked(Some(v4(1)))).collect();
    let refused = admission.acquire_refused_unchecked();
    assert_eq!((admission.open(), admission.refused.load(Ordering::Relaxed)), (3, 1));
    assert!(admission.try_acquire(false).is_none());
    drop(refused);
    let mut restored = restored.into_iter();
    drop((restored.next(), restored.next()));
    let permit = claimed(&admission, v4(1)).expect("it is the second");
    drop(restored);
    assert!(claimed(&admission, v4(1)).is_ok());
    drop(permit);
    assert!(admission.is_idle() && admission.sources.len() == 0);
}

#[test]
fn refused_connections_do_not_count_against_the_limit_and_are_few() {
    let admission = admission(1, 1);
    let mut refused: Vec<_> = Vec::new();
    for _ in 0..MAX_REFUSED {
        let mut permit = admission.try_acquire(false).unwrap();
        assert!(permit.refuse());
        refused.push(permit);
    }
    assert!(!admission.try_acquire(false).unwrap().refuse());
    let _served = admission.try_acquire(false).unwrap();
    drop(refused);
    assert_eq!(admission.refused.load(Ordering::Relaxed), 0);
    assert_eq!(admission.open(), 1);
}

#[test]
fn a_connection_whose_socket_waits_to_be_closed_counts_unless_it_was_refused() {
    let admission = admission(10, 1);
    let first = claimed(&admission, v4(1)).unwrap();
    let mut rejected = pending(&admission, v4(1));
    assert!(rejected.decide().is_err());
    assert!(rejected.into_closing().is_none());
    let mut refused = admission.try_acquire(false).unwrap();
    assert!(refused.refuse());
    assert!(refused.into_closing().is_none());
    let counts = || [&admission.pending, &admission.refused].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts(), [0, 0]);
    let closing = first.into_closing();
    assert_eq!((admission.open(), admission.serving()), (1, 0));
    assert!(admission.is_idle());
    drop(closing);
    assert!(admission.is_idle() && admission.open() == 0);
}

#[test]
fn the_buffer_budget_is_enforced_and_released() {
    let admission = admission(2, 1);
    let mut one = admission.try_acquire(false).unwrap();
    let mut other = admission.try_acquire(false).unwrap();
    assert!(one.set_memory(1000));
    assert!(!other.set_memory(1));
    assert!(one.set_memory(999));
    assert!(other.set_memory(0) && other.set_memory(1));
    drop(one);
    drop(other);
    assert_eq!(admission.buffer_memory.load(Ordering::Relaxed), 0);
}
