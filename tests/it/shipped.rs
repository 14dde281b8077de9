//! What is installed: the units as systemd reads them, every file in its place, the library by itself.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use echoed::rlimit::{FdBudget, ServingThreads};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}\n{stderr}", output.status);
    output
}

fn printed(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).expect("it is text")
}

/// Programs as after a build for release. Where echoctl was not built for these tests, there is a fake one.
fn link_programs(directory: &Path) -> PathBuf {
    let built = directory.join("built");
    fs::create_dir(&built).expect("the directory is new");
    let echoctl = option_env!("CARGO_BIN_EXE_echoctl").filter(|program| Path::new(program).exists());
    for (name, program) in [("echoed", env!("CARGO_BIN_EXE_echoed")), ("echoctl", echoctl.unwrap_or("/bin/true"))] {
        symlink(program, built.join(name)).expect("the directory is ours");
    }
    built
}

/// `make TARGET` with these variables, if make is installed.
fn make<V: AsRef<OsStr>>(target: &str, variables: &[(&str, V)]) -> Option<Output> {
    let mut command = Command::new(common::program_or_skip("make")?);
    // Not those of a "make test" that we may run under.
    for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"] {
        command.env_remove(variable);
    }
    command.args(["-s", "-C", ROOT, target]);
    for (name, value) in variables {
        let mut assignment = std::ffi::OsString::from(format!("{name}="));
        assignment.push(value);
        command.arg(assignment);
    }
    Some(run(&mut command))
}

/// Every file below a directory, by its path from there, and its mode.
fn files(directory: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).expect("it is a directory") {
            let path = entry.expect("it can be listed").path();
            let metadata = fs::symlink_metadata(&path).expect("it is there");
            if metadata.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(directory).expect("it is below").display().to_string();
                found.push((name, metadata.permissions().mode() & 0o7777));
            }
        }
    }
    found.sort();
    found
}

/// What is said can be pasted into a terminal: a real TAB there would ask for completions.
#[test]
fn make_run_prints_the_same_commands_as_the_readme() {
    let target = tempfile::tempdir().unwrap();
    fs::create_dir(target.path().join("debug")).unwrap();
    symlink("/bin/true", target.path().join("debug/echoed")).unwrap();
    let Some(output) = make("run", &[("CARGO", Path::new("true")), ("TARGETDIR", target.path())]) else { return };
    let said = String::from_utf8(output.stdout).expect("it is text");
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let commands: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert_eq!(commands.len(), 3, "{said}");
    for command in commands {
        let command = command.replace(target.path().to_str().expect("it is text"), "target");
        assert!(readme.contains(&command), "{command:?} is not in the README");
    }
}

