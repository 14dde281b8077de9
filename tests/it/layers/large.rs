//! Files of up to 1 MiB are judged in time that grows with their size and no faster, and without much memory, whatever is in
//! them.

use std::time::Duration;

use echoed::config::Settings;

use super::Root;
use common::now;

/// The size of the largest file.
const SIZE: usize = 1 << 20;

/// How long any of them may take. What takes a time that grows with the square of the size takes minutes; what does not is
/// done in a fraction of a second, and in some seconds where this is not optimized and the machine is busy.
const CEILING: Duration = Duration::from_secs(10);

/// As many of these lines as fit, after `head`; `#` is the number of the line.
fn document(head: &str, line: &str, tail: &str) -> String {
    let mut text = head.to_owned();
    for number in 0.. {
        let next = line.replace('#', &number.to_string());
        if text.len() + next.len() + tail.len() > SIZE {
            break;
        }
        text.push_str(&next);
    }
    text + tail
}

fn documents() -> Vec<(&'static str, String)> {
    let text = "x".repeat(4000);
    let shared = format!("[defaults]\nprefix = \"{text}\"\nfixed_reply = \"{text}\"\n");
    vec![
        ("unknown keys", document("", "unknown# = 1\n", "")),
        ("unknown keys in a section", document("[limits]\n", "conections# = 1\n", "")),
        ("unknown sections", document("", "[section#]\nkey = 1\n", "")),
        ("lines that are not TOML", document("", "wrong\n", "")),
        ("lines that are not TOML, each another", document("", "wrong # = \n", "")),
        ("values that are not TOML", document("", "key# = wrong\n", "")),
        ("open brackets", document("", "[", "")),
        ("open arrays", document("key = ", "[", "")),
        ("dots", document("key", ".key", " = 1")),
        ("quotes", document("", "\"", "")),
        ("carriage returns", document("", "\r", "")),
        ("line feeds", document("", "\n", "x")),
        ("duplicate keys", document("[limits]\n", "connections = 1\n", "")),
        ("duplicate sections", document("", "[limits]\n", "")),
        ("listeners", document("", "[listener.l#]\n", "")),
        ("listeners with long replies", document(&shared, "[listener.l#]\n", "")),
        ("listeners with conflicts", document(&shared, "[listener.l#]\ndelimiter=\"x\"\n", "")),
        ("listeners with wrong names", document("", "[listener.\"!#\"]\n", "")),
        ("listeners with wrong values", document("", "[listener.l#]\nmax_message=1\n", "")),
        ("listeners with unknown keys", document("", "[listener.l#]\nprefx=\"\"\n", "")),
        ("keys of listeners with dots", document("", "listener.l#.deadlines.read = 1\n", "")),
        ("wrong addresses in one line", document("[listener.a]\nlisten = [", "1,", "]")),
        ("wrong addresses in many lines", document("[listener.a]\nlisten = [\n", "\"x#\",\n", "]")),
        ("addresses", document("[listener.a]\nlisten = [", "\"@a#\",", "]")),
        ("an array in an unknown key", document("key = [", "1,", "]")),
        ("tables in one line", document("key = [", "{a=1},", "]")),
        ("one long key", document("", "k", " = 1")),
        ("one long word", document("[log]\nlevel = \"", "w", "\"")),
        ("one long time", document("[defaults.deadlines]\nread = \"", "1s ", "\"")),
        ("one long number", document("[limits]\nconnections = ", "1", "")),
        ("one long size", document("[limits]\nbuffer_memory = \"", "1", "\"")),
        ("one long comment", document("#", "c", "\nx")),
        ("no UTF-8 for long", document("", "é", "")),
    ]
}

#[test]
fn a_file_of_1_mib_is_judged_in_time_whatever_is_in_it() {
    let mut slow = Vec::new();
    for (what, text) in documents() {
        let start = now();
        let result = Settings::from_toml("f.toml", &text);
        let time = start.elapsed();
        let shown = result.map_or_else(|error| error.to_string().len(), |_| 0);
        println!("{what}: {} ms, {shown} bytes of problems", time.as_millis());
        assert!(shown <= 1 << 20, "{what}: {shown} bytes of problems");
        if time > CEILING {
            slow.push((what, time));
        }
    }
    assert!(slow.is_empty(), "{slow:?}");
}

#[test]
fn at_most_200_problems_are_shown_and_the_rest_is_counted() {
    let root = Root::new();
    root.write("etc/10.toml", &document("", "unknown# = 1\n", "")).write("etc/20.toml", &document("", "wrong\n", ""));
    let error = root.sources.load().unwrap_err();
    assert_eq!(error.headlines().count(), 200);
    let text = error.to_string();
    let count = document("", "unknown# = 1\n", "").lines().count() + document("", "wrong\n", "").lines().count();
    assert!(text.ends_with(&format!("\nand {} more problems", count - 200)), "{}", text.lines().last().unwrap_or(""));
}

#[test]
fn large_settings_are_printed_in_time() {
    let root = Root::new();
    root.write("etc/x.toml", &document("", "[listener.l#]\nnodelay=false\n", ""));
    let loaded = root.load();
    let start = now();
    let text = loaded.print();
    assert!(start.elapsed() < CEILING, "{:?}", start.elapsed());
    assert!(text.ends_with("# default\n"));
}
