//! Configurations that are refused: each with the position that is shown, and what is said about it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use common::{self, Daemon};

/// Nobody can listen here, so that a configuration that is accepted by mistake ends with 71.
const UNUSABLE_ADDRESS: &str = "DIR/no such directory/socket";

/// A configuration, `LINE:COLUMN` of what is wrong in it, and part of what is said about that.
type Row = (&'static str, &'static str, &'static str);

/// Starts the daemon with a configuration that it has to refuse. What it says, without the name of the file.
fn config_error(configuration: &str) -> Result<Vec<String>, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    let mut daemon = Daemon::spawn_with(&mut command, configuration, &["--listen", UNUSABLE_ADDRESS]);
    let status = daemon.wait();
    if status.code() != Some(78) {
        return Err(format!("expected status 78, not {status}:\n{configuration}\n{}", daemon.log().join("\n")));
    }
    let file = format!("{}:", daemon.directory().join("echoed.toml").display());
    Ok(daemon.log().iter().map(|line| line.strip_prefix(&file).unwrap_or(line).to_owned()).collect())
}

/// Checks that `configuration` is refused with one block, which shows this position and says this.
fn check_refusal((configuration, position, said): Row) -> Result<(), String> {
    let log = config_error(configuration)?;
    let wrong = |problem: &str| Err(format!("{problem}:\n{configuration}\n{}\n", log.join("\n")));
    let [head, empty, line, caret] = &*log else { return wrong("expected one block of four lines") };
    let Some(message) = head.strip_prefix(&format!("{position}: ")) else {
        return wrong(&format!("expected the position {position}"));
    };
    if !message.contains(said) {
        return wrong(&format!("expected \"{said}\""));
    }
    let (number, column) = position.split_once(':').expect("a position is LINE:COLUMN");
    let (number, column): (usize, usize) = (number.parse().expect("digits"), column.parse().expect("digits"));
    let configuration = configuration.trim_start_matches('\u{feff}').replace(['\u{1b}', '\u{202e}'], "\u{fffd}");
    let shown = configuration.lines().nth(number - 1).unwrap_or_default();
    let margin = " ".repeat(number.to_string().len());
    let before = caret.find('^').map_or("", |at| &caret[..at]);
    if *empty != format!("{margin} |") || *line != format!("{number} | {shown}") {
        return wrong("expected the line");
    }
    // A tab before the caret stands where there is one in the line.
    let indent: String = shown.chars().take(column - 1).map(|c| if c == '\t' { c } else { ' ' }).collect();
    if before != format!("{margin} | {indent}") || !caret[before.len()..].bytes().all(|byte| byte == b'^') {
        return wrong(&format!("expected the caret below column {column}"));
    }
    Ok(())
}