#[test]
fn make_install_installs_every_file_and_make_uninstall_removes_them() {
    let directory = tempfile::tempdir().unwrap();
    let (built, destination) = (link_programs(directory.path()), directory.path().join("destination"));
    let variables = [
        ("DESTDIR", destination.as_os_str()),
        ("BUILDDIR", built.as_os_str()),
        ("PREFIX", OsStr::new("/usr")),
        ("SYSTEMD_VERSION", OsStr::new("254")),
    ];
    if make("install", &variables).is_none() {
        return;
    }
    let found = files(&destination);
    for expected in [
        ("usr/sbin/echoed", 0o755),
        ("usr/bin/echoctl", 0o755),
        ("usr/lib/systemd/system/echoed.socket", 0o644),
        ("usr/lib/systemd/system/echoed-control.socket", 0o644),
        ("usr/lib/systemd/system/echoed-monitor.socket", 0o644),
        ("usr/lib/systemd/system/echoed-agent.socket", 0o644),
        ("usr/lib/systemd/system/echoed.service", 0o644),
        ("usr/lib/systemd/system/echoed@.service", 0o644),
        ("usr/lib/systemd/system/echoed.service.d/254.conf", 0o644),
        ("usr/lib/systemd/system/echoed-instance@.socket", 0o644),
        ("usr/lib/systemd/system/echoed-instance@.service", 0o644),
        ("usr/lib/systemd/system/echoed-instance@.service.d/254.conf", 0o644),
        ("usr/lib/systemd/user/echoed.socket", 0o644),
        ("usr/lib/systemd/user/echoed.service", 0o644),
        ("usr/lib/systemd/user/echoed.service.d/254.conf", 0o644),
        ("usr/lib/systemd/catalog/echoed.catalog", 0o644),
        ("usr/lib/tmpfiles.d/echoed.conf", 0o644),
        ("usr/share/echoed/root/usr/sbin/echoed", 0o644),
        ("usr/share/echoed/links/systemd/journal", 0o777),
        ("usr/lib/echoed/echoed.toml.d/10-sockets.toml", 0o644),
        ("etc/echoed/echoed.toml", 0o644),
        ("usr/share/man/man8/echoed.8", 0o644),
        ("usr/share/man/man1/echoctl.1", 0o644),
        ("usr/share/man/man5/echoed.toml.5", 0o644),
        ("usr/share/man/man7/echoed-protocol.7", 0o644),
        ("usr/share/bash-completion/completions/echoctl", 0o644),
        ("usr/share/zsh/site-functions/_echoctl", 0o644),
        ("usr/share/fish/vendor_completions.d/echoctl.fish", 0o644),
        ("usr/share/doc/echoed/configuration.md", 0o644),
        ("usr/share/doc/echoed/operations.md", 0o644),
        ("usr/share/doc/echoed/performance-cpu.svg", 0o644),
        ("usr/share/doc/echoed/performance-fairness.svg", 0o644),
        ("usr/share/doc/echoed/performance-memory.svg", 0o644),
        ("usr/share/doc/echoed/performance-packets-fairness.svg", 0o644),
        ("usr/share/doc/echoed/performance-packets.svg", 0o644),
        ("usr/share/doc/echoed/performance.md", 0o644),
        ("usr/share/doc/echoed/restart.svg", 0o644),
        ("usr/share/doc/echoed/messages.md", 0o644),
        ("usr/share/doc/echoed/monitoring.md", 0o644),
        ("usr/share/doc/echoed/echoctl-json.md", 0o644),
        ("usr/share/doc/echoed/examples/ipv6.conf", 0o644),
        ("usr/share/doc/echoed/README.md", 0o644),
        ("usr/share/doc/echoed/CHANGELOG.md", 0o644),
        ("usr/share/doc/echoed/SECURITY.md", 0o644),
        ("usr/share/doc/echoed/LICENSE-MIT", 0o644),
    ] {
        assert!(found.contains(&(expected.0.to_owned(), expected.1)), "{expected:?} is not in {found:#?}");
    }
    // The directory for the settings of the administrator.
    assert!(destination.join("etc/echoed/echoed.toml.d").is_dir());
    // What is newer than the version asked for is not there.
    assert!(!found.iter().any(|(name, _)| name.contains("echoed.socket.d/")), "{found:#?}");
    let service = fs::read_to_string(destination.join("usr/lib/systemd/system/echoed.service")).unwrap();
    assert!(service.lines().any(|line| line == "ExecStart=/usr/sbin/echoed"), "{service}");
    let socket = fs::read_to_string(destination.join("usr/lib/systemd/system/echoed.socket")).unwrap();
    assert!(service.lines().any(|line| line == "RootDirectory=/usr/share/echoed/root"), "{service}");
    for text in [&service, &socket] {
        let left = ["@SBINDIR@", "@ROOTDIR@", "@LINKSDIR@", destination.to_str().unwrap()];
        assert!(!left.iter().any(|left| text.contains(left)), "{text}");
    }
    // Places for all that the service sees, and nothing in them.
    let root = destination.join("usr/share/echoed/root");
    for place in ["dev", "etc/echoed", "lib", "lib64", "proc", "run", "sys", "usr/lib", "usr/lib64"] {
        assert!(root.join(place).is_dir(), "{place}");
    }
    assert_eq!(files(&root), [("usr/sbin/echoed".to_owned(), 0o644)]);
    assert_eq!(fs::read(root.join("usr/sbin/echoed")).unwrap(), b"");
    // Links that lead somewhere, also where nothing is mounted.
    let links = destination.join("usr/share/echoed/links/systemd");
    for link in ["incoming", "journal", "notify"] {
        assert_eq!(fs::read_link(links.join(link)).unwrap(), Path::new("..").join(link));
        assert!(links.join(link).is_dir(), "{link}");
    }
    let bound = "BindReadOnlyPaths=/usr/share/echoed/links/systemd:/run/systemd";
    assert!(service.lines().any(|line| line == bound), "{service}");
    // Changed settings stay, whatever is installed or removed.
    let settings = destination.join("etc/echoed/echoed.toml");
    let shipped = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, "# mine\n").unwrap();
    make("install", &variables);
    make("uninstall", &variables);
    assert_eq!(files(&destination), [("etc/echoed/echoed.toml".to_owned(), 0o644)]);
    assert_eq!(fs::read_to_string(&settings).unwrap(), "# mine\n");
    fs::write(&settings, shipped).unwrap();
    make("uninstall", &variables);
    assert_eq!(files(&destination), []);
    assert!(!destination.join("usr/share/echoed").exists());
    assert!(!destination.join("usr/lib/echoed").exists());
}

