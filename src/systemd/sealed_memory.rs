//! Sealed memory: bytes behind a descriptor, which cannot change any longer (memfd_create(2), F_ADD_SEALS of fcntl(2)).

use std::fs::File;
use std::io::{self, BufWriter, IntoInnerError};
use std::os::fd::OwnedFd;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::{Errno, retry_on_intr};

/// The seals: with these, not even this process can change the bytes.
pub(super) const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// Creates memory with the bytes that `write` writes, and seals it. `name` is what /proc shows of it. `execution` is
/// [`MemfdFlags::NOEXEC_SEAL`], which adds one more seal, or [`MemfdFlags::EXEC`].
///
/// # Errors
/// Returns an error if the memory cannot be created, or `write` returns one.
pub(super) fn create(
    name: &str,
    execution: MemfdFlags,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let new = |execution| retry_on_intr(|| memfd_create(name, flags | execution));
    let memory = match new(execution) {
        // Linux before 6.3 knows neither flag. Later, memory without one is warned about, or refused.
        Err(Errno::INVAL) => new(MemfdFlags::empty()),
        // vm.memfd_noexec=2 refuses EXEC.
        Err(Errno::ACCESS) if execution == MemfdFlags::EXEC => new(MemfdFlags::NOEXEC_SEAL),
        result => result,
    }?;
    let mut writer = BufWriter::with_capacity(64 * 1024, File::from(memory));
    write(&mut writer)?;
    let file = writer.into_inner().map_err(IntoInnerError::into_error)?;
    retry_on_intr(|| fcntl_add_seals(&file, SEALS))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use rustix::fs::fcntl_get_seals;

    use super::*;

    #[test]
    fn sealed_memory_has_the_bytes_and_takes_no_others() {
        for execution in [MemfdFlags::EXEC, MemfdFlags::NOEXEC_SEAL] {
            let memory = create("test", execution, |writer| writer.write_all(b"some bytes")).unwrap();
            assert!(fcntl_get_seals(&memory).unwrap().contains(SEALS));
            let mut file = File::from(memory);
            assert!(file.write_all(b"others").is_err());
            let mut text = String::new();
            file.rewind().and_then(|()| file.read_to_string(&mut text)).unwrap();
            assert_eq!(text, "some bytes");
        }
        let error = create("test", MemfdFlags::NOEXEC_SEAL, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
