//! Sessions that are put away and go on: at any moment, over deadlines, under other rules, and from bytes that somebody
//! else has written.

mod hostile;
mod states;
mod stories;

use proptest::collection::vec;
use proptest::prelude::*;

use super::conversation::Conversation;
use super::oracle::{Event, config, event, some_rules};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_peer_does_not_notice_restarts_at_any_moment(rules in some_rules(), events in vec(event(), 0..30)) {
        let (mut calm, mut restless) = (Conversation::new(rules.clone()), Conversation::new(rules));
        restless.is_restless();
        for event in events {
            // They are restarted as it is, and for a while nobody tells the time.
            let event = match event {
                Event::RestartsFor(time) => Event::Passes(time),
                event => event,
            };
            event.clone().happens(&mut calm);
            event.happens(&mut restless);
            let seen = |talk: &Conversation| {
                let session = talk.session();
                (session.wants(), talk.deadline(), session.verdict(), session.totals(), talk.our_end())
            };
            prop_assert_eq!(seen(&restless), seen(&calm), "{}\n{}", restless, calm);
            prop_assert!(restless.heard() == calm.heard(), "{restless}\n{calm}");
            prop_assert!(restless.logged() == calm.logged(), "{restless}\n{calm}");
        }
    }
}