#[test]
fn make_install_fails_before_a_build_and_installs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let Some(make) = common::program_or_skip("make") else { return };
    let (empty, destination) = (directory.path().join("empty"), directory.path().join("destination"));
    let mut command = Command::new(make);
    command.env_remove("MAKEFLAGS").args(["-s", "-C", ROOT, "install"]);
    command.arg(format!("BUILDDIR={}", empty.display())).arg(format!("DESTDIR={}", destination.display()));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("run make first"), "{said}");
    assert!(!destination.exists() && !empty.exists());
}

/// The units of an installation for the systemd of this machine, in a directory below `directory`.
fn install_units(directory: &Path) -> Option<PathBuf> {
    install_units_and_output(directory).map(|(units, _)| units)
}

/// The same, and what "make install" says.
fn install_units_and_output(directory: &Path) -> Option<(PathBuf, String)> {
    let built = link_programs(directory);
    let place = |name: &str| directory.join(name).into_os_string();
    let variables = [
        ("BUILDDIR", built.into_os_string()),
        ("SBINDIR", place("sbin")),
        ("BINDIR", place("bin")),
        ("UNITDIR", place("units")),
        ("USERUNITDIR", place("user-units")),
        ("CATALOGDIR", place("catalog")),
        ("TMPFILESDIR", place("tmpfiles")),
        ("ROOTDIR", place("root")),
        ("LINKSDIR", place("links")),
        ("SYSCONFDIR", place("etc")),
        ("SETTINGSDIR", place("settings")),
        ("DOCDIR", place("doc")),
        ("MANDIR", place("man")),
        ("BASHCOMPDIR", place("bash")),
        ("ZSHCOMPDIR", place("zsh")),
        ("FISHCOMPDIR", place("fish")),
    ];
    let output = make("install", &variables)?;
    Some((directory.join("units"), String::from_utf8(output.stdout).expect("it is text")))
}

/// The commands in the first block of a page that has this line, from the line after it.
fn commands_after(page: &str, line: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(ROOT).join(page)).expect("it is there");
    let without_comment = |line: &str| line.split(" #").next().unwrap_or_default().trim_end().to_owned();
    let lines = text.lines().map(without_comment).skip_while(|found| found != line);
    lines
        .take_while(|found| !found.starts_with("echoctl") && !found.starts_with("printf"))
        .filter_map(|found| found.strip_prefix("sudo ").map(str::to_owned))
        .filter(|found| !found.starts_with("make"))
        .collect()
}

#[test]
fn make_install_the_readme_and_operations_md_say_the_same_about_what_comes_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let Some((_, said)) = install_units_and_output(directory.path()) else { return };
    let printed: Vec<_> = said.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    assert_eq!(printed.len(), 4, "{said}");
    for page in ["README.md", "docs/operations.md"] {
        assert_eq!(commands_after(page, "sudo make install"), printed, "{page}");
    }
}

