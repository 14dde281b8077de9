//! Warnings about valid settings that work only under conditions that echoed cannot check.

use super::Settings;
use crate::protocol::Rules;
use crate::protocol::rules::LogMessages;
use crate::units::format_size;

/// How large an entry journald takes on machines of the usual sizes, in bytes. A journal file is at most an eighth of
/// what the journal may have, which is a tenth of its file system: 5 MiB in /run of a machine with 2 GiB of memory
/// (/run has a fifth of it), 128 MiB on most disks.
const USUAL_MAX_ENTRY: usize = 4 * 1024 * 1024;

impl Settings {
    /// Returns warnings about values that are allowed, but may not do what they say. Each is one line.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let defaults = &self.defaults.rules;
        let mut warnings: Vec<_> = warn_large_entries("[defaults]", defaults).into_iter().collect();
        for (name, listener) in &self.listeners {
            // A problem of the defaults is reported there only.
            let inherits = |rules: &Rules| (rules.log_messages, rules.max_message);
            if inherits(&listener.rules) != inherits(defaults) {
                warnings.extend(warn_large_entries(&format!("[listener.{name}]"), &listener.rules));
            }
        }
        warnings
    }
}

fn warn_large_entries(section: &str, rules: &Rules) -> Option<String> {
    let is_large = rules.log_messages == LogMessages::Full && rules.max_message > USUAL_MAX_ENTRY;
    is_large.then(|| {
        let [size, usual] = [rules.max_message, USUAL_MAX_ENTRY].map(|bytes| format_size(bytes as u64));
        format!(
            "{section} logs messages of up to {size} (log_messages = \"full\", max_message), but journald drops an entry \
             that does not fit into a journal file, and tells no one; usual files take {usual}: lower max_message, or \
             raise SystemMaxFileSize= and RuntimeMaxFileSize= in journald.conf"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_messages_larger_than_usual_journal_files_are_warned_about() {
        let warnings = |text: &str| Settings::from_toml("test", text).unwrap().warnings();
        assert_eq!(warnings("[defaults]\nmax_message = '9MiB'\nlog_messages = 'summary'"), [""; 0]);
        assert_eq!(warnings("[defaults]\nmax_message = '4MiB'\nlog_messages = 'full'"), [""; 0]);
        let large = "[defaults]\nmax_message = '9MiB'\n[listener.lines]\nlog_messages = 'full'\n[listener.other]\n";
        let found = warnings(large);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("[listener.lines] logs messages of up to 9MiB "), "{found:?}");
        assert!(!found[0].contains('\n'));
        let inherited = "[defaults]\nmax_message = '9MiB'\nlog_messages = 'full'\n[listener.a]\n[listener.b]\n";
        let found = warnings(inherited);
        assert!(found.len() == 1 && found[0].starts_with("[defaults] logs"), "{found:?}");
    }
}
