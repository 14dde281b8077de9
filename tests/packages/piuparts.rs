//! piuparts, which knows what a package for Debian must not do.

use std::path::Path;
use std::process::Command;

use common::machines::rootfs::Debian;

/// On the packages that were put on `tools`, in a plain `base`.
pub fn piuparts_passes(tools: &Debian, base: &Debian) {
    let (tools, base) = (tools.installed(), base.installed());
    let ended = Command::new("sh")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/packages/piuparts.sh"))
        .args([&tools.root, &tools.layer, &base.root])
        .output()
        .expect("sh can be started");
    let output = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    assert!(ended.status.success(), "{output}");
    for part in ["Installation and purging test", "Installation, upgrade and purging tests"] {
        assert!(output.contains(&format!("PASS: {part}")), "{part}: {output}");
    }
}