/// `make bench` writes the one table, and nothing writes the other.
#[test]
fn the_figures_in_the_readme_are_those_of_the_last_measurement() {
    let [readme, measured] = ["README.md", "docs/performance.md"]
        .map(|page| fs::read_to_string(Path::new(ROOT).join(page)).expect("it is there"));
    let rows = |page: &str, heading: &str| -> Vec<Vec<String>> {
        let (_, below) = page.split_once(heading).unwrap_or_else(|| panic!("no table below \"{heading}\""));
        let rows = below.lines().skip_while(|line| !line.starts_with("|--")).skip(1);
        let rows = rows.map_while(|line| line.strip_prefix('|')?.strip_suffix('|'));
        rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
    };
    let measured = rows(&measured, "\n### TCP connections served in a second");
    let shown = rows(&readme, "| server | connections per second |");
    assert_eq!(shown.len(), 4, "{shown:?}");
    for row in shown {
        let found = measured.iter().find(|found| found[0] == row[0]).map(|found| &found[1]);
        assert_eq!(
            found,
            Some(&row[1]),
            "correct {} in README.md, after a new measurement in docs/performance.md",
            row[0]
        );
    }
}

/// Every document as it is installed with these variables: its name and its text.
fn installed_documents(directory: &Path, variables: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
    let (built, destination) = (link_programs(directory), directory.join("destination"));
    let mut all = vec![("DESTDIR", destination.as_os_str()), ("BUILDDIR", built.as_os_str())];
    all.extend(variables.iter().map(|(name, value)| (*name, OsStr::new(value))));
    make("install", &all)?;
    let is_document = |name: &str| name.contains("/share/man/") || name.ends_with(".md");
    let found = files(&destination).into_iter().map(|(name, _)| name).filter(|name| is_document(name));
    Some(found.map(|name| (name.clone(), fs::read_to_string(destination.join(&name)).expect("it is text"))).collect())
}

#[test]
fn installed_documents_name_the_directories_of_the_installation() {
    let directory = tempfile::tempdir().unwrap();
    let variables = [("PREFIX", "/usr"), ("SBINDIR", "/usr/bin"), ("DOCDIR", "/usr/share/doc/packages/echoed")];
    let Some(documents) = installed_documents(directory.path(), &variables) else { return };
    let named = |name: &str| &documents.iter().find(|(found, _)| found.ends_with(name)).expect("it is installed").1;
    for (name, text) in &documents {
        assert!(!text.contains("/usr/local"), "{name}");
    }
    assert!(
        named("operations.md")
            .contains("-t /etc/systemd/system /usr/share/doc/packages/echoed/examples/echoed-lines.socket")
    );
    assert!(named("operations.md").contains("units in /usr/lib/systemd/system"));
    assert!(named("echoed.8").contains("nobody /usr/bin/echoed"));
    // Those of the project are as they are installed by default.
    let directory = tempfile::tempdir().unwrap();
    let documents = installed_documents(directory.path(), &[]).expect("make is there");
    let (_, operations) = documents.iter().find(|(name, _)| name.ends_with("operations.md")).expect("it is installed");
    assert!(*operations == fs::read_to_string(Path::new(ROOT).join("docs/operations.md")).unwrap());
}

#[test]
fn every_link_in_an_installed_document_leads_to_something_that_is_installed() {
    let directory = tempfile::tempdir().unwrap();
    let Some(documents) = installed_documents(directory.path(), &[("PREFIX", "/usr")]) else { return };
    let destination = directory.path().join("destination");
    let mut checked = 0;
    for (name, text) in documents.iter().filter(|(name, _)| name.ends_with(".md")) {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in links.filter(|link| !link.is_empty() && !link.contains("://")) {
            let target = match link.strip_prefix('/') {
                Some(absolute) => destination.join(absolute),
                None => destination.join(name).with_file_name(link),
            };
            assert!(target.exists(), "{name} links to {link}");
            checked += 1;
        }
    }
    assert!(checked > 20, "{checked}");
}

