//! What is not done when the pages for administrators are run, and why.

use crate::machines::page_runner::Skip::{Line, Section as Below};
use crate::machines::page_runner::Skips;

/// In docs/operations.md.
pub const OPERATIONS: Skips = &[
    (Below("Packages"), "tests/packages does it"),
    (Line("journalctl -u echoed.service -f"), "it does not end"),
    (Line("listen echo-tls"), "tests/it/tls.rs does it"),
    (Line("foreground = quiet"), "tests/it/tls.rs does it"),
    (Line(r"printf 'aaaa\t' | socat -t2 - OPENSSL:localhost:8443,cafile=echo.pem"), "tests/it/tls.rs does it"),
    (Line("systemctl --user enable --now echoed.socket"), "user_manager does it"),
    (Line("[Socket]"), "user_manager does it"),
    (Below("Started by inetd, stunnel and others"), "tests/it/inetd and lifecycle have them start it"),
];
/// In docs/configuration.md.
pub const SETTINGS: Skips = &[
    (Line("[defaults.deadlines]"), "tests/it/etc/page.rs does it"),
    (Line("[listener.local.deadlines]"), "tests/it/etc/page.rs does it"),
    (Below("When something is wrong"), "tests/it/etc/page.rs does it"),
];
/// In README.md.
pub const README: Skips = &[
    (
        Line("first terminal:   echoctl ping --count 20 --interval 100ms 127.0.0.1:8085"),
        "doc_recording does it, and so does the section that installs",
    ),
    (
        Below("Try it without installing"),
        "for a machine on which it is built; tests/it/programs.rs has these programs talk to it",
    ),
    (Line("backend echo"), "tests/it/proxy/haproxy.rs does it"),
    (
        Line(r#"/etc/echoed/echoed.toml.d/50-local.toml:2:8: read: 10 has no unit; write "10s" if that is meant"#),
        "tests/it/etc/page.rs does it",
    ),
];

/// Besides, where it was built elsewhere.
pub const BUILT: Skips =
    &[(Line("sudo apt install cargo make"), "it was built already"), (Line("make"), "it was built already")];
/// Besides, on a machine with what tests use: it has no network.
pub const PREPARED: Skips = &[(Line("sudo apt install netcat-openbsd socat curl"), "the machine has them")];
/// Besides, where a package is installed, or what looks like one.
pub const PACKAGED: Skips = &[(Line("sudo make install"), "the package was installed")];
/// In docs/operations.md, where a package is installed.
pub const PACKAGED_OPERATIONS: Skips = &[(Line("sudo make uninstall"), "the package would be removed")];
