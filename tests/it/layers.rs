//! Where settings come from: files, drop-ins, masks, variables, options; which of them beats which, what is said when
//! they are wrong, and that what is printed tells where each setting comes from.

mod command_line;
mod large;
mod refused;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use echoed::config::{Level, Loaded, Settings, Sources};
use tempfile::TempDir;

/// A file system with nothing in it but configuration.
pub(crate) struct Root {
    directory: TempDir,
    pub(crate) sources: Sources,
}

impl Root {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let sources = Sources { root: directory.path().to_owned(), ..Sources::default() };
        Self { directory, sources }
    }

    /// Where a file is, of which `etc/20-x` or `usr/lib/echoed.toml` are enough: a drop-in or the main file of a place.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let (layer, file) = name.rsplit_once('/').expect("PLACE/FILE");
        let directory = self.directory.path().join(layer).join("echoed");
        if file == "echoed.toml" { directory.join(file) } else { directory.join("echoed.toml.d").join(file) }
    }

    /// The path as it is shown.
    pub(crate) fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> &Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is below")).expect("the directory is ours");
        fs::write(path, text).expect("the directory is ours");
        self
    }

    pub(crate) fn link(&self, name: &str, target: &str) -> &Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is below")).expect("the directory is ours");
        let _ = fs::remove_file(&path);
        symlink(target, path).expect("the directory is ours");
        self
    }

    pub(crate) fn set_variable(&mut self, name: &str, value: &str) -> &mut Self {
        self.sources.environment.push((name.into(), value.into()));
        self
    }

    pub(crate) fn load(&self) -> Loaded {
        self.sources.load().unwrap_or_else(|error| panic!("{error}"))
    }

    /// The prefix that holds, which tells which layer has set it.
    pub(crate) fn prefix(&self) -> String {
        prefix(&self.load().settings.defaults)
    }

    /// What is said about it, without the directory's name.
    pub(crate) fn load_error(&self) -> String {
        let error = self.sources.load().expect_err("it is to be refused");
        error.to_string().replace(&format!("{}/", self.directory.path().display()), "/")
    }
}

pub(crate) fn prefix(listener: &echoed::config::ListenerSettings) -> String {
    String::from_utf8(listener.rules.prefix.as_bytes().to_vec()).expect("it is text")
}

/// A document that sets the prefix.
pub(crate) fn prefix_document(prefix: &str) -> String {
    format!("[defaults]\nprefix = \"{prefix}\"\n")
}

#[test]
fn without_any_layer_the_defaults_apply() {
    let loaded = Root::new().load();
    assert_eq!(loaded.settings, Settings::default());
    assert_eq!(loaded.files, [""; 0].map(PathBuf::from));
}

#[test]
fn every_layer_overrides_the_ones_below_it() {
    let mut root = Root::new();
    assert_eq!(root.prefix(), "server got:");
    for (name, text) in [
        ("usr/lib/echoed.toml", "a"),
        ("run/echoed.toml", "b"),
        ("etc/echoed.toml", "c"),
        // Of drop-ins the name decides, and not the place.
        ("etc/10-x.toml", "d"),
        ("run/20-x.toml", "e"),
        ("usr/lib/30-x.toml", "f"),
        // But a later place hides a name of the ones before.
        ("run/30-x.toml", "g"),
        ("etc/30-x.toml", "h"),
        // Names are compared byte by byte.
        ("etc/9-x.toml", "i"),
        ("usr/lib/a.toml", "j"),
    ] {
        root.write(name, &prefix_document(text));
        assert_eq!(root.prefix(), text, "{name}");
        assert!(root.load().print().contains(&format!("# {}:2\n", root.shown(name))), "{}", root.load().print());
    }
    root.set_variable("ECHOED_DEFAULTS__PREFIX", "k");
    assert_eq!(root.prefix(), "k");
    root.set_variable("ECHOED_LOG__LEVEL", "warn");
    assert_eq!(root.load().settings.log_level, Level::Warn);
    root.sources.log_level = Some(Level::Debug);
    assert_eq!(root.load().settings.log_level, Level::Debug);
    assert!(root.load().print().contains("level = \"debug\"                 # --log-level\n"));
}