/// What systemd has to say about units.
fn verify_units(directory: &Path, units: &[&str]) -> Option<String> {
    let mut command = Command::new(common::program_or_skip("systemd-analyze")?);
    // Only ours: what else is installed on the machine may be wrong as it likes.
    command.args(["verify", "--man=no"]).args(units.iter().map(|unit| directory.join(unit)));
    let output = command.output().expect("it can be run");
    let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("it is text");
    assert!(output.status.success() || !said.is_empty(), "{}", output.status);
    Some(said)
}

/// The version of the systemd of this machine.
fn systemd_version() -> u32 {
    let output = Command::new("systemd-analyze").arg("--version").output().expect("it can be run");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let version =
        said.split_whitespace().nth(1).and_then(|version| version.split(['.', '~', '-']).next()?.parse().ok());
    version.unwrap_or_else(|| panic!("{said}"))
}

#[test]
fn systemd_analyze_verify_reports_nothing_about_the_units() {
    let directory = tempfile::tempdir().unwrap();
    let Some(units) = install_units(directory.path()) else { return };
    let shipped = [
        "echoed.socket",
        "echoed-control.socket",
        "echoed-monitor.socket",
        "echoed-agent.socket",
        "echoed.service",
        "echoed@x.service",
        "echoed-instance@x.socket",
        "echoed-instance@x.service",
    ];
    let Some(said) = verify_units(&units, &shipped) else { return };
    assert_eq!(said, "");

    // It would have something to say: a check of the check.
    for unit in ["echoed.service", "echoed@.service"] {
        let text = fs::read_to_string(units.join(unit)).unwrap();
        fs::write(units.join(unit), text.replace("PrivateNetwork=", "PrivateNetwrok=")).unwrap();
        let said = verify_units(&units, &[&unit.replace('@', "@x")]).unwrap();
        assert!(said.contains("PrivateNetwrok"), "{unit}: {said}");
    }
}

#[test]
fn systemd_analyze_verify_reports_nothing_about_the_examples() {
    for entry in fs::read_dir(Path::new(ROOT).join("systemd/examples")).unwrap() {
        let example = entry.unwrap().path();
        let name = example.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".toml") {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        let Some(units) = install_units(directory.path()) else { return };
        // Where it says itself that it belongs.
        let text = fs::read_to_string(&example).unwrap();
        let place = text.lines().find_map(|line| line.strip_prefix("# To be used as /etc/systemd/system/"));
        let place = place.and_then(|place| place.split(',').next()).unwrap_or_else(|| panic!("{name} says where"));
        let place = units.join(place);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(&place, &text).unwrap();
        let unit = place.ancestors().find_map(|path| path.file_name()?.to_str()?.strip_suffix(".d"));
        let unit = unit.unwrap_or(&name);
        let Some(said) = verify_units(&units, &[unit]) else { return };
        // What is for newer ones, an older one does not know.
        let since =
            text.lines().find_map(|line| line.strip_prefix("# Since systemd ")?.strip_suffix('.')?.parse().ok());
        let known = since.is_none_or(|since: u32| systemd_version() >= since);
        assert!(said.is_empty() || !known && said.contains("Unknown key"), "{name}: {said}");

        fs::write(&place, format!("{text}\n[Unit]\nDescritpion=x\n")).unwrap();
        let said = verify_units(&units, &[unit]).unwrap();
        assert!(said.contains("Descritpion"), "{name} is not looked at: {said}");
    }
}

