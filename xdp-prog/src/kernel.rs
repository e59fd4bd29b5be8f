//! The calls into libbpf that libbpf-rs has no safe form of: XDP links with a mode, and test runs.
//! Takes and gives descriptors that std owns; an error is the kernel's errno.
//! Keeps no state and no pointer beyond a call.
#![allow(
    unsafe_code,
    reason = "libbpf-rs 0.25 attaches XDP without flags, and tests programs only through a skeleton that outlives them"
)]

use std::ffi::{CString, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libbpf_rs::libbpf_sys;

use crate::XdpMode;

/// What a link says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkState {
    /// The program it runs now.
    pub(crate) program_id: u32,
    /// The interface it runs at; 0 once that is gone.
    pub(crate) ifindex: u32,
}

/// What an XDP program decides of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The program failed.
    Aborted,
    /// The frame ends here.
    Drop,
    /// The frame goes on to the host's stack.
    Pass,
    /// The frame goes back out of the interface.
    Transmit,
    /// The frame goes to a socket.
    Redirect,
}

/// What came of running a program over one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The program's decision.
    pub verdict: Verdict,
    /// The metadata it put before the frame.
    pub metadata: Vec<u8>,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// Attaches a program to an interface of the calling thread's network namespace, for as long as the link lives.
pub(crate) fn create_link(program: BorrowedFd<'_>, ifindex: u32, mode: XdpMode) -> io::Result<OwnedFd> {
    let mut options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    options.flags = match mode {
        XdpMode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
        XdpMode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
    };
    // SAFETY: the descriptor is open for the call, and `options` is a whole structure that says its size.
    let answer = unsafe {
        libbpf_sys::bpf_link_create(
            program.as_raw_fd(),
            ifindex as c_int,
            libbpf_sys::BPF_XDP,
            &options,
        )
    };
    descriptor(answer)
}

/// Puts another program in place of the link's, between two frames.
pub(crate) fn replace_program(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open for the call; no options are given.
    done(unsafe { libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) })
}

/// Gives the link a name in a bpf file system, which keeps it when its descriptors are closed.
pub(crate) fn pin_link(link: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the descriptor is open and the path ends in NUL, both for the call.
    done(unsafe { libbpf_sys::bpf_obj_pin(link.as_raw_fd(), path.as_ptr()) })
}

/// Opens a pinned link.
pub(crate) fn open_link(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends in NUL and lives for the call.
    descriptor(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })
}

/// Where a link runs, and what.
pub(crate) fn link_state(link: BorrowedFd<'_>) -> io::Result<LinkState> {
    let mut info = MaybeUninit::<libbpf_sys::bpf_link_info>::zeroed();
    let mut length = size_of::<libbpf_sys::bpf_link_info>() as u32;
    // SAFETY: the kernel writes at most `length` bytes, which is what `info` has.
    done(unsafe { libbpf_sys::bpf_link_get_info_by_fd(link.as_raw_fd(), info.as_mut_ptr(), &mut length) })?;
    // SAFETY: zeroed before the call, and every bit pattern is a value of this structure of integers.
    let info = unsafe { info.assume_init() };
    if info.type_ != libbpf_sys::BPF_LINK_TYPE_XDP {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the pinned link is not an XDP link",
        ));
    }
    // SAFETY: the type says that the kernel filled this member; it is one integer.
    let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok(LinkState {
        program_id: info.prog_id,
        ifindex,
    })
}

/// Runs a program once over a frame that came by receive queue 0 of the namespace's loopback interface.
pub(crate) fn try_program(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<Trial> {
    // Where packet and metadata are, relative to one another, is only in the context.
    let mut input = context(0, frame.len());
    let mut output = context(0, 0);
    let mut data = vec![0_u8; frame.len() + 256];
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        repeat: 1,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        data_out: data.as_mut_ptr().cast(),
        data_size_out: data.len() as u32,
        ctx_in: (&raw mut input).cast(),
        ctx_size_in: size_of_val(&input) as u32,
        ctx_out: (&raw mut output).cast(),
        ctx_size_out: size_of_val(&output) as u32,
        ..Default::default()
    };
    // SAFETY: every pointer is to a live buffer of the size given beside it.
    done(unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) })?;
    data.truncate(options.data_size_out as usize);
    let frame = data.split_off((output.data.saturating_sub(output.data_meta) as usize).min(data.len()));
    let verdict = match options.retval {
        libbpf_sys::XDP_DROP => Verdict::Drop,
        libbpf_sys::XDP_PASS => Verdict::Pass,
        libbpf_sys::XDP_TX => Verdict::Transmit,
        libbpf_sys::XDP_REDIRECT => Verdict::Redirect,
        _ => Verdict::Aborted,
    };
    Ok(Trial {
        verdict,
        metadata: data,
        frame,
    })
}

/// Runs a program over `count` frames that are real ones, and does with them what it says. Returns early, without an error,
/// if a signal comes. `frame` is what they are before the program has changed them; `batch` of them go out at once.
pub(crate) fn run_live(program: BorrowedFd<'_>, frame: &[u8], count: u32, batch: u32) -> io::Result<()> {
    let mut options = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        repeat: count as c_int,
        flags: libbpf_sys::BPF_F_TEST_XDP_LIVE_FRAMES,
        batch_size: batch,
        ..Default::default()
    };
    // SAFETY: `data_in` is a live buffer of the size given beside it, and nothing is given out.
    match done(unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut options) }) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}

fn context(start: usize, end: usize) -> libbpf_sys::xdp_md {
    libbpf_sys::xdp_md {
        data_meta: start as u32,
        data: start as u32,
        data_end: end as u32,
        ..Default::default()
    }
}

fn done(answer: c_int) -> io::Result<()> {
    if answer < 0 {
        Err(io::Error::from_raw_os_error(-answer))
    } else {
        Ok(())
    }
}

fn descriptor(answer: c_int) -> io::Result<OwnedFd> {
    done(answer)?;
    // SAFETY: libbpf returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(answer) })
}