#[test]
fn a_layer_changes_only_what_it_sets() {
    let mut root = Root::new();
    root.write(
        "usr/lib/echoed.toml",
        "[limits]\nconnections = 7\n[listener.a]\nprefix = \"a\"\nlisten = [\"@a\", \"@b\"]\n",
    )
    .write("etc/echoed.toml", "[limits]\nconnections_per_source = 8\n[listener.a]\ndelimiter = \"\\n\"\n")
    .write("etc/x.toml", "[listener.a]\nlisten = [\"@c\"]\n[listener.b]\n[defaults]\nmax_message = \"9B\"\n");
    root.set_variable("ECHOED_LISTENER__A__DEADLINES__READ", "3s");
    let settings = root.load().settings;
    assert_eq!((settings.limits.connections, settings.limits.connections_per_source), (7, 8));
    assert_eq!(settings.limits.buffer_memory, Settings::default().limits.buffer_memory);
    let (a, b) = (settings.listener_settings("a"), settings.listener_settings("b"));
    assert_eq!((&*prefix(a), a.rules.delimiter.as_bytes(), a.rules.max_message), ("a", &b"\n"[..], 9));
    assert_eq!((&*prefix(b), b.rules.delimiter.as_bytes(), b.rules.max_message), ("server got:", &b"\t"[..], 9));
    assert_eq!(a.rules.deadlines.read.as_ref().map(ToString::to_string).as_deref(), Some("3s"));
    // A list is one value.
    assert_eq!(a.listen.iter().map(ToString::to_string).collect::<Vec<_>>(), ["unix:@c"]);
}

#[test]
fn an_empty_drop_in_or_a_link_to_dev_null_masks_its_name() {
    let root = Root::new();
    root.write("etc/echoed.toml", &prefix_document("main")).write("usr/lib/50-x.toml", &prefix_document("drop-in"));
    assert_eq!(root.prefix(), "drop-in");
    root.write("etc/50-y.toml", "");
    assert_eq!(root.prefix(), "drop-in");
    root.write("run/50-x.toml", "");
    assert_eq!(root.prefix(), "main");
    root.write("etc/50-x.toml", &prefix_document("again"));
    assert_eq!(root.prefix(), "again");
    root.link("etc/50-x.toml", "/dev/null");
    assert_eq!(root.prefix(), "main");
    assert_eq!(root.load().files, [root.path("etc/echoed.toml")]);
    // What is hidden is not looked at.
    root.write("run/50-x.toml", "nonsense").write("usr/lib/50-x.toml", "nonsense");
    assert_eq!(root.prefix(), "main");
}

#[test]
fn an_empty_main_file_or_a_link_to_dev_null_masks_the_main_files_below_it() {
    let root = Root::new();
    root.write("usr/lib/echoed.toml", &prefix_document("vendor"))
        .write("run/echoed.toml", "[limits]\nconnections = 7\n");
    root.write("usr/lib/50-x.toml", "[log]\nlevel = \"debug\"\n");
    // A file with comments only is not a mask.
    root.write("etc/echoed.toml", "# nothing yet\n");
    assert_eq!((root.prefix(), root.load().settings.limits.connections), ("vendor".to_owned(), 7));
    root.write("run/echoed.toml", "");
    assert_eq!((root.prefix(), root.load().settings.limits.connections), ("server got:".to_owned(), 4096));
    root.write("run/echoed.toml", "[limits]\nconnections = 7\n").link("etc/echoed.toml", "/dev/null");
    assert_eq!((root.prefix(), root.load().settings.limits.connections), ("server got:".to_owned(), 4096));
    // They do not mask drop-ins.
    assert_eq!(root.load().settings.log_level, Level::Debug);
}