#[test]
fn every_example_socket_has_a_settings_section_and_the_readme_lists_both() {
    let examples = Path::new(ROOT).join("systemd/examples");
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let mut shipped: Vec<_> = files(&examples).into_iter().map(|(name, _)| name).collect();
    shipped.retain(|name| name.starts_with("echoed-"));
    let mut expected = Vec::new();
    for unit in shipped.iter().filter(|name| name.ends_with(".socket")) {
        let section = unit.replace(".socket", ".toml");
        let socket = assignments(&format!("examples/{unit}"));
        let name = &values(&socket, "Socket", "FileDescriptorName")[0];
        assert_eq!(*unit, format!("echoed-{name}.socket"));
        assert_eq!(values(&socket, "Socket", "Service"), ["echoed.service"], "{unit}");
        assert_eq!(values(&socket, "Unit", "PartOf"), ["echoed.socket"], "{unit}");
        assert_eq!(values(&socket, "Install", "WantedBy"), ["echoed.socket"], "{unit}");
        // Only this machine can reach a daemon that a user has just tried out.
        for key in ["ListenStream", "ListenDatagram", "ListenSequentialPacket"] {
            for address in values(&socket, "Socket", key) {
                assert!(address.starts_with("127.0.0.1:") || address.starts_with("/run/"), "{unit}: {address}");
            }
        }

        let said = printed(
            Command::new(env!("CARGO_BIN_EXE_echoed"))
                .arg("--config")
                .arg(examples.join(&section))
                .arg("--print-config"),
        );
        assert!(said.contains(&format!("[listener.{name}]")), "{section}: {said}");
        let text = fs::read_to_string(examples.join(&section)).unwrap();
        let place = format!("# To be used as /etc/echoed/echoed.toml.d/{section}.");
        assert!(text.lines().any(|line| line == place), "{section} says where");
        let listed = |line: &str| line.starts_with('|') && line.contains(unit) && line.contains(&section);
        assert!(readme.lines().any(listed), "{unit} and {section} are in the table");
        expected.extend([unit.clone(), section]);
    }
    assert!(!expected.is_empty());
    assert_eq!(shipped, expected);
}

#[test]
fn all_service_units_of_the_system_have_the_same_sandbox() {
    let sandbox = |unit: &str| {
        let text = fs::read_to_string(Path::new(ROOT).join("systemd").join(unit)).expect("it is shipped");
        text.split_once("# It needs the sockets").expect("that is where it begins").1.to_owned()
    };
    assert_eq!(sandbox("echoed.service"), sandbox("echoed@.service"));
    // The third is made of the first (Makefile), but for the names.
    let directory = tempfile::tempdir().unwrap();
    if let Some(units) = install_units(directory.path()) {
        let lines = |unit: &str| {
            let text = fs::read_to_string(units.join(unit)).unwrap();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let (mut service, instance) = (lines("echoed.service"), lines("echoed-instance@.service"));
        service.retain(|line| line != "Wants=echoed-control.socket");
        assert_eq!(service.len(), instance.len());
        let differing = service.iter().zip(&instance).filter(|(one, other)| one != other);
        let differing: Vec<_> =
            differing.map(|(_, other)| other.as_str()).filter(|line| !line.starts_with('#')).collect();
        let expected = [
            "Description=Delimited echo service, the instance %i",
            "Requires=echoed-instance@%i.socket",
            "After=echoed-instance@%i.socket",
            "ConfigurationDirectory=echoed/instances/%i",
        ];
        assert_eq!(differing, expected);
    }
    for version in ["257", "258"] {
        let drop_in =
            |unit: &str| fs::read_to_string(Path::new(ROOT).join(format!("systemd/versions/{version}-{unit}.conf")));
        assert_eq!(drop_in("echoed.service").unwrap(), drop_in("echoed@.service").unwrap(), "{version}");
    }
}

/// The assignments of a unit file, without comments: section, key, value.
fn assignments(unit: &str) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(Path::new(ROOT).join("systemd").join(unit)).expect("it is shipped");
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        } else if let Some((key, value)) = line.split_once('=') {
            found.push((section.clone(), key.to_owned(), value.to_owned()));
        }
    }
    found
}

fn values(assignments: &[(String, String, String)], section: &str, key: &str) -> Vec<String> {
    let wanted = |found: &&(String, String, String)| found.0 == section && found.1 == key;
    assignments.iter().filter(wanted).map(|found| found.2.clone()).collect()
}

