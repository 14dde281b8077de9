//! What the service cannot do, as the kernel and systemd show it, however it is started.
//!
//! MemoryMax=, TasksMax=, IPAddressDeny= and SocketBindDeny= are accepted in a container whose host keeps the controllers to
//! itself, and then do nothing: that they are set is checked here, that they hold is not.

use std::fs;
use std::path::Path;

use common::machines::machine::Machine;
use common::wait_until;

tests![
    the_exposure_level_of_the_units_is_at_most_0_1,
    systemd_analyze_verify_reports_nothing_about_the_units_and_the_examples,
    the_service_has_no_capabilities_and_cannot_gain_privileges,
    the_service_has_no_network,
    the_service_sees_only_its_own_files,
    operations_that_the_service_does_not_need_are_refused,
    the_service_leaves_nothing_in_its_root_directory_and_starts_on_a_read_only_file_system,
    the_resource_limits_of_the_service_are_set,
    the_maximum_number_of_workers_can_be_started,
];

fn the_exposure_level_of_the_units_is_at_most_0_1(machine: &Machine) {
    // With all sockets.
    machine.sh("systemctl enable --quiet --now echoed.socket echoed-monitor.socket echoed-agent.socket");
    machine.sh("echoctl status");
    for unit in ["echoed.service", "echoed@x.service"] {
        let said = machine.sh(&format!("systemd-analyze security --no-pager {unit}"));
        let exposure = said.split_once(&format!("Overall exposure level for {unit}: ")).expect("it is told").1;
        let exposure: f32 = exposure.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
        println!("systemd {}: {unit}: {exposure}", machine.version());
        assert!(exposure <= 0.1, "{said}");
    }
}

fn systemd_analyze_verify_reports_nothing_about_the_units_and_the_examples(machine: &Machine) {
    let verify = |unit: &str| machine.run(&format!("systemd-analyze verify --man=no {unit}")).output;
    for unit in [
        "echoed.socket",
        "echoed-control.socket",
        "echoed-monitor.socket",
        "echoed-agent.socket",
        "echoed.service",
        "echoed@x.service",
    ] {
        assert_eq!(verify(unit), "", "{unit}");
    }
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/examples");
    for example in fs::read_dir(examples).expect("there are examples") {
        let path = example.expect("it can be listed").path();
        // Sections of the settings are not systemd's (`examples`).
        if path.extension().is_some_and(|extension| extension == "toml") {
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str()).expect("it is text");
        let text = fs::read_to_string(&path).expect("it can be read");
        // Where it says itself that it belongs.
        let path_on_machine = text.lines().find_map(|line| line.strip_prefix("# To be used as ")?.split(',').next());
        let path_on_machine = path_on_machine.unwrap_or_else(|| panic!("{name} says where"));
        let unit = path_on_machine.split('/').find_map(|part| part.strip_suffix(".d")).unwrap_or(name);
        machine.write(path_on_machine, &text);
        let since =
            text.lines().find_map(|line| line.strip_prefix("# Since systemd ")?.strip_suffix('.')?.parse().ok());
        if since.is_none_or(|since: u32| machine.version() >= since) {
            assert_eq!(verify(unit), "", "{name}");
        }
        // It is looked at.
        machine.write(path_on_machine, &format!("{text}\n[Unit]\nDescritpion=x\n"));
        let said = verify(unit);
        assert!(said.contains("Descritpion"), "{name}: {said}");
        machine.sh(&format!("rm {path_on_machine}"));
    }
}

/// What journald keeps beside its sockets, in any version.
const JOURNALD_FILES: [&str; 8] =
    ["dev-log", "flushed", "io.systemd.journal", "kernel-seqnum", "seqnum", "socket", "stdout", "streams"];

/// Checks the process of the service, and then a process of a single connection (`Accept=yes`).
fn check_each_process(machine: &Machine, check: fn(&Machine, u32)) {
    machine.sh("systemctl start echoed.socket");
    for unit in ["echoed.service", "echoed@*.service"] {
        // (Not the Unix socket: from 257 on, Accept= gives up when it cannot see the client's process, and ours is outside.)
        let mut peer = machine.connect("tcp:127.0.0.1:8085");
        peer.exchange("aaaa");
        // It answers before systemd has heard that it is ready.
        wait_until("it is active", || machine.property(unit, "ActiveState") == "active");
        check(machine, machine.daemon_pid().expect("it serves"));
        machine.sh("mkdir -p /etc/systemd/system/echoed.socket.d
            cp /usr/share/doc/echoed/examples/accept.conf /etc/systemd/system/echoed.socket.d
            systemctl stop echoed.socket echoed.service
            systemctl daemon-reload
            systemctl start echoed.socket");
    }
}

fn the_service_has_no_capabilities_and_cannot_gain_privileges(machine: &Machine) {
    check_each_process(machine, |_, process| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_else(|| panic!("{status} has {name}")).trim()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(value(set), "0000000000000000", "{set}");
        }
        assert_eq!(value("NoNewPrivs"), "1");
        // 2: by a filter, as it is in seccomp(2).
        assert_eq!(value("Seccomp"), "2");
        assert_eq!(value("Umask"), "0777");
        for kind in ["Uid", "Gid"] {
            let ids = value(kind).split_whitespace().map(|id| id.parse().expect("a number"));
            assert!(ids.into_iter().all(|id: u32| (61184..=65519).contains(&id)), "a dynamic one: {}", value(kind));
        }
    });
}

