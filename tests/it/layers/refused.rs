//! What is said when layers are wrong: each by itself, several at once, and only together.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;

use super::{Root, prefix_document};

/// The first lines of blocks.
fn headlines(root: &Root) -> Vec<String> {
    root.load_error().lines().filter(|line| !line.contains(" |")).map(str::to_owned).collect()
}

#[test]
fn errors_in_several_layers_are_all_reported_in_order() {
    let mut root = Root::new();
    root.write("usr/lib/echoed.toml", "[log]\nlevel = 3\n[limit]\n")
        .write("etc/10-x.toml", "[log\n")
        .write("run/20-x.toml", "[defaults]\nprefix = \"a\\tb\"\n[service]\nworkers = -1\n")
        .write("etc/30-x.toml", "[service]\ndrain_timeout = 5\n")
        .link("etc/40-x.toml", "nowhere");
    root.set_variable("ECHOED_LIMITS__CONNECTIONS", "0").set_variable("ECHOED_LOG__COLOUR", "1");
    let starts = [
        "/usr/lib/echoed/echoed.toml:2:9: level is a word, not an integer",
        "/usr/lib/echoed/echoed.toml:3:2: there is no key limit; is limits meant?",
        "/etc/echoed/echoed.toml.d/10-x.toml:1:5: unclosed table",
        "/run/echoed/echoed.toml.d/20-x.toml:4:11: workers: -1 is out of range",
        "/etc/echoed/echoed.toml.d/30-x.toml:2:17: drain_timeout: 5 has no unit; write \"5s\"",
        "/etc/echoed/echoed.toml.d/40-x.toml: is a link to nowhere, which does not exist (the service sees",
        "ECHOED_LIMITS__CONNECTIONS: connections: 0 is out of range; write 1 to 1000000",
        "ECHOED_LOG__COLOUR: there is no key colour in [log]; known are level",
    ];
    let said = headlines(&root);
    assert_eq!(said.len(), starts.len(), "{said:#?}");
    for (said, start) in said.iter().zip(starts) {
        assert!(said.starts_with(start), "{said}\n{start}");
    }
    let error = root.sources.load().unwrap_err();
    assert_eq!(error.headlines().count(), starts.len());
}

#[test]
fn conflicts_between_layers_are_reported_with_the_origins_of_both_keys() {
    for (files, said) in [
        (
            &[
                ("usr/lib/echoed.toml", "[defaults]\ndelimiter = \":\"\n"),
                ("etc/x.toml", "[defaults]\nprefix = \"a:\"\n"),
            ][..],
            "/etc/echoed/echoed.toml.d/x.toml:2:10: the prefix \"a:\" contains the delimiter \":\"; change one of them \
             (delimiter: /usr/lib/echoed/echoed.toml:2)",
        ),
        (
            &[
                ("usr/lib/echoed.toml", "[defaults]\nprefix = \"a:\"\n"),
                ("etc/x.toml", "\n[defaults]\ndelimiter = \":\"\n"),
            ],
            "/etc/echoed/echoed.toml.d/x.toml:3:13: the prefix \"a:\" contains the delimiter \":\"; change one of them \
             (prefix: /usr/lib/echoed/echoed.toml:2)",
        ),
        (
            &[("etc/x.toml", "[defaults]\ndelimiter = \"got\"\n")],
            "/etc/echoed/echoed.toml.d/x.toml:2:13: the prefix \"server got:\" contains the delimiter \"got\"; change one \
             of them (prefix: its default)",
        ),
        (
            &[("etc/x.toml", "[listener.a]\ndelimiter = \"b\"\n"), ("etc/y.toml", "[defaults]\nprefix = \"abc\"\n")],
            "/etc/echoed/echoed.toml.d/x.toml:2:13: the prefix \"abc\" contains the delimiter \"b\"; change one of them \
             (prefix: /etc/echoed/echoed.toml.d/y.toml:2)",
        ),
        (
            &[
                ("etc/x.toml", "[defaults]\nmax_message = \"5MiB\"\n"),
                ("etc/y.toml", "[limits]\nbuffer_memory = \"4MiB\"\n"),
            ],
            "/etc/echoed/echoed.toml.d/y.toml:2:17: a message of 5MiB (max_message) never fits into limits.buffer_memory \
             (4MiB); change one of them (max_message: /etc/echoed/echoed.toml.d/x.toml:2)",
        ),
        (
            &[(
                "etc/x.toml",
                "[limits]\nbuffer_memory = \"32KiB\"\n[defaults]\nmax_message = \"1B\"\n[listener.a]\nmax_message = \"33KiB\"\n",
            )],
            "/etc/echoed/echoed.toml.d/x.toml:6:15: a message of 33KiB (max_message) never fits into limits.buffer_memory \
             (32KiB); change one of them (limits.buffer_memory: /etc/echoed/echoed.toml.d/x.toml:2)",
        ),
        (
            &[("etc/x.toml", "[limits]\nbuffer_memory = \"32KiB\"\n")],
            "/etc/echoed/echoed.toml.d/x.toml:2:17: a message of 64KiB (max_message) never fits into limits.buffer_memory \
             (32KiB); change one of them (max_message: its default)",
        ),
    ] {
        let root = Root::new();
        for (name, text) in files {
            root.write(name, text);
        }
        assert_eq!(headlines(&root), [said]);
    }
}