/// Where a service manager has assigned directories (`CONFIGURATION_DIRECTORY`), they are in the place of /run and /etc.
#[test]
fn assigned_directories_replace_those_of_the_service_of_the_system() {
    const OWN: &str = "/etc/echoed/instances/blue";
    let with_directories = |assigned: &str| {
        let mut root = Root::new();
        root.write("usr/lib/10-vendor.toml", "[limits]\nconnections = 7\n");
        root.write("run/echoed.toml", &prefix_document("run")).write("etc/echoed.toml", &prefix_document("etc"));
        let own = root.sources.root.join(OWN.trim_start_matches('/'));
        fs::create_dir_all(own.join("echoed.toml.d")).unwrap();
        fs::write(own.join("echoed.toml"), "[log]\nlevel = 'debug'\n").unwrap();
        fs::write(own.join("echoed.toml.d/50-x.toml"), prefix_document("own")).unwrap();
        root.set_variable("CONFIGURATION_DIRECTORY", assigned);
        (root.prefix(), root.load().settings.log_level, root.load().settings.limits.connections)
    };
    assert_eq!(with_directories(OWN), ("own".to_owned(), Level::Debug, 7));
    // What systemd assigns to echoed.service, alone and with others.
    assert_eq!(with_directories("/etc/echoed"), ("etc".to_owned(), Level::Info, 7));
    assert_eq!(with_directories(&format!("/etc/echoed:{OWN}")), ("own".to_owned(), Level::Debug, 7));
    // What is not a directory that systemd could assign.
    for other in ["", "etc/echoed/instances/blue"] {
        assert_eq!(with_directories(other), ("etc".to_owned(), Level::Info, 7), "{other:?}");
    }
    // One that is not there, as one of a user without settings.
    assert_eq!(with_directories("/home/user/.config/echoed"), ("server got:".to_owned(), Level::Info, 7));
}

#[test]
fn masks_are_listed_unless_they_are_replaced() {
    let root = Root::new();
    root.write("etc/echoed.toml", "").link("etc/50-x.toml", "/dev/null").write("run/60-y.toml", "");
    root.write("etc/60-y.toml", "[log]\nlevel = 'debug'\n");
    assert_eq!(root.load().masks, [root.path("etc/echoed.toml"), root.path("etc/50-x.toml")]);
    assert_eq!(root.load().files, [root.path("etc/60-y.toml")]);
}

#[test]
fn only_dev_null_masks_and_no_other_device() {
    let root = Root::new();
    for name in ["etc/50-x.toml", "etc/echoed.toml"] {
        root.write("usr/lib/50-x.toml", &prefix_document("drop-in")).link(name, "/dev/zero");
        let error = root.load_error();
        assert!(error.contains("is another device than /dev/null; only an empty file or a link"), "{error}");
        root.link(name, "/dev/null");
        root.load();
    }
}

#[test]
fn a_drop_in_can_be_a_symlink_and_other_files_are_not_read() {
    let root = Root::new();
    root.write("run/target", &prefix_document("linked"));
    root.link("etc/x.toml", &root.shown("run/target"));
    for name in ["etc/y.toml~", "etc/y.toml.dpkg-new", "etc/.y.toml", "etc/y.conf", "etc/toml", "etc/README"] {
        root.write(name, "nonsense");
    }
    assert_eq!(root.prefix(), "linked");
}

#[test]
fn the_config_option_replaces_all_files_but_not_the_variables() {
    let mut root = Root::new();
    root.write("usr/lib/echoed.toml", "nonsense")
        .write("etc/x.toml", "nonsense")
        .write("run/mine", &prefix_document("mine"));
    root.sources.config = Some(root.path("run/mine"));
    assert_eq!(root.prefix(), "mine");
    assert_eq!(root.load().files, [root.path("run/mine")]);
    root.set_variable("ECHOED_DEFAULTS__PREFIX", "variable");
    assert_eq!(root.prefix(), "variable");
    // Nothing is masked by it, empty or not.
    root.sources.config = Some("/dev/null".into());
    root.sources.environment.clear();
    assert_eq!(root.load().settings, Settings::default());
}

