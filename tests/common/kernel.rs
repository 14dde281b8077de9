//! What the kernel of this machine can do.

use std::fs;

/// Returns whether the kernel can refuse descriptors that peers send (SO_PASSRIGHTS): Linux 6.16 and newer.
pub fn refuses_descriptors() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(16))
}
