//! A bpf_link of an XDP program in a chosen mode: libbpf's own attach call has no flags.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Attaches in native mode.
pub(crate) const NATIVE: u32 = 1 << 2;
/// Attaches in generic (skb) mode.
pub(crate) const GENERIC: u32 = 1 << 1;

/// Creates the link: the program is attached as long as a descriptor or a pin of the link exists.
pub(crate) fn create(program: BorrowedFd<'_>, interface: i32, flags: u32) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as u64,
        flags,
        ..Default::default()
    };
    // SAFETY: `program` is open for the call, and `options` is a valid structure of the size it names.
    let fd = unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            interface,
            libbpf_sys::BPF_XDP,
            &raw const options,
        )
    };
    own(fd)
}

/// Puts another program in the place of the link's, at once for the next packet.
pub(crate) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both are open for the call; no options are given.
    done(unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) })
}

/// Detaches the program whatever still refers to the link.
pub(crate) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the link is open for the call.
    done(unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) })
}

/// Pins the link at a path in a bpffs, so that it outlives the process.
pub(crate) fn pin(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the link is open and the path is a string that ends with NUL, both for the call.
    done(unsafe { libbpf_sys::bpf_obj_pin(link.as_raw_fd(), path.as_ptr()) })
}

/// Opens a pinned link.
pub(crate) fn open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is a string that ends with NUL, for the call.
    own(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })
}

/// The interface that a link is attached to; 0 if the interface is gone.
pub(crate) fn interface_of(link: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = libbpf_sys::bpf_link_info::default();
    let mut length = size_of::<libbpf_sys::bpf_link_info>() as u32;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which outlives the call.
    done(unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(link.as_raw_fd(), (&raw mut info).cast(), &raw mut length)
    })?;
    if info.type_ != libbpf_sys::BPF_LINK_TYPE_XDP {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    // SAFETY: the kernel says that the link is of XDP, so this is the member it has written.
    Ok(unsafe { info.__bindgen_anon_1.xdp.ifindex })
}

/// Mounts a bpffs at a directory.
pub(crate) fn mount_bpffs(at: &Path) -> io::Result<()> {
    let at = CString::new(at.as_os_str().as_bytes())?;
    // SAFETY: all strings end with NUL and live for the call; no data are given.
    done(unsafe { libc::mount(c"bpf".as_ptr(), at.as_ptr(), c"bpf".as_ptr(), 0, std::ptr::null()) })
}

/// Whether a directory is in a bpffs.
pub(crate) fn is_bpffs(directory: &Path) -> bool {
    let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else {
        return false;
    };
    let mut found = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel writes the whole structure if it returns 0, and it is read only then.
    unsafe {
        libc::statfs(path.as_ptr(), found.as_mut_ptr()) == 0
            && found.assume_init().f_type == libc::BPF_FS_MAGIC as libc::__fsword_t
    }
}

fn own(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(last(fd));
    }
    // SAFETY: the kernel just gave this descriptor to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn done(status: i32) -> io::Result<()> {
    if status < 0 { Err(last(status)) } else { Ok(()) }
}

/// libbpf returns the negative error itself or -1 with errno.
fn last(status: i32) -> io::Error {
    match -status {
        1 => io::Error::last_os_error(),
        code => io::Error::from_raw_os_error(code),
    }
}