#[test]
fn a_conflict_with_a_variable_names_the_variable() {
    let mut root = Root::new();
    root.write("etc/echoed.toml", &prefix_document("a:b"));
    root.set_variable("ECHOED_DEFAULTS__DELIMITER", ":");
    assert_eq!(
        root.load_error(),
        "ECHOED_DEFAULTS__DELIMITER: the prefix \"a:b\" contains the delimiter \":\"; change one of them \
         (prefix: /etc/echoed/echoed.toml:2)\n  |\n  | ECHOED_DEFAULTS__DELIMITER=:\n  |                            ^"
    );
}

#[test]
fn a_conflict_that_a_later_layer_resolves_is_not_reported() {
    let root = Root::new();
    root.write("usr/lib/echoed.toml", "[defaults]\nprefix = \"a\\tb\"\nmax_message = \"1GiB\"\n")
        .write("etc/echoed.toml", "[defaults]\ndelimiter = \"\\n\"\n[limits]\nbuffer_memory = \"2GiB\"\n");
    assert_eq!(root.prefix(), "a\tb");
}

#[test]
fn an_invalid_value_is_not_also_reported_as_a_conflict() {
    let root = Root::new();
    root.write("usr/lib/echoed.toml", "[limits]\nbuffer_memory = \"1MiB\"\n[defaults]\nmax_message = \"1KiB\"\n")
        .write("etc/echoed.toml", "[limits]\nbuffer_memory = \"100 MB\"\n[defaults]\nmax_message = \"65MiB\"\n");
    let said = headlines(&root);
    assert!(said.len() == 1 && said[0].contains("(known: B, KiB, MiB, GiB)"), "{said:#?}");
}

#[test]
fn an_invalid_value_is_reported_even_if_a_later_layer_overrides_it() {
    let mut root = Root::new();
    root.write("usr/lib/echoed.toml", "[log]\nlevel = \"loud\"\n")
        .write("etc/echoed.toml", "[log]\nlevel = \"info\"\n");
    root.set_variable("ECHOED_LOG__LEVEL", "info");
    let said = headlines(&root);
    assert!(said.len() == 1 && said[0].starts_with("/usr/lib/echoed/echoed.toml:2:9: level"), "{said:#?}");
}

#[test]
fn invalid_variables_are_refused_and_shown_with_a_caret() {
    for (name, value, said) in [
        ("ECHOED_SERVICE__WORKERS", "2.7", "workers is a number, not a float"),
        ("ECHOED_SERVICE__WORKERS", "two", "workers is a number, not a string"),
        ("ECHOED_SERVICE__WORKERS", "'2'", "workers is a number, not a string; write 2"),
        ("ECHOED_SERVICE__WORKERS", "", "workers is a number, not a string"),
        ("ECHOED_DEFAULTS__NODELAY", "yes", "nodelay is true or false, not a string; write true"),
        ("ECHOED_DEFAULTS__NODELAY", "1", "nodelay is true or false, not an integer"),
        ("ECHOED_DEFAULTS__PREFIX", "3", "prefix is a string, not an integer; write \"3\""),
        ("ECHOED_DEFAULTS__DEADLINES__READ", "2", "read: 2 has no unit; write \"2s\" if that is meant"),
        ("ECHOED_DEFAULTS__DEADLINES", "2s", "[defaults.deadlines] is a section, not a string"),
        ("ECHOED_DEFAULTS__LISTEN", "[]", "listen belongs in [listener.NAME], not in [defaults]"),
        ("ECHOED_LISTENER__A__LISTEN", "@a", "listen is a list of addresses, not a string; write [\"@a\"]"),
        ("ECHOED_LISTENER__STORED__PREFIX", "a", "stored is reserved, and cannot be the name of a listener"),
        ("ECHOED_LISTENER__A-B=__PREFIX", "a", "invalid listener name \"a-b=\" (allowed: letters, digits and _ . @ -)"),
        ("ECHOED_LOG__LEVLE", "info", "there is no key levle in [log]; is level meant?"),
        ("ECHOED_LGO__LEVEL", "info", "there is no key lgo; is log meant?"),
        ("ECHOED_LOG__", "info", "there is no key  in [log]; known are level"),
        ("ECHOED__LOG__LEVEL", "info", "there is no key _log; is log meant?"),
        ("ECHOED_LOG__LEVEL__X", "info", "level is a word, not a table"),
    ] {
        let mut root = Root::new();
        root.set_variable(name, value);
        let error = root.load_error();
        let lines: Vec<_> = error.lines().collect();
        let shown = format!("  | {name}={value}");
        assert_eq!(lines[..3], [&*format!("{name}: {said}"), "  |", &*shown], "{error}");
        let caret = lines[3].find('^').unwrap();
        let is_about_key =
            said.starts_with("there is") || said.contains("name") || said.contains("built") || said.contains("table");
        assert_eq!(caret < 4 + name.len() + 1, is_about_key, "{error}");
        assert!(lines[3].trim_end().len() <= shown.len().max(caret + 1), "{error}");
    }
}