#[test]
fn variables_are_parsed_as_toml_or_else_as_strings() {
    for (name, value, printed) in [
        ("ECHOED_LOG__LEVEL", "debug", "level = \"debug\""),
        ("ECHOED_LOG__LEVEL", "\"debug\"", "level = \"debug\""),
        ("ECHOED_SERVICE__WORKERS", "3", "workers = 3"),
        ("ECHOED_SERVICE__WORKERS", "0x1_0", "workers = 16"),
        ("ECHOED_SERVICE__IDLE_EXIT", "off", "idle_exit = \"off\""),
        ("ECHOED_LIMITS__BUFFER_MEMORY", "1MiB", "buffer_memory = \"1MiB\""),
        ("ECHOED_DEFAULTS__NODELAY", "false", "nodelay = false"),
        ("ECHOED_DEFAULTS__PREFIX", "", "prefix = \"\""),
        ("ECHOED_DEFAULTS__PREFIX", "\"3\"", "prefix = \"3\""),
        ("ECHOED_DEFAULTS__PREFIX", "it's \"so\"", "prefix = \"it's \\\"so\\\"\""),
        ("ECHOED_DEFAULTS__PREFIX", "a = b", "prefix = \"a = b\""),
        ("ECHOED_DEFAULTS__DELIMITER", "\\n", "delimiter = \"\\\\n\""),
        ("ECHOED_DEFAULTS__DELIMITER", "\"\\n\"", "delimiter = \"\\n\""),
        ("ECHOED_DEFAULTS__DELIMITER", "\n", "delimiter = \"\\n\""),
        ("ECHOED_DEFAULTS__DEADLINES__READ", "1h 30min", "read = \"1h 30min\""),
        ("ECHOED_LISTENER__A_B__PREFIX", "x", "[listener.a_b]"),
        ("ECHOED_LISTENER__0__LISTEN", "[\"@a\", '@b']", "listen = [\"unix:@a\", \"unix:@b\"]"),
        ("ECHOED_DEFAULTS__DEADLINES", "{ idle = \"7s\", read = \"8s\" }", "idle = \"7s\""),
    ] {
        let mut root = Root::new();
        root.set_variable(name, value);
        let printed_all = root.load().print();
        let line =
            printed_all.lines().find(|line| line.starts_with(printed)).unwrap_or_else(|| panic!("{printed_all}"));
        assert!(printed.starts_with('[') || line.ends_with(&format!("# {name}")), "{line}");
    }
}

#[test]
fn the_more_specific_of_two_variables_wins() {
    let mut root = Root::new();
    root.set_variable("ECHOED_DEFAULTS__DEADLINES__IDLE", "9s");
    root.set_variable("ECHOED_DEFAULTS__DEADLINES", "{ idle = \"7s\", read = \"8s\" }");
    let deadlines = root.load().settings.defaults.rules.deadlines.clone();
    let shown = |span: &Option<echoed::protocol::rules::TimeSpan>| span.as_ref().map(ToString::to_string);
    assert_eq!((shown(&deadlines.idle), shown(&deadlines.read)), (Some("9s".to_owned()), Some("8s".to_owned())));
}

#[test]
fn other_variables_are_ignored() {
    let mut root = Root::new();
    for name in ["ECHOED", "ECHOED_", "ECHOED_LOG", "ECHOED_LOG_LEVEL", "ECHOEDX_LOG__LEVEL", "echoed_log__level", "__"]
    {
        root.set_variable(name, "nonsense");
    }
    root.sources.environment.push((OsString::from("X__Y"), OsString::from("z")));
    assert_eq!(root.load().settings, Settings::default());
}