fn check_refusals(rows: &[Row]) {
    let wrong: Vec<_> = rows.iter().filter_map(|row| check_refusal(*row).err()).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn unknown_keys_are_refused_and_the_nearest_known_key_is_suggested() {
    check_refusals(&[
        ("[servce]\n", "1:2", "there is no key servce; is service meant?"),
        ("workers = 2\n", "1:1", "there is no key workers; it belongs in [service]"),
        ("colour = 2\n", "1:1", "there is no key colour; known are log, service, limits, defaults, listener"),
        ("[deadlines]\nidle = \"1s\"\n", "1:2", "it belongs in [defaults] or [listener.NAME]"),
        (
            "[defaults]\nidle = \"1s\"\n",
            "2:1",
            "in [defaults]; it belongs in [defaults.deadlines] or [listener.NAME.dead",
        ),
        ("[defaults.deadlines]\ndrain_timeout = \"1s\"\n", "2:1", "it belongs in [service]"),
        ("[listener.x]\nlevel = \"info\"\n", "2:1", "in [listener.x]; it belongs in [log]"),
        ("listen = []\n", "1:1", "it belongs in [listener.NAME]"),
        ("[listeners.echo]\nlisten = []\n", "1:2", "is listener meant?"),
        ("[echo]\nlisten = []\n", "1:2", "known are log"),
        ("[listener.echoed.socket]\nprefix = \"\"\n", "1:18", "needs quotes: [listener.\"echoed.socket\"]"),
        ("[listener.a.deadlins]\nread = \"1s\"\n", "1:13", "is deadlines meant?"),
        ("[listener.\"a.b\"]\nprefx = \"\"\n", "2:1", "in [listener.\"a.b\"]; is prefix meant?"),
        ("[service.workers]\nx = 1\n", "1:1", "workers is a number, not a table"),
        ("service = { workers = 1, idle_exti = \"1s\" }\n", "1:26", "is idle_exit meant?"),
        ("[service]\nworker = 2\n", "2:1", "there is no key worker in [service]; is workers meant?"),
        ("[service]\nWorkers = 2\n", "2:1", "is workers meant?"),
        ("[log]\nlevel = \"info\"\ncolour = true\n", "3:1", "no key colour in [log]; known are level"),
        ("[limits]\nmax_connections = 5\n", "2:1", "there is no key max_connections in [limits]"),
        ("[defaults]\ndelimeter = \"x\"\n", "2:1", "is delimiter meant?"),
        ("[defaults]\nmax-message = \"1KiB\"\n", "2:1", "is max_message meant?"),
        ("[defaults]\n\t\"no\\ndelay\" = true\n", "2:2", r"there is no key no\ndelay"),
        ("[defaults.deadline]\nread = \"1s\"\n", "1:11", "is deadlines meant?"),
        ("defaults.deadlines.reed = \"1s\"\n", "1:20", "in [defaults.deadlines]; is read meant?"),
        ("[listener.echo.deadlines]\nidel = \"1s\"\n", "2:1", "in [listener.echo.deadlines]; is idle meant?"),
        ("[listener.echo]\nlisten_on = []\n", "2:1", "in [listener.echo]; is listen meant?"),
        ("[defaults]\nlisten = [\"127.0.0.1:0\"]\n", "2:10", "listen belongs in [listener.NAME], not in [defaults]"),
    ]);
}

#[test]
fn values_of_the_wrong_type_are_refused_and_not_converted() {
    check_refusals(&[
        ("log = \"info\"\n", "1:7", "[log] is a section, not a string"),
        ("[log]\nlevel = 3\n", "2:9", "level is a word, not an integer"),
        ("[service]\nworkers = \"2\"\n", "2:11", "workers is a number, not a string; write 2"),
        ("[service]\nworkers = \"two\"\n", "2:11", "workers is a number, not a string"),
        ("[service]\nworkers = 2.7\n", "2:11", "workers is a number, not a float"),
        ("[service]\nworkers = inf\n", "2:11", "not a float"),
        ("[service]\nworkers = [2]\n", "2:11", "not an array"),
        ("[service]\nidle_exit = true\n", "2:13", "idle_exit is a time or \"off\", not a boolean"),
        ("[defaults]\nprefix = 3\n", "2:10", "prefix is a string, not an integer; write \"3\""),
        ("[defaults]\nprefix = 3.5\n", "2:10", "not a float; write \"3.5\""),
        ("[defaults]\nprefix = true\n", "2:10", "not a boolean; write \"true\""),
        ("[defaults]\nprefix = 12:30:00\n", "2:10", "not a datetime"),
        ("[defaults]\nlog_messages = false\n", "2:16", "log_messages is a word, not a boolean"),
        ("[service]\nworkers = 2.0\n", "2:11", "not a float"),
        ("[service]\nworkers = true\n", "2:11", "not a boolean"),
        ("[limits]\nconnections = \"many\"\n", "2:15", "not a string"),
        ("[limits]\nconnections_per_source = 1.5\n", "2:26", "not a float"),
        ("[limits]\nbuffer_memory = false\n", "2:17", "not a boolean"),
        ("[defaults]\nerror_replies = \"yes\"\n", "2:17", "error_replies is true or false, not a string; write true"),
        ("[defaults]\nnodelay = \"off\"\n", "2:11", "nodelay is true or false, not a string; write false"),
        ("[defaults]\nerror_replies = 1\n", "2:17", "not an integer"),
        ("[defaults]\nnodelay = \"on\"\n", "2:11", "nodelay is true or false, not a string; write true"),
        ("[defaults]\nunterminated = true\n", "2:16", "not a boolean"),
        ("[defaults]\ndelimiter = 9\n", "2:13", "not an integer"),
        ("[defaults]\ndelimiter = [\"\\t\"]\n", "2:13", "not an array"),
        ("[defaults]\nprefix = {}\n", "2:10", "not a table"),
        ("[defaults]\nmax_message = [\"1KiB\"]\n", "2:15", "not an array"),
        ("[defaults]\ndeadlines = \"2s\"\n", "2:13", "[defaults.deadlines] is a section, not a string"),
        ("[defaults.deadlines]\nread = false\n", "2:8", "read is a time or \"off\", not a boolean"),
        ("[defaults.deadlines]\nread = 2026-01-01\n", "2:8", "not a datetime"),
        ("listener = 3\n", "1:12", "[listener] is a section, not an integer"),
        ("[listener]\nx = \"127.0.0.1:0\"\n", "2:5", "[listener.x] is a section, not a string"),
        ("[[listener]]\nlisten = []\n", "1:1", "[listener] is a section, not an array"),
        (
            "[listener.x]\nlisten = \"127.0.0.1:0\"\n",
            "2:10",
            "listen is a list of addresses, not a string; write [\"127.0.0.1:0\"]",
        ),
    ]);
}

#[test]
fn values_out_of_range_are_refused_with_the_range() {
    check_refusals(&[
        ("[log]\nlevel = \"loud\"\n", "2:9", "\"loud\" is not one of error, warn, info, debug, trace"),
        ("[log]\nlevel = \"INFO\"\n", "2:9", "\"INFO\" is not one of"),
        ("[log]\nlevel = \"DEBUG\"\n", "2:9", "trace; write \"debug\", in lower case"),
        (
            "[limits]\nreclaim_idle = \"Off\"\n",
            "2:16",
            "reclaim_idle: \"Off\" is invalid; write \"off\", in lower case",
        ),
        ("[limits]\ndatagrams_per_source = \"OFF\"\n", "2:24", "write \"off\", in lower case"),
        ("[defaults]\nsend_buffer = \"Auto\"\n", "2:15", "write \"auto\", in lower case"),
        ("[service]\nworkers = -1\n", "2:11", "-1 is out of range; write 0 to 64"),
        ("[service]\nworkers = 65\n", "2:11", "65 is out of range"),
        ("[service]\nworkers = 0x41\n", "2:11", "0x41 is out of range"),
        ("[service]\nworkers = 99999999999999999999\n", "2:11", "out of range"),
        ("[service]\ndrain_timeout = \"10001d\"\n", "2:17", "maximum: 10000d"),
        ("[service]\ndrain_timeout = \"off\"\n", "2:17", "invalid time"),
        ("[service]\nidle_exit = \"999us\"\n", "2:13", "999us is too short; write 1ms or more"),
        ("[service]\nidle_exit = \"never\"\n", "2:13", "invalid time"),
        ("[service]\nworkers = 9223372036854775808\n", "2:11", "9223372036854775808 is out of range"),
        ("[listener.x]\nlog_messages = \"all\"\n", "2:16", "\"all\" is not one of off, summary, full"),
        ("[listener.x]\nlog_messages = \"\"\n", "2:16", "\"\" is not one of off"),
        ("[limits]\nconnections = 1000001\n", "2:15", "write 1 to 1000000"),
        ("[limits]\nbuffer_memory = \"2000GiB\"\n", "2:17", "2000GiB is out of range; write 4KiB to 1024GiB"),
        ("[limits]\nbuffer_memory = \"8KiB\"\n", "2:17", "a message of 64KiB (max_message) never fits"),
        ("[defaults.deadlines]\nidle = \"\"\n", "2:8", "missing time"),
        ("[defaults.deadlines]\nidle = \"-1s\"\n", "2:8", "invalid time"),
        ("[defaults.deadlines]\nidle = \"1.2.3s\"\n", "2:8", "invalid time"),
        ("[defaults.deadlines]\nidle = \"99999999999999999999s\"\n", "2:8", "maximum: 10000d"),
        ("[limits]\nconnections = 0\n", "2:15", "0 is out of range; write 1 to 1000000"),
        ("[limits]\nconnections_per_source = -1\n", "2:26", "out of range; write 0 to"),
        ("[limits]\nbuffer_memory = \"1KiB\"\n", "2:17", "1KiB is out of range; write 4KiB to"),
        ("[defaults]\ndelimiter = \"\"\n", "2:13", "at least one byte"),
        ("[defaults]\ndelimiter = \"12345678901234567\"\n", "2:13", "at most 16 bytes, this one has 17"),
        ("[defaults]\nprefix = \"got\\tit\"\n", "2:10", "contains the delimiter"),
        ("[defaults]\ndelimiter = \":\"\n", "2:13", "the prefix \"server got:\" contains the delimiter"),
        ("[listener.x]\nprefix = \"a\"\ndelimiter = \"a\"\n", "2:10", "contains the delimiter"),
        ("[defaults]\nprefix = \"ab\"\n[listener.x]\ndelimiter = \"b\"\n", "4:13", "contains the delimiter"),
        (
            "[defaults]\nfixed_reply = \"a\\tb\"\n",
            "2:15",
            "the fixed_reply \"a\\tb\" contains the delimiter \"\\t\"; change one of them",
        ),
        (
            "[defaults]\nfixed_reply = \"a\"\n[listener.x]\ndelimiter = \"a\"\nprefix = \"\"\n",
            "4:13",
            "the fixed_reply \"a\" contains",
        ),
        // In raw framing no delimiter is looked for, so it is the framing that makes it wrong.
        (
            "[defaults]\nframing = \"raw\"\nfixed_reply = \"a\\tb\"\n[listener.x]\nframing = \"delimited\"\n",
            "3:15",
            "the fixed_reply \"a\\tb\" contains the delimiter",
        ),
        ("[defaults]\nmax_message = \"0B\"\n", "2:15", "out of range; write 1B to 1GiB"),
        ("[defaults]\nmax_message = \"2GiB\"\n", "2:15", "2GiB is out of range"),
        ("[defaults]\nmax_message = \"65MiB\"\n", "2:15", "never fits into limits.buffer_memory (64MiB)"),
        ("[defaults]\nunterminated = \"keep\"\n", "2:16", "\"keep\" is not one of discard, accept"),
        ("[defaults]\nreceive_buffer = \"automatic\"\n", "2:18", "invalid size"),
        ("[defaults]\nsend_buffer = \"1B\"\n", "2:15", "out of range; write 1KiB to"),
        ("[defaults.deadlines]\nread = \"0s\"\n", "2:8", "0s is too short; write 1ms or more, or \"off\" for none"),
        ("[limits]\nreclaim_idle = 0\n", "2:16", "0 is too short; write 1ms or more, or \"off\" for none"),
        ("[service]\nidle_exit = \"0\"\n", "2:13", "0 is too short; write 1ms or more, or \"off\" for none"),
        ("[defaults.deadlines]\nidle = 0.0\n", "2:8", "0.0 is too short; write 1ms or more, or \"off\" for none"),
        ("[defaults.deadlines]\nlifetime = \"infinity\"\n", "2:12", "1h 30min), or \"off\" for none"),
        ("[limits]\ndatagrams_per_source = 0\n", "2:24", "0 is out of range; write 1/s to 1000000/s, or \"off\""),
        ("[limits]\ndatagrams_per_source = \"none\"\n", "2:24", "(example: 100/s), or \"off\" for none"),
        ("[defaults.deadlines]\nread = \"never\"\n", "2:8", "invalid time"),
        (
            "[listener.x]\nlisten = [\"127.0.0.1:7\", \"tcp:127.0.0.1:7\"]\n",
            "2:26",
            "tcp:127.0.0.1:7 is listed twice; remove one of them (listen: ",
        ),
        (
            "[listener.x]\nlisten = [\"/run/a\"]\n[listener.y]\nlisten = [\"unix:/run/a\"]\n",
            "4:11",
            "unix:/run/a is listed twice",
        ),
        ("[listener.x]\nlisten = [\"8085\"]\n", "2:11", "write 127.0.0.1:8085"),
        ("[listener.x]\nlisten = [\"unix:echo.sock\"]\n", "2:11", "must be absolute"),
        ("[listener.x]\nlisten = [\"udp:7\"]\n", "2:11", "write udp:127.0.0.1:7"),
    ]);
}

#[test]
fn numbers_without_a_unit_are_refused_and_a_unit_is_suggested() {
    check_refusals(&[
        ("[service]\ndrain_timeout = 5\n", "2:17", "5 has no unit; write \"5s\""),
        ("[service]\ndrain_timeout = \"5\"\n", "2:17", "write 5s"),
        ("[service]\ndrain_timeout = \"1h 30\"\n", "2:17", "write 30s"),
        ("[service]\ndrain_timeout = \"5 parsecs\"\n", "2:17", "unknown unit of time \"parsecs\""),
        ("[service]\ndrain_timeout = \".s\"\n", "2:17", "invalid time"),
        ("[defaults.deadlines]\nidle = 2.5\n", "2:8", "2.5 has no unit; write \"2.5s\""),
        ("[defaults.deadlines]\nwrite = 10\n", "2:9", "10 has no unit; write \"10s\""),
        ("[defaults]\nmax_message = 65536\n", "2:15", "65536 has no unit; write \"65536B\""),
        ("[defaults]\nmax_message = \"64KB\"\n", "2:15", "(known: B, KiB, MiB, GiB)"),
        ("[defaults]\nsend_buffer = 65536\n", "2:15", "write \"65536B\""),
        ("[limits]\nbuffer_memory = \"64\"\n", "2:17", "write 64B"),
        ("[limits]\ndatagrams_per_source = 100\n", "2:24", "write \"100/s\""),
        ("[limits]\ndatagrams_per_source = \"100\"\n", "2:24", "write 100/s"),
        ("[limits]\ndatagrams_per_source = \"1/min\"\n", "2:24", "(known: /s)"),
        ("[limits]\ndatagrams_per_source = \"0/s\"\n", "2:24", "write 1/s to 1000000/s, or \"off\" for none"),
        ("[limits]\ndatagrams_per_source = true\n", "2:24", "is a rate or \"off\", not a boolean"),
    ]);
}

#[test]
fn keys_that_a_role_does_not_use_are_refused() {
    check_refusals(&[
        ("[listener.a]\nrole = 'monitor'\nprefix = 'a'\n", "3:10", "role = \"monitor\" has no prefix; remove it"),
        ("[listener.a]\nweight = 'free'\n", "2:10", "role = \"messages\" has no weight; remove it (role: its default)"),
        ("[listener.a]\nrole = 'agent'\ndeadlines.idle = '1s'\n", "3:18", "role = \"agent\" has no deadlines"),
        ("[listener.a]\nrole = 'control'\nweight = 'free'\n", "3:10", "role = \"control\" has no weight"),
        ("[listener.a]\nrole = 'agent'\nlisten = ['udp:127.0.0.1:1']\n", "3:10", "takes tcp: and unix: addresses"),
        ("[listener.a]\nrole = 'echo'\n", "2:8", "\"echo\" is not one of messages, monitor, agent, control"),
        ("[listener.a]\nrole = 'agent'\nweight = 'x'\n", "3:10", "\"x\" is not one of constant, free"),
        ("[defaults]\nrole = 'monitor'\n", "2:8", "role belongs in [listener.NAME], not in [defaults]"),
        ("[log]\nweight = 'free'\n", "2:1", "it belongs in [listener.NAME]"),
    ]);
}

#[test]
fn invalid_listener_names_are_refused() {
    check_refusals(&[
        ("[listener.handover]\n", "1:11", "handover is reserved, and cannot be the name of a listener"),
        ("[listener.stored]\n", "1:11", "stored is reserved, and cannot be the name of a listener"),
        ("[listener.\"a b\"]\n", "1:11", "invalid listener name \"a b\" (allowed: letters, digits and _ . @ -)"),
        ("[listener.\"\"]\n", "1:11", "invalid listener name \"\""),
        ("[listener]\n\"\u{e9}\" = {}\n", "2:1", "invalid listener name \"\u{e9}\""),
        ("[listener]\n\"a=b\" = {}\n", "2:1", "invalid listener name \"a=b\""),
    ]);
}

#[test]
fn invalid_toml_is_shown_with_the_position_of_the_error() {
    check_refusals(&[
        ("[log]\nlevel = info\n", "2:9", "invalid value info; strings need quotes: \"info\""),
        ("[defaults.deadlines]\nidle = 5min\n", "2:8", "invalid value 5min; strings need quotes: \"5min\""),
        (
            "[defaults.deadlines]\nidle = off\n",
            "2:8",
            "invalid value off; write \"off\", or false for a key that is true or false",
        ),
        ("[defaults]\nnodelay = True\n", "2:11", "invalid value True; write true, or \"True\""),
        ("[defaults]\nunterminated = \"acept\"\n", "2:16", "is accept meant?"),
        ("[defaults]\nframing = \"delimiter\"\n", "2:11", "is not one of delimited, raw; is delimited meant?"),
        ("[defaults]\nreply = \"off\"\n", "2:9", "is not one of echo, fixed, none"),
        ("[defaults]\nfixed_reply = 3\n", "2:15", "fixed_reply is a string, not an integer; write \"3\""),
        ("[defaults]\nreply_delay = 2\n", "2:15", "2 has no unit; write \"2s\""),
        ("[defaults]\nreply_delay = \"off\"\n", "2:15", ""),
        ("[log]\nlevel =\n", "2:8", "a value is missing"),
        ("[log]\nlevel\n", "2:6", ""),
        ("[log]\nlevel = \"info\n", "2:14", ""),
        ("[log]\nlevel = \"in\\qfo\"\n", "2:13", ""),
        ("[log]\nlevel = \"info\"\nlevel = \"warn\"\n", "3:1", "duplicate key"),
        ("[log]\n[service]\n[log]\n", "3:2", "duplicate key"),
        ("[service]\nworkers = 08\n", "2:11", ""),
        ("\u{e9} = 1\n", "1:1", ""),
        ("log = { level = \"\u{e9}\u{e9}\", level = \"info\" }\n", "1:23", "duplicate key"),
        ("\u{feff}[log]\r\nlevel = \"loud\"\r\n", "2:9", "\"loud\" is not one of"),
        ("\u{feff}lgo = 1\n", "1:1", "is log meant?"),
        ("[log]\nlevel = \"in\u{1b}fo\"\n", "2:12", ""),
        ("[log]\n# \u{202e}\nlevel = \"in\u{202e}fo\"\n", "3:9", "is not one of"),
        ("[log]\nlevel: \"info\"\n", "2:6", "an equals sign separates a key from its value; write level = \"info\""),
        ("[limits]\nconnections: 3\n", "2:12", "write connections = 3"),
        ("[log]\nlevel = \u{201c}debug\u{201d}\n", "2:9", "typographic quotes are not quotes in TOML; write \"debug\""),
        ("[log]\nlevel = \u{2018}debug\u{2019}\n", "2:9", "write \"debug\""),
        ("[log]\nlevel = \"debug\u{201d}\n", "2:16", "typographic quotes are not quotes"),
        ("[log\nlevel = \"info\"\n", "1:5", ""),
        ("log.level = \"info\"\n[log]\n", "2:2", "duplicate key"),
        ("[defaults]\nprefix = 'it's'\n", "2:14", ""),
    ]);
}

#[test]
fn strings_that_are_too_long_are_refused_with_their_length() {
    let log = config_error(&format!("[defaults]\nprefix = \"{}\"\n", "x".repeat(4097))).unwrap();
    assert!(log[0].starts_with("2:10: ") && log[0].contains("at most 4096 bytes, this one has 4097"), "{log:#?}");
    let log = config_error(&format!("[defaults]\nfixed_reply = \"{}\"\n", "x".repeat(4097))).unwrap();
    assert!(log[0].starts_with("2:15: ") && log[0].contains("at most 4096 bytes, this one has 4097"), "{log:#?}");
    let log = config_error(&format!("[listener.x]\nlisten = [\"/{}\"]\n", "x".repeat(107))).unwrap();
    assert!(log[0].contains("at most 107 bytes, this one has 108"), "{log:#?}");
}

#[test]
fn all_errors_in_a_file_are_reported_in_order() {
    let log = config_error(
        "[limits]\nconnections = 0\nbuffer = \"1MiB\"\n[log]\nlevel = 3\n\n\n\n\n\
         [listener.x]\nlisten = [\"8085\", \"ok:1\", \"/\", 7, \"::1\"]\ndelimiter = \"\"\n\
         [listener.stored.deadlines]\nread = 2\n",
    );
    let log = log.unwrap();
    let starts_block = |line: &&String| line.starts_with(|c: char| c.is_ascii_digit()) && !line.contains(" | ");
    let positions: Vec<_> = log.iter().filter(starts_block).filter_map(|line| line.split(' ').next()).collect();
    let expected = ["2:15:", "3:1:", "5:9:", "11:11:", "11:32:", "11:35:", "12:13:", "13:11:", "14:8:"];
    assert_eq!(positions, expected, "{log:#?}");
}

#[test]
fn an_address_that_is_not_a_string_is_reported_at_its_own_position() {
    let log = config_error("[listener.x]\nlisten = [8085]\n").unwrap();
    assert!(log[0].starts_with("2:11: ") && log[0].contains("not an integer"), "{log:#?}");
}

#[test]
fn an_unreadable_file_is_refused_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("not-text"), b"[log]\nlevel = \"\xff\"\n").unwrap();
    fs::create_dir(path("directory")).unwrap();
    fs::write(path("secret"), "").unwrap();
    fs::set_permissions(path("secret"), PermissionsExt::from_mode(0o000)).unwrap();
    for (file, said) in [
        ("missing", "No such file"),
        ("directory", "directory"),
        ("not-text/x", "Not a directory"),
        ("not-text", ":2:10: invalid UTF-8"),
        ("secret", "Permission denied"),
    ] {
        // Root may read everything, unless it gives that up.
        let mut command = if rustix::process::geteuid().is_root() {
            let Some(setpriv) = common::program_or_skip("setpriv") else { continue };
            let mut command = Command::new(setpriv);
            command.args(["--bounding-set", "-dac_override,-dac_read_search", env!("CARGO_BIN_EXE_echoed")]);
            command
        } else {
            Command::new(env!("CARGO_BIN_EXE_echoed"))
        };
        let mut daemon = Daemon::spawn_with(&mut command, "", &["--config", &path(file), "--listen", "127.0.0.1:0"]);
        let status = daemon.wait();
        let log = daemon.log();
        assert_eq!(status.code(), Some(78), "{file}: {log:#?}");
        assert!(log[0].contains(&path(file)) && log[0].contains(said), "{file}: {log:#?}");
        assert_eq!(log.len(), if file == "not-text" { 4 } else { 1 }, "{file}: {log:#?}");
    }
}

#[test]
fn command_line_options_do_not_hide_errors_in_the_file() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echoed"));
    let arguments = ["--listen", "127.0.0.1:0", "--log-level", "info"];
    let mut daemon = Daemon::spawn_with(&mut command, "[log]\nlevel = \"loud\"\n", &arguments);
    assert_eq!(daemon.wait().code(), Some(78));
    assert!(!daemon.log().iter().any(|line| line.contains("listening on")));
}
