//! Sessions that are put away and go on: at any moment, over deadlines, under other rules, and from bytes that somebody
//! else has written.

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
        let (mut calm, mut restless) = (SimulatedConnection::new(rules.clone()), SimulatedConnection::new(rules));
        restless.restart_after_each_call();
        for event in events {
            // They are restarted as it is, and for a while nobody tells the time.
            let event = match event {
                Event::RestartsFor(time) => Event::TimePasses(time),
                event => event,
            };
            event.clone().apply_to(&mut calm);
            event.apply_to(&mut restless);
            let seen = |talk: &SimulatedConnection| {
                let session = talk.session();
                (session.wants(), talk.deadline(), session.verdict(), session.totals(), talk.shutdown_sent())
            };
            prop_assert_eq!(seen(&restless), seen(&calm), "{}\n{}", restless, calm);
            prop_assert!(restless.received() == calm.received(), "{restless}\n{calm}");
            prop_assert!(restless.logged() == calm.logged(), "{restless}\n{calm}");
        }
    }
}