#[test]
fn every_socket_unit_with_a_tcp_socket_finds_out_about_vanished_clients() {
    let examples = files(&Path::new(ROOT).join("systemd/examples"));
    let examples = examples.into_iter().map(|(name, _)| name).filter(|name| name.ends_with(".socket"));
    let shipped = ["echoed.socket", "echoed-monitor.socket", "echoed-agent.socket"].map(str::to_owned);
    let mut checked = 0;
    for unit in examples.map(|name| format!("examples/{name}")).chain(shipped) {
        let socket = assignments(&unit);
        if values(&socket, "Socket", "ListenStream").iter().all(|address| address.starts_with('/')) {
            continue;
        }
        checked += 1;
        for (key, value) in
            [("KeepAlive", "yes"), ("KeepAliveTimeSec", "60"), ("KeepAliveIntervalSec", "10"), ("KeepAliveProbes", "6")]
        {
            assert_eq!(values(&socket, "Socket", key), [value], "{unit}: {key}");
        }
    }
    assert_eq!(checked, 8);
}

#[test]
fn the_socket_unit_has_the_documented_addresses_and_is_the_unit_to_enable() {
    let socket = assignments("echoed.socket");
    assert_eq!(values(&socket, "Socket", "ListenStream"), ["127.0.0.1:8085", "/run/echoed.sock"]);
    assert_eq!(values(&socket, "Socket", "FileDescriptorName"), ["echo"]);
    assert_eq!(values(&socket, "Socket", "NoDelay"), ["yes"]);
    assert_eq!(values(&socket, "Socket", "RemoveOnStop"), ["yes"]);
    assert_eq!(values(&socket, "Socket", "TriggerLimitIntervalSec"), ["0"]);
    assert_eq!(values(&socket, "Install", "WantedBy"), ["sockets.target"]);

    let service = assignments("echoed.service");
    assert!(!service.iter().any(|found| found.0 == "Install"), "only the socket is enabled");
    for key in ["Requires", "After"] {
        assert_eq!(values(&service, "Unit", key), ["echoed.socket"]);
    }
    for unit in [&socket, &service] {
        assert_eq!(values(unit, "Unit", "StartLimitIntervalSec"), ["0"]);
    }
    assert_eq!(values(&service, "Service", "Type"), ["notify"]);
    assert_eq!(values(&service, "Service", "Restart"), ["on-failure"]);
    // Newer ones know a handshake for it.
    assert_eq!(values(&service, "Service", "ExecReload"), ["+kill -HUP $MAINPID"]);
    assert_eq!(values(&service, "Service", "WatchdogSec"), ["30s"]);
    // The brake where the start limit is off.
    assert_eq!(values(&service, "Service", "RestartSec").len(), 1);
    // A bad configuration is tried again, or the socket would be given up.
    assert_eq!(values(&service, "Service", "RestartPreventExitStatus"), [""; 0]);
    // Would delete the socket file whenever the service stops.
    assert_eq!(values(&service, "Service", "RuntimeDirectory"), [""; 0]);
}

#[test]
fn the_sockets_of_other_roles_have_the_documented_addresses_and_their_sections() {
    let settings = Path::new(ROOT).join("systemd/settings/10-sockets.toml");
    let echoed = || Command::new(env!("CARGO_BIN_EXE_echoed"));
    let said = printed(echoed().arg("--config").arg(settings).arg("--print-config"));
    let wanted = ["echoed.socket echoed.service"];
    for (role, addresses, mode, wanted_by) in [
        ("monitor", &["127.0.0.1:9085", "/run/echoed/monitor"][..], &[][..], &wanted[..]),
        ("agent", &["127.0.0.1:9086"], &[], &wanted),
        ("control", &["/run/echoed/io.echoed"], &["0600"], &[]),
    ] {
        let socket = assignments(&format!("echoed-{role}.socket"));
        let of = |section, key| values(&socket, section, key);
        assert_eq!(of("Socket", "ListenStream"), addresses);
        assert_eq!(of("Socket", "SocketMode"), mode);
        assert_eq!(of("Socket", "FileDescriptorName"), [role]);
        assert_eq!(of("Socket", "Service"), ["echoed.service"]);
        assert_eq!(of("Socket", "TriggerLimitIntervalSec"), ["0"]);
        assert_eq!(of("Socket", "RemoveOnStop"), if role == "agent" { &[][..] } else { &["yes"] });
        assert_eq!(of("Unit", "PartOf"), ["echoed.socket"]);
        assert_eq!(of("Unit", "StartLimitIntervalSec"), ["0"]);
        assert_eq!(of("Install", "WantedBy"), wanted_by);
        let section = said.split_once(&format!("[listener.{role}]\n")).expect("it has a section").1;
        assert!(section.split("\n[").next().is_some_and(|text| text.contains(&format!("role = \"{role}\""))), "{said}");
    }
    // They start with it, and it starts also without them: Wants=, not Requires=.
    for unit in ["echoed.socket", "echoed.service"] {
        assert_eq!(values(&assignments(unit), "Unit", "Wants"), ["echoed-control.socket"], "{unit}");
    }
}