fn the_service_has_no_network(machine: &Machine) {
    check_each_process(machine, |machine, process| {
        for namespace in ["net", "mnt", "ipc", "user"] {
            let namespace_of = |process: u32| {
                fs::read_link(format!("/proc/{process}/ns/{namespace}")).expect("its namespaces can be seen")
            };
            assert_ne!(namespace_of(process), namespace_of(machine.systemd_pid()), "{namespace}");
        }
        let inside = machine.pid_inside(process);
        let up = machine.sh(&format!("nsenter --target {inside} --net ip -oneline link show up"));
        assert!(!up.contains(": ") || up.starts_with("1: lo:") && up.lines().count() == 1, "{up}");
        assert_eq!(machine.sh(&format!("nsenter --target {inside} --net ip route show table main")), "");
    });
}

fn the_service_sees_only_its_own_files(machine: &Machine) {
    check_each_process(machine, |_, process| {
        let seen = |directory: &str| {
            let entries = fs::read_dir(format!("/proc/{process}/root{directory}")).expect("it can be listed");
            let names = entries.map(|entry| entry.expect("it can be listed").file_name().into_string());
            let mut names: Vec<_> = names.map(|name| name.expect("it is text")).collect();
            names.sort();
            names
        };
        let directories =
            ["bin", "dev", "etc", "lib", "lib64", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var"];
        assert_eq!(seen("/"), directories);
        assert_eq!(seen("/etc"), ["echoed"]);
        assert_eq!(seen("/usr"), ["lib", "lib64", "sbin"]);
        assert_eq!(seen("/usr/sbin"), ["echoed"]);
        // What the unit binds; some versions of systemd make places of their own.
        let mut run = seen("/run");
        run.retain(|name| !["host", "incoming", "notify"].contains(&&**name));
        assert_eq!(run, ["echoed", "journal", "systemd"]);
        assert_eq!(seen("/run/systemd"), ["incoming", "journal", "notify"]);
        // The directory of journald's sockets is bound as a whole, so that sockets that are made anew are there. So all that
        // journald keeps in it can be seen: which streams there are, and numbers. Entries lie elsewhere.
        let journal = seen("/run/journal");
        for name in &journal {
            assert!(JOURNALD_FILES.contains(&&**name), "{name} in {journal:?}");
        }
        for socket in ["dev-log", "socket", "stdout"] {
            assert!(journal.iter().any(|name| name == socket), "{socket} in {journal:?}");
        }
        for empty in ["/bin", "/root", "/sbin", "/tmp", "/var/tmp", "/dev/shm"] {
            assert_eq!(seen(empty), [""; 0], "{empty}");
        }
    });
}

/// Tries things, and says of each whether it is refused. It runs instead of the daemon, which cannot be asked to.
const ATTEMPTS: &str = r#"
    use Socket;
    use POSIX ();
    sub attempt { my ($what, $done) = @_; print "$what: ", $done ? "done" : "refused, $!", "\n" }
    attempt("a socket for IPv4", socket(my $inet, AF_INET, SOCK_STREAM, 0));
    attempt("a socket for IPv6", socket(my $inet6, AF_INET6, SOCK_STREAM, 0));
    attempt("a netlink socket", socket(my $netlink, 16, SOCK_RAW, 0));
    socket(my $unix, AF_UNIX, SOCK_STREAM, 0) or die "it needs Unix sockets: $!";
    attempt("to bind", bind($unix, pack_sockaddr_un("\0attempt-$$")));
    attempt("to listen", listen($unix, 1));
    attempt("to write to $_", open(my $file, '>', "$_/attempt"))
        for "", "/etc/echoed", "/lib", "/run", "/run/echoed", "/tmp", "/usr/lib", "/usr/sbin", "/var/tmp", "/dev", "/dev/shm";
    attempt("to read /etc/passwd", open(my $passwd, '<', "/etc/passwd"));
    attempt("to see a shell", -e "/bin/sh" || -e "/usr/bin/sh");
    opendir(my $proc, "/proc") or die "/proc is there: $!";
    attempt("to see other processes", scalar grep { /^\d+$/ && $_ != $$ } readdir $proc);
    attempt("to see PID 1", -e "/proc/1/status");
    attempt("to signal PID 1", kill(0, 1));
    attempt("to be nicer", setpriority(0, 0, 5));
    attempt("to become root", POSIX::setuid(0));
    my %calls = (x86_64 => [9, 135, 272], aarch64 => [222, 92, 97]);
    my $calls = $calls{(POSIX::uname())[4]} || [];
    if (my ($mmap, $personality, $unshare) = @$calls) {
        attempt("memory to write and to execute", syscall($mmap, 0, 4096, 7, 0x22, -1, 0) != -1);
        attempt("another personality", syscall($personality, 0x40000) != -1);
        attempt("a user namespace", syscall($unshare, 0x10000000) != -1);
    }
    attempt("another root", chroot("/usr/lib"));
"#;

fn operations_that_the_service_does_not_need_are_refused(machine: &Machine) {
    machine.write("/usr/lib/attempts", ATTEMPTS);
    // Without a sandbox, all of it can be done: it is the sandbox that refuses.
    let outside = machine.sh("perl /usr/lib/attempts");
    assert!(outside.lines().all(|line| line.ends_with(": done")), "{outside}");
    for unit in ["echoed.service", "echoed@x.service"] {
        let template = unit.replace("@x", "@");
        machine.write(
            &format!("/etc/systemd/system/{template}.d/99-attempts.conf"),
            "[Service]
            Type=oneshot
            ExecStart=
            ExecStart=/usr/sbin/echoed /usr/lib/attempts
            Restart=no
            StandardOutput=truncate:/run/attempts",
        );
        machine.sh(&format!(
            "rm /usr/sbin/echoed; cp /usr/bin/perl /usr/sbin/echoed; systemctl daemon-reload; systemctl start {unit}"
        ));
        let inside = machine.sh("cat /run/attempts");
        let attempted =
            |said: &str| said.lines().filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect::<Vec<_>>();
        assert_eq!(attempted(&inside), attempted(&outside));
        assert!(inside.lines().all(|line| line.contains(": refused, ")), "{unit}:\n{inside}");
    }
}

fn the_service_leaves_nothing_in_its_root_directory_and_starts_on_a_read_only_file_system(machine: &Machine) {
    let root = machine.property("echoed.service", "RootDirectory");
    // Beside it are the links that are mounted on /run/systemd.
    let find = format!("find {root}/.. -ls");
    let before = machine.sh(&find);
    machine.sh("systemctl start echoed.socket");
    machine.connect("unix:/run/echoed.sock").exchange("aaaa");
    assert_eq!(machine.sh(&find), before);

    machine.sh("systemctl stop echoed.service; mount --bind /usr /usr; mount -o remount,bind,ro /usr");
    machine.run("touch /usr/share/attempt").code.filter(|code| *code != 0).expect("/usr is read-only");
    machine.connect("unix:/run/echoed.sock").exchange("aaaa");
}

fn the_resource_limits_of_the_service_are_set(machine: &Machine) {
    let property = |unit: &str, name: &str| machine.property(unit, name);
    for (unit, memory, tasks) in [("echoed.service", 1536 << 20, 144), ("echoed@x.service", 128 << 20, 16)] {
        assert_eq!(property(unit, "MemoryMax"), memory.to_string());
        assert_eq!(property(unit, "TasksMax"), tasks.to_string());
        let mut denied: Vec<_> = property(unit, "IPAddressDeny").split(' ').map(str::to_owned).collect();
        denied.sort();
        assert_eq!(denied, ["0.0.0.0/0", "::/0"]);
        assert_eq!(property(unit, "SocketBindDeny"), "any");
    }
    // This one does hold.
    check_each_process(machine, |machine, process| {
        let limits = fs::read_to_string(format!("/proc/{process}/limits")).expect("it runs");
        let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("there is such a limit");
        let single = machine.property("echoed.socket", "Accept") == "yes";
        let expected = if single { "2048" } else { "16384" };
        assert_eq!(files.split_whitespace().next(), Some(expected), "{limits}");
    });
}

fn the_maximum_number_of_workers_can_be_started(machine: &Machine) {
    machine.write("/etc/echoed/echoed.toml.d/workers.toml", "[service]\nworkers = 64\n");
    machine.sh("systemctl start echoed.socket");
    machine.connect("unix:/run/echoed.sock").exchange("aaaa");
    let process = machine.daemon_pid().expect("it serves");
    // The first client is served before they are started.
    let threads = || fs::read_dir(format!("/proc/{process}/task")).expect("it runs").count();
    wait_until("all workers are started", || threads() >= 65);
    let most: usize = machine.property("echoed.service", "TasksMax").parse().expect("a number");
    assert!(threads() <= most, "{} threads, TasksMax={most}", threads());
}