#[test]
fn variables_with_invalid_names_or_encodings_are_named() {
    let mut root = Root::new();
    root.set_variable("ECHOED_log__LEVEL", "info");
    root.sources.environment.push(("ECHOED_LOG__LEVEL".into(), OsString::from_vec(b"in\xff".to_vec())));
    root.sources.environment.push((OsString::from_vec(b"ECHOED_\xff__X".to_vec()), "y".into()));
    root.set_variable("ECHOED_LOG__\u{1b}\n", "info");
    let said = headlines(&root);
    assert_eq!(said.len(), 4, "{said:#?}");
    for start in [
        "ECHOED_LOG__LEVEL: is not UTF-8",
        "ECHOED_log__LEVEL: write ECHOED_LOG__LEVEL",
        "ECHOED_\u{fffd}__X: is not UTF-8",
    ] {
        assert!(said.iter().any(|said| said == start), "{start}\n{said:#?}");
    }
    assert!(said.iter().any(|said| said.starts_with("ECHOED_LOG__\\u{1b}\\n: there is no key")), "{said:#?}");
}

#[test]
fn a_path_that_is_not_a_regular_file_is_named() {
    let root = Root::new();
    for name in ["etc/echoed.toml", "run/x.toml"] {
        fs::create_dir_all(root.path(name)).unwrap();
    }
    root.write("usr/lib/echoed.toml.d", "");
    let mut root = root;
    let expected = [
        "/etc/echoed/echoed.toml: is a directory; a file is expected here",
        "/run/echoed/echoed.toml.d/x.toml: is a directory; a file is expected here",
    ];
    assert_eq!(headlines(&root), expected);
    // Not one that would be waited for.
    let pipe = root.path("etc/pipe.toml");
    fs::create_dir_all(pipe.parent().unwrap()).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(headlines(&root)[1], "/etc/echoed/echoed.toml.d/pipe.toml: is not a file; a file is expected here");
    root.sources.config = Some(root.path("etc/missing"));
    assert!(headlines(&root)[0].contains("missing: cannot be read: No such file"), "{:#?}", headlines(&root));
}

#[test]
fn a_drop_in_directory_that_is_a_file_is_named() {
    let root = Root::new();
    let directory = root.path("etc/x.toml").parent().unwrap().to_owned();
    fs::create_dir_all(directory.parent().unwrap()).unwrap();
    fs::write(&directory, "").unwrap();
    assert!(
        root.load_error().starts_with("/etc/echoed/echoed.toml.d: cannot be read: Not a directory"),
        "{}",
        root.load_error()
    );
}

#[test]
fn a_file_of_1_mib_is_read_and_a_larger_one_is_refused() {
    let mut root = Root::new();
    let text = |size: usize| format!("{}#{}", prefix_document("x"), "#".repeat(size - prefix_document("x").len() - 1));
    root.write("etc/echoed.toml", &text(1 << 20));
    assert_eq!(root.prefix(), "x");
    root.write("etc/echoed.toml", &text((1 << 20) + 1));
    assert!(root.load_error().starts_with("/etc/echoed/echoed.toml: is larger than 1MiB"), "{}", root.load_error());
    root.sources.config = Some("/dev/zero".into());
    assert!(root.load_error().starts_with("/dev/zero: is larger than 1MiB"), "{}", root.load_error());
}
