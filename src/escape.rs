//! Which characters of a peer's text are escaped before a person sees it.

/// Returns whether a character acts on the terminal or cannot be seen, instead of being shown: controls (C0, DEL, C1),
/// format characters (direction, joining, tags), separators of lines and paragraphs, and what has no width (Unicode's
/// `Default_Ignorable_Code_Point`).
pub(crate) fn is_unsafe(c: char) -> bool {
    // Most text is ASCII.
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{34f}'
                | '\u{600}'..='\u{605}'
                | '\u{61c}'
                | '\u{6dd}'
                | '\u{70f}'
                | '\u{890}'..='\u{891}'
                | '\u{8e2}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{110bd}'
                | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_or_has_no_width_is_unsafe_and_text_is_not() {
        let unsafe_characters = "\0\t\n\r\x1b\x7f\u{80}\u{85}\u{9b}\u{ad}\u{61c}\u{200b}\u{200d}\u{200e}\u{200f}\u{2028}\
                                 \u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{3164}\u{fe0f}\u{feff}\u{e0041}";
        for c in unsafe_characters.chars() {
            assert!(is_unsafe(c), "{c:?}");
        }
        for c in " aZ~\\\"é\u{301}日本हिन्दीשלום😀\u{a0}\u{fffd}".chars() {
            assert!(!is_unsafe(c), "{c:?}");
        }
    }
}
