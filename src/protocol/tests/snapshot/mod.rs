//! Sessions that are stored and restored: at any moment, over deadlines, under other rules, and from bytes of any origin.

mod hostile;
mod restarts;
mod states;

use proptest::collection::vec;
use proptest::prelude::*;

use super::oracle::{Event, config, event, some_rules};
use super::simulation::SimulatedConnection;

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_peer_does_not_notice_restarts_at_any_moment(rules in some_rules(), events in vec(event(), 0..30)) {
        let (mut plain, mut restarting) = (SimulatedConnection::new(rules.clone()), SimulatedConnection::new(rules));
        restarting.restart_after_each_call();
        for event in events {
            // `RestartsFor` would also restart `plain`, and would skip timeouts.
            let event = match event {
                Event::RestartsFor(time) => Event::TimePasses(time),
                event => event,
            };
            event.clone().apply_to(&mut plain);
            event.apply_to(&mut restarting);
            let seen = |conn: &SimulatedConnection| {
                let session = conn.session();
                (session.wants(), conn.deadline(), session.verdict(), session.totals(), conn.shutdown_sent())
            };
            prop_assert_eq!(seen(&restarting), seen(&plain), "{}\n{}", restarting, plain);
            prop_assert!(restarting.received() == plain.received(), "{restarting}\n{plain}");
            prop_assert!(restarting.logged() == plain.logged(), "{restarting}\n{plain}");
        }
    }
}