#[test]
fn listen_options_are_printed_and_change_no_settings() {
    let mut root = Root::new();
    root.write("etc/echoed.toml", "[listener.a]\nlisten = [\"@a\"]\n[listener.b]\nlisten = [\"@b\"]\n");
    let before = root.load();
    root.sources.listen = [("b", "@c"), ("d", "@e"), ("b", "@f")]
        .map(|(name, address)| (name.to_owned(), address.parse().unwrap()))
        .into();
    let loaded = root.load();
    assert_eq!(loaded.settings, before.settings);
    let listen: Vec<_> = loaded.print().lines().filter(|line| line.starts_with("listen")).map(str::to_owned).collect();
    for (line, value) in listen.iter().zip(["[]", "[\"unix:@c\", \"unix:@f\"]", "[\"unix:@e\"]"]) {
        assert!(line.starts_with(&format!("listen = {value} ")) && line.ends_with("# --listen"), "{line}");
    }
    assert_eq!(listen.len(), 3);
    let again = Settings::from_toml("printed", &loaded.print()).unwrap();
    assert_eq!(again.listeners.keys().collect::<Vec<_>>(), ["a", "b", "d"]);
    assert_eq!(again.listeners["b"].listen.len(), 2);
}

/// A document with keys of every section, which have other values than their defaults.
const OTHER: &str = r#"
log.level = "warn"
service = { workers = 2, idle_exit = "off", drain_timeout = "1h 1us", handover = false }
[limits]
connections = 10
connections_per_source = 0
reclaim_idle = "2min"
buffer_memory = "3MiB"
datagrams_per_source = "7/s"
[defaults]
framing = "raw"
delimiter = "\r\n\"\u0000\\é"
reply = "fixed"
fixed_reply = "it's\r\n\"\u0000\\é"
reply_delay = "1.5s"
prefix = "\u007f\u001b ☃'''"
unterminated = "accept"
error_replies = false
log_messages = "full"
max_message = "1025B"
proxy_protocol = "required"
nodelay = false
receive_buffer = "1.5KiB"
send_buffer = "1MiB"
deadlines = { idle = "2 weeks", read = "1.5s", write = "off", lifetime = "90min" }
[listener."a.b@c"]
listen = ["tcp4:localhost:1", "/run/a b"]
delimiter = "x"
prefix = ""
[listener."a.b@c".deadlines]
read = "1 day"
"#;

#[test]
fn in_raw_framing_the_prefix_is_empty_unless_it_is_set() {
    let raw = "[listener.raw]\nframing = \"raw\"\n";
    for (documents, of_raw, of_defaults) in [
        (vec![raw], "", "server got:"),
        (vec!["[defaults]\nprefix = \"a\"\n", raw], "a", "a"),
        (vec![raw, "[listener.raw]\nprefix = \"b\"\n"], "b", "server got:"),
        (vec![raw, "[defaults]\nprefix = \"server got:\"\n"], "server got:", "server got:"),
        (vec!["[defaults]\nframing = \"raw\"\n", "[listener.raw]\n"], "", ""),
        (vec!["[defaults]\nframing = \"raw\"\n", "[listener.raw]\nframing = \"delimited\"\n"], "server got:", ""),
    ] {
        let root = Root::new();
        for (number, document) in documents.iter().enumerate() {
            root.write(&format!("etc/{number}.toml"), document);
        }
        let settings = root.load().settings;
        assert_eq!(prefix(settings.listener_settings("raw")), of_raw, "{documents:?}");
        assert_eq!(prefix(&settings.defaults), of_defaults, "{documents:?}");
    }
}

