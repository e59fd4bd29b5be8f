//! A core file has no key: a process that has read one ends by SIGABRT with core files allowed, and what it leaves is searched.
//!
//! `guestseal run` leaves no core file at all; this is about the memory of secrets itself, whoever has them. Where the kernel
//! writes core files somewhere else, the test counts as ignored.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use guestseal::keys::identity::Identity;
use guestseal::keys::locked::{Census, census};
use guestseal::keys::secret::Secret;
use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Says to the child where its files are.
const CHILD: &str = "GUESTSEAL_CORE_FILE_CHILD";

fn main() {
    if let Some(directory) = std::env::var_os(CHILD) {
        child(Path::new(&directory));
    }
    let missing = missing();
    if let Some(why) = &missing {
        eprintln!("ignored: {why}");
    }
    let trial = Trial::test("a_core_file_has_no_key", || {
        no_key().map_err(|error| Failed::from(error.to_string()))
    });
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(missing.is_some())]).exit();
}

/// Why no core file can be had here.
fn missing() -> Option<String> {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let pattern = pattern.trim();
    if pattern.is_empty() || pattern.starts_with('|') || pattern.contains('/') {
        return Some(format!(
            "core files do not go to the working directory (core_pattern {pattern:?})"
        ));
    }
    let limit = getrlimit(Resource::Core).maximum;
    (limit == Some(0)).then(|| "the hard limit of core files is 0".to_owned())
}

/// Reads a key and an identity, has something in ordinary memory beside them, and ends.
fn child(directory: &Path) -> ! {
    let maximum = getrlimit(Resource::Core).maximum;
    let everything = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Core, everything).expect("a limit up to the hard one");
    let key = Secret::read(&directory.join("key")).expect("the key");
    let identity = Identity::read(&directory.join("identity")).expect("the identity");
    let marker = std::fs::read(directory.join("marker")).expect("the marker");
    let expected = Census {
        locked: 2,
        unlocked: 0,
        all_memory: false,
    };
    assert_eq!(census(), expected, "secrets that could not be locked");
    // What passed through registers and the stack is what later work leaves there.
    let public = identity.public().to_string();
    let text = format!("{public} {}", marker.len()).repeat(1000);
    std::fs::write(directory.join("said"), text).expect("a place to write");
    std::hint::black_box((&key, &identity, &marker));
    std::process::abort();
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("random bytes");
    bytes
}

fn no_key() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let (key, identity, marker) = (random(), random(), random());
    for (name, secret) in [("key", key), ("identity", identity)] {
        let path = directory.path().join(name);
        let text: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    }
    std::fs::write(directory.path().join("marker"), marker)?;
    let status = Command::new(std::env::current_exe()?)
        .env(CHILD, directory.path())
        .current_dir(directory.path())
        .status()?;
    if status.signal() != Some(rustix::process::Signal::ABORT.as_raw()) || !status.core_dumped() {
        return Err(format!("the child left no core file: {status}").into());
    }
    let core = std::fs::read(core_in(directory.path())?)?;
    let has = |bytes: &[u8]| core.windows(bytes.len()).any(|window| window == bytes);
    if !has(&marker) {
        return Err("what is in ordinary memory is not in the core file: it shows nothing".into());
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for (name, secret) in [("key", key), ("identity", identity)] {
        // Halves, too: registers are shorter than a key.
        for half in secret.chunks(16) {
            if has(half) || has(hex(half).as_bytes()) {
                return Err(format!("half of the {name} is in the core file").into());
            }
        }
    }
    Ok(())
}

fn core_in(directory: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.contains("core") {
            return Ok(path);
        }
    }
    Err("no core file in the working directory".into())
}
