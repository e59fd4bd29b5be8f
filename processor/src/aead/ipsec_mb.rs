//! The engine of intel-ipsec-mb, loaded at run time: the program starts without it.
//!
//! Reads and writes the jobs' buffers, one job a call of the library's direct AES-GCM functions (its job manager and its
//! bursts do the same work behind a queue). Never allocates after a key was expanded; keys are wiped when dropped.
//! intel-ipsec-mb.h of version 1.3: only its layouts are known here, so that any other version is refused.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_uint, c_void};

use guestseal_rules::model::Suite;
use libloading::{Library, Symbol};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::engine::{
    Buffers, Engine, Expanded, ExpandedKey, KeyLength, OpenJob, SealJob, TAG, another_engine, equal,
};

/// The library, by the name that its binary interface has.
const LIBRARY: &str = "libIPSec_MB.so.1";
/// Major and minor number of the version whose layouts stand below.
const VERSION: (u32, u32) = (1, 3);

/// Why the engine is not there.
#[derive(Debug, thiserror::Error)]
pub enum IpsecMbError {
    /// No library.
    #[error("{LIBRARY} cannot be loaded (Debian package libipsec-mb1)")]
    NoLibrary(#[source] libloading::Error),
    /// A library of other layouts.
    #[error("{LIBRARY} is version {major}.{minor}: expected {}.{}", VERSION.0, VERSION.1)]
    Version {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A manager cannot be had.
    #[error("{LIBRARY} gave no manager (its error number is {0})")]
    NoManager(i32),
    /// The library would compute AES by tables, whose time depends on the key.
    #[error("{LIBRARY} has no AES and PCLMULQDQ instructions to work with on this CPU")]
    NoInstructions,
    /// The library's own test.
    #[error("{LIBRARY} has not passed its own self-test")]
    SelfTest,
}

/// `struct gcm_key_data`: the library aligns it to 64 bytes.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
pub(super) struct KeyData([u8; 1008]);

/// `struct gcm_context_data`: scratch of one call.
#[derive(Zeroize, ZeroizeOnDrop)]
#[repr(C, align(64))]
struct Scratch([u8; 88]);

/// `aes_gcm_enc_dec_t`: key, scratch, out, in, length, IV of 12 bytes, additional, its length, tag, its length.
type Cipher = unsafe extern "C" fn(
    *const KeyData,
    *mut Scratch,
    *mut u8,
    *const u8,
    u64,
    *const u8,
    *const u8,
    u64,
    *mut u8,
    u64,
);
/// `aes_gcm_pre_t`: key, key data.
type Expand = unsafe extern "C" fn(*const c_void, *mut KeyData);

/// The begin of `IMB_MGR`, as far as it is read here.
#[repr(C)]
struct Manager {
    flags: u64,
    features: u64,
    reserved: [u64; 5],
    used_arch: u32,
    error: c_int,
    /// From `get_next_job` to `aes128_cfb_one`.
    others: [usize; 24],
    gcm128_seal: Option<Cipher>,
    gcm192_seal: Option<Cipher>,
    gcm256_seal: Option<Cipher>,
    gcm128_open: Option<Cipher>,
    gcm192_open: Option<Cipher>,
    gcm256_open: Option<Cipher>,
    /// From `gcm128_init` to `gcm256_precomp`.
    stepwise: [usize; 18],
    gcm128_expand: Option<Expand>,
    gcm192_expand: Option<Expand>,
    gcm256_expand: Option<Expand>,
}

/// What `offsetof` and `sizeof` say about the header of version 1.3.
const _: () = {
    assert!(std::mem::offset_of!(Manager, features) == 8);
    assert!(std::mem::offset_of!(Manager, error) == 60);
    assert!(std::mem::offset_of!(Manager, gcm128_seal) == 256);
    assert!(std::mem::offset_of!(Manager, gcm256_open) == 296);
    assert!(std::mem::offset_of!(Manager, gcm256_expand) == 464);
};

const FEATURE_AESNI: u64 = 1 << 1;
const FEATURE_PCLMULQDQ: u64 = 1 << 2;
const FEATURE_AESNI_EMULATED: u64 = 1 << 19;
const FEATURE_SELF_TEST: u64 = 1 << 20;
const FEATURE_SELF_TEST_PASSED: u64 = 1 << 21;
/// Names of `IMB_ARCH`.
const ARCHITECTURES: [&str; 6] = ["none", "no AES-NI", "SSE", "AVX", "AVX2", "AVX-512"];

#[derive(Copy, Clone)]
struct Functions {
    expand: Expand,
    seal: Cipher,
    open: Cipher,
}

/// The library, loaded and found fit.
pub struct IpsecMb {
    aes_128: Functions,
    aes_256: Functions,
    about: String,
    /// What the functions are in: unloaded after they can be called no more.
    _library: Library,
}

impl std::fmt::Debug for IpsecMb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.about)
    }
}

