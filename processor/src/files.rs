//! Files of the state directory: held by one process, replaced as a whole; sockets alike.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Opens a file, which is made if it is not there, and locks it for as long as it is open.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if another process holds it; those of opening it.
pub(crate) fn hold(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Replaces a file, of which a reader sees the old or the new, in a directory that is made if it is not there. Not durable.
///
/// # Errors
/// If the file system refuses.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    write_aside(path, bytes)?;
    std::fs::rename(aside(path), path)
}

/// Like [`replace`] in a directory that is there, and what it says outlives a loss of power.
///
/// # Errors
/// If the file system refuses.
pub(crate) fn replace_for_good(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_aside(path, bytes)?.sync_all()?;
    std::fs::rename(aside(path), path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Listens at a path, in a directory that is made if it is not there: a Unix socket whose group and mode are right before anybody can
/// reach it by its name, in place of what an earlier one left there. Does not block.
///
/// # Errors
/// If the file system refuses.
pub(crate) fn listen(path: &Path, group: Option<u32>, mode: u32) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let aside = aside(path);
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&aside)?;
    std::os::unix::fs::chown(&aside, None, group)?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&aside, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Where something is made before it gets its name.
fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    aside.into()
}

fn write_aside(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(aside(path))?;
    file.write_all(bytes)?;
    Ok(file)
}