#[test]
fn only_the_service_for_all_connections_has_an_fd_store() {
    let [base, newer] = ["echoed.service", "versions/254-echoed.service.conf"].map(assignments);
    let room = &values(&base, "Service", "FileDescriptorStoreMax")[0];
    assert_eq!(values(&base, "Service", "Environment"), [format!("FDSTORE={room}")]);
    // systemd 254 sets the variable itself.
    assert_eq!(values(&newer, "Service", "Environment"), [""]);
    assert_eq!(values(&newer, "Service", "FileDescriptorStoreMax"), [""; 0]);
    assert_eq!(values(&assignments("echoed@.service"), "Service", "FileDescriptorStoreMax"), [""; 0]);
}

#[test]
fn the_resource_limits_of_the_service_are_enough_for_the_default_settings() {
    let service = assignments("echoed.service");
    let limits = echoed::config::Settings::default().limits;
    let limit = |service| values(service, "Service", "LimitNOFILE")[0].parse::<u64>().unwrap();
    let workers = |workers| ServingThreads { workers, ..ServingThreads::default() };
    // Each connection twice while it is handed over, for as many workers as there are by default at most.
    assert!(limit(&service) >= FdBudget::of(2 * limits.connections, workers(8)).needed());
    assert!(limit(&assignments("echoed@.service")) >= FdBudget::of_single_connection(workers(1)).needed());
    // All connections with full buffers in the kernel, as large as those to receive are at first.
    let in_kernel = (128 + 208) * 1024;
    let memory = values(&service, "Service", "MemoryMax")[0].strip_suffix('M').unwrap().parse::<usize>().unwrap() << 20;
    assert!(memory >= limits.connections * (in_kernel + 10 * 1024) + limits.buffer_memory);
    // As many workers as can be asked for, the main thread, the services, those that log, the one that closes what peers sent,
    // those that send replies to paths, and one for each of 64 datagram sockets.
    let tasks: usize = values(&service, "Service", "TasksMax")[0].parse().unwrap();
    assert!(tasks >= 64 + 1 + 1 + 2 + 1 + 8 + 64);
    let stop = &values(&service, "Service", "TimeoutStopSec")[0];
    let stop = echoed::units::parse_time(stop).unwrap();
    assert!(stop > echoed::config::Settings::default().service.drain_timeout.duration());
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(ROOT).args(arguments);
    command
}

#[test]
fn the_protocol_by_itself_depends_on_one_crate() {
    let arguments = ["tree", "--locked", "--offline", "--no-default-features", "-e", "normal", "--prefix", "none"];
    let tree = printed(&mut cargo(&arguments));
    let names: Vec<_> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["echoed", "memchr"], "{tree}");
}

#[test]
fn the_protocol_by_itself_builds() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("by-itself");
    let arguments = ["check", "--quiet", "--locked", "--offline", "--lib", "--no-default-features", "--target-dir"];
    let output = run(cargo(&arguments).arg(target));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_programs_have_no_hooks_for_tests() {
    let mut directories = vec![Path::new(ROOT).join("src")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("there are sources") {
            let path = entry.expect("it can be read").path();
            // Unit tests are in no program.
            if path.file_stem().is_some_and(|name| name == "tests") {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).expect("sources are text");
            assert!(!text.contains("ECHOED_TEST"), "{} reads a variable of the tests", path.display());
        }
    }
}