#[test]
fn the_printed_configuration_names_the_origin_of_every_key_and_can_be_loaded_again() {
    let mut root = Root::new();
    root.write("usr/lib/echoed.toml", OTHER);
    root.write("etc/10-x.toml", "[defaults]\nprefix = \"x\"\n\n[listener.y]\nnodelay = true\n");
    root.set_variable("ECHOED_LIMITS__CONNECTIONS", "11");
    root.sources.log_level = Some(Level::Trace);
    let loaded = root.load();
    let printed = loaded.print();
    assert_eq!(Settings::from_toml("printed", &printed).unwrap_or_else(|error| panic!("{error}")), loaded.settings);

    let (base, drop_in) = (root.shown("usr/lib/echoed.toml"), root.shown("etc/10-x.toml"));
    let mut section = "";
    for line in printed.lines().filter(|line| !line.is_empty()) {
        if line.starts_with('[') {
            section = line;
            continue;
        }
        let (key, origin) =
            (line.split(' ').next().unwrap(), line.rsplit_once(" # ").expect("each key has its origin").1);
        // Where the file says it: the line that has the key after its section; of inline tables there is only one.
        let place_in = |section: &str| {
            let within = |line: &str| line.split([' ', '.']).any(|word| word == key);
            let start = OTHER.lines().position(|line| line == section).unwrap_or(0);
            let found = OTHER.lines().enumerate().skip(start).find(|(_, line)| within(line));
            found.map_or("default".to_owned(), |(number, _)| format!("{base}:{}", number + 1))
        };
        let expected = match (section, key) {
            ("[log]", _) => "--log-level".to_owned(),
            (_, "connections") => "ECHOED_LIMITS__CONNECTIONS".to_owned(),
            ("[defaults]" | "[listener.y]", "prefix") => format!("{drop_in}:2"),
            ("[listener.y]", "nodelay") => format!("{drop_in}:5"),
            ("[listener.y]", "listen") | ("[listener.y]" | "[listener.\"a.b@c\"]", "role") => "default".to_owned(),
            ("[listener.\"a.b@c\"]", "listen" | "delimiter" | "prefix") => place_in(section),
            ("[listener.\"a.b@c\".deadlines]", "read") => place_in(section),
            ("[listener.y]" | "[listener.\"a.b@c\"]", _) => place_in("[defaults]"),
            _ if section.ends_with("deadlines]") => place_in("[defaults]"),
            _ => place_in(section),
        };
        assert_eq!(origin, expected, "{section} {line}");
    }
}

#[test]
fn a_file_name_with_newlines_does_not_break_the_printed_configuration() {
    let mut root = Root::new();
    root.write("run/a\n[log]\nb", &prefix_document("x"));
    root.sources.config = Some(root.path("run/a\n[log]\nb"));
    let loaded = root.load();
    assert_eq!(Settings::from_toml("printed", &loaded.print()).unwrap(), loaded.settings);
}

#[test]
fn each_load_reads_all_files_again() {
    let root = Root::new();
    root.write("etc/echoed.toml", &prefix_document("old"));
    assert_eq!(root.prefix(), "old");
    root.write("etc/echoed.toml", &prefix_document("new"));
    assert_eq!(root.prefix(), "new");
    fs::remove_dir_all(root.path("etc/echoed.toml").parent().unwrap()).unwrap();
    assert_eq!(root.prefix(), "server got:");
}

#[test]
fn by_default_files_are_searched_below_the_root_directory() {
    assert_eq!(Sources::default().root, Path::new("/"));
    assert_eq!(Sources::of_this_process().root, Path::new("/"));
    assert!(Sources::of_this_process().environment.iter().any(|(name, _)| name == "PATH"));
}

#[test]
fn keys_that_need_a_restart_are_named() {
    let settings = |text: &str| Settings::from_toml("x", text).unwrap();
    let old = settings("[service]\nworkers = 1\n[listener.a]\nlisten = [\"@a\"]\n[listener.b]\nlisten = [\"@b\"]\n");
    assert_eq!(old.keys_needing_restart(&old), [""; 0]);
    let changed = "[service]\nworkers = 2\ndrain_timeout = \"1s\"\n[limits]\nconnections = 1\n[listener.a]\nprefix = \"\"\n\
                   listen = [\"@a\"]\n[listener.\"x.y\"]\nlisten = [\"@x\"]\n[listener.z]\n";
    let new = settings(changed);
    assert_eq!(old.keys_needing_restart(&new), ["service.workers", "listener.b.listen", "listener.\"x.y\".listen"]);
    let moved = settings("[service]\nworkers = 1\n[listener.a]\nlisten = [\"@c\"]\n[listener.b]\nlisten = [\"@b\"]\n");
    assert_eq!(old.keys_needing_restart(&moved), ["listener.a.listen"]);
}