impl IpsecMb {
    /// Loads the library.
    ///
    /// # Errors
    /// See [`IpsecMbError`].
    pub fn load() -> Result<Self, IpsecMbError> {
        // SAFETY: what runs when it is loaded is the compiler's own initialiser (version 1.3 of Debian), which does nothing.
        let library = unsafe { Library::new(LIBRARY) }.map_err(IpsecMbError::NoLibrary)?;
        // SAFETY: `unsigned imb_get_version(void)` in every version.
        let version = unsafe {
            let get: Symbol<'_, unsafe extern "C" fn() -> c_uint> = library
                .get(b"imb_get_version\0")
                .map_err(IpsecMbError::NoLibrary)?;
            get()
        };
        let (major, minor, patch) = (version >> 16, version >> 8 & 0xff, version & 0xff);
        if (major, minor) != VERSION {
            return Err(IpsecMbError::Version { major, minor });
        }
        // SAFETY: these are the functions of version 1.3, which it is; the manager is one that it made, read before it is
        // freed, up to a place that lies within it.
        let manager = unsafe {
            let allocate: Symbol<'_, unsafe extern "C" fn(u64) -> *mut Manager> =
                library.get(b"alloc_mb_mgr\0").map_err(IpsecMbError::NoLibrary)?;
            let initialise: Symbol<'_, unsafe extern "C" fn(*mut Manager, *mut c_int)> = library
                .get(b"init_mb_mgr_auto\0")
                .map_err(IpsecMbError::NoLibrary)?;
            let free: Symbol<'_, unsafe extern "C" fn(*mut Manager)> =
                library.get(b"free_mb_mgr\0").map_err(IpsecMbError::NoLibrary)?;
            let pointer = allocate(0);
            if pointer.is_null() {
                return Err(IpsecMbError::NoManager(0));
            }
            initialise(pointer, std::ptr::null_mut());
            let manager = pointer.read();
            free(pointer);
            manager
        };
        let has = |feature| manager.features & feature != 0;
        if !has(FEATURE_AESNI) || !has(FEATURE_PCLMULQDQ) || has(FEATURE_AESNI_EMULATED) {
            return Err(IpsecMbError::NoInstructions);
        }
        if has(FEATURE_SELF_TEST) && !has(FEATURE_SELF_TEST_PASSED) {
            return Err(IpsecMbError::SelfTest);
        }
        let functions = |expand: Option<Expand>, seal: Option<Cipher>, open: Option<Cipher>| {
            Some(Functions {
                expand: expand?,
                seal: seal?,
                open: open?,
            })
        };
        let (Some(aes_128), Some(aes_256), 0) = (
            functions(manager.gcm128_expand, manager.gcm128_seal, manager.gcm128_open),
            functions(manager.gcm256_expand, manager.gcm256_seal, manager.gcm256_open),
            manager.error,
        ) else {
            return Err(IpsecMbError::NoManager(manager.error));
        };
        let architecture = ARCHITECTURES
            .get(manager.used_arch as usize)
            .unwrap_or(&"unknown");
        Ok(Self {
            aes_128,
            aes_256,
            about: format!("ipsec-mb (libIPSec_MB {major}.{minor}.{patch}, {architecture})"),
            _library: library,
        })
    }

