//! Runs a script on a Debian that is not booted, but has network. `in_debian.sh` tells how.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Installs debootstrap (and what else is named after it) by the lists that the Debian was made from, unless the mirror
/// has gone on since.
pub const GET_DEBOOTSTRAP: &str = r#"
    get() { apt-get -qq install -y --no-install-recommends debootstrap "$@"; }
    get_debootstrap() { get "$@" || { apt-get -qq update && get "$@"; }; debootstrap --version; }
"#;

/// Runs a shell script on a Debian with this root file system, in a directory beside which nothing else is. /srv/kept
/// is the directory `kept` there, which is made. Returns what the script said.
///
/// # Errors
/// Returns what it said if it failed.
pub fn run_in_debian(root: &Path, directory: &Path, script: &str) -> Result<String, String> {
    let kept = directory.join("kept");
    fs::create_dir_all(&kept).expect("the tests' directory can be written to");
    let ended = Command::new("sh")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("machines/in_debian.sh"))
        .args([root, &directory.join("work"), &kept])
        .arg(script)
        .stdin(Stdio::null())
        .output()
        .expect("sh can be started");
    let output = String::from_utf8_lossy(&[ended.stdout, ended.stderr].concat()).into_owned();
    if ended.status.success() { Ok(output) } else { Err(output) }
}