    fn functions<'a>(&self, key: &'a ExpandedKey) -> (Functions, &'a KeyData) {
        match &key.0 {
            Expanded::IpsecMb(Suite::Aes128Gcm, data) => (self.aes_128, data),
            Expanded::IpsecMb(Suite::Aes256Gcm, data) => (self.aes_256, data),
            _ => another_engine(),
        }
    }
}

impl Engine for IpsecMb {
    fn name(&self) -> &'static str {
        "ipsec-mb"
    }

    fn describe(&self) -> String {
        self.about.clone()
    }

    fn expand(&self, suite: Suite, key: &[u8]) -> Result<ExpandedKey, KeyLength> {
        if key.len() != suite.key_length() {
            return Err(KeyLength {
                suite,
                expected: suite.key_length(),
                found: key.len(),
            });
        }
        let mut data = Box::new(KeyData([0; 1008]));
        let functions = match suite {
            Suite::Aes128Gcm => self.aes_128,
            Suite::Aes256Gcm => self.aes_256,
        };
        // SAFETY: a key of the length that the function reads, and key data of the library's size and alignment.
        unsafe { (functions.expand)(key.as_ptr().cast(), &mut *data) };
        Ok(ExpandedKey(Expanded::IpsecMb(suite, data)))
    }

    fn seal(&self, jobs: &mut [SealJob<'_>]) {
        let mut scratch = Scratch([0; 88]);
        for job in jobs {
            let (functions, key) = self.functions(job.key);
            call(
                functions.seal,
                key,
                &mut scratch,
                &mut job.buffers,
                (job.nonce.as_bytes(), job.additional),
                job.tag,
            );
        }
    }

    /// The library decrypts in the pass that computes the tag: where that is wrong, the plaintext is wiped.
    fn open(&self, jobs: &mut [OpenJob<'_>]) {
        let mut scratch = Scratch([0; 88]);
        for job in jobs {
            let (functions, key) = self.functions(job.key);
            let mut tag = [0; TAG];
            call(
                functions.open,
                key,
                &mut scratch,
                &mut job.buffers,
                (&job.nonce, job.additional),
                &mut tag,
            );
            job.authentic = equal(&tag, job.tag);
            if !job.authentic {
                match &mut job.buffers {
                    Buffers::InPlace(bytes) => bytes.fill(0),
                    Buffers::Copy { destination, .. } => destination.fill(0),
                }
            }
            // The tag that would have been right is what a forger wants.
            tag.zeroize();
        }
    }
}

fn call(
    cipher: Cipher,
    key: &KeyData,
    scratch: &mut Scratch,
    buffers: &mut Buffers<'_>,
    (nonce, additional): (&[u8; 12], &[u8]),
    tag: &mut [u8; TAG],
) {
    let (source, destination, length) = match buffers {
        Buffers::InPlace(bytes) => (bytes.as_ptr(), bytes.as_mut_ptr(), bytes.len()),
        Buffers::Copy { source, destination } => {
            assert!(
                source.len() == destination.len(),
                "source and destination have the same length"
            );
            (source.as_ptr(), destination.as_mut_ptr(), source.len())
        }
    };
    // SAFETY: `cipher` is a function of the library that `self` keeps loaded; every pointer is borrowed here, for as many
    // bytes as are said, and the key data were filled by the library's function for the same suite.
    unsafe {
        cipher(
            key,
            scratch,
            destination,
            source,
            length as u64,
            nonce.as_ptr(),
            additional.as_ptr(),
            additional.len() as u64,
            tag.as_mut_ptr(),
            TAG as u64,
        );
    }
}
