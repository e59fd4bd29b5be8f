//! SIGKILL under load: nothing of a guest leaves in plaintext, a restart needs no hand, no nonce is used again. And what a loss
//! of power would leave: what was acknowledged has been synced.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use guestseal_perf::capture::{esp_of, kinds_with};
use guestseal_perf::deployment::program;
use guestseal_perf::process::{run, wait_for};

use crate::net::{Net, PATIENCE, Result, ensure, wait_for_spi};

const MARKER: &str = "killed-marker";

pub(crate) fn under_load() -> Result<()> {
    let mut net = Net::running("killed", 1)?;
    net.pings("blue-1", "10.1.0.2")?;
    // The worst host: its kernel bridges the guest's port to the uplink, so that whatever XDP lets through leaves.
    let host = &net.topology.hosts[0];
    host.ip("link add br0 type bridge mcast_snooping 0")?;
    for line in [
        "link set gp-blue-1 master br0",
        "link set uplink master br0",
        "link set br0 up",
    ] {
        host.ip(line)?;
    }
    let capture = net.capture()?;
    let spi = net.spi("blue-any-h1-h2");
    let _flood = net.flood(MARKER, 10_000)?;
    for _ in 0..3 {
        wait_for_spi(&capture, spi, 2000)?;
        net.host(0).process.kill();
        // The guest goes on sending, and nobody is there.
        net.wait_for_sent("blue-1", 3000)?;
        net.start(0, &[])?;
    }
    wait_for_spi(&capture, spi, 2000)?;
    net.stop(0)?;
    // After the orderly end the port is open: the same bridge now shows what would have leaked before.
    let mut follower = capture.follow()?;
    wait_for("the guest's plaintext after the orderly end", PATIENCE, || {
        Ok((!kinds_with(&follower.more()?, MARKER).is_empty()).then_some(()))
    })?;
    let frames = capture.stop()?;
    let readable = |frame: &Vec<u8>| kinds_with(std::slice::from_ref(frame), MARKER).len() == 1;
    let first_readable = frames.iter().position(readable);
    let is_sealed = |frame: &Vec<u8>| esp_of(frame).is_some_and(|(found, _)| found == spi);
    let last_sealed = frames.iter().rposition(is_sealed);
    ensure(first_readable > last_sealed, || {
        format!("plaintext before the orderly end: frame {first_readable:?}, last sealed {last_sealed:?}")
    })?;
    let sealed: Vec<(u32, u32)> = frames.iter().filter_map(|frame| esp_of(frame)).collect();
    let different: HashSet<&(u32, u32)> = sealed.iter().collect();
    ensure(sealed.len() > 8000, || {
        format!("only {} sealed packets were captured", sealed.len())
    })?;
    let twice = sealed.len() - different.len();
    ensure(twice == 0, || {
        format!("{twice} of {} (SPI, sequence) pairs came twice", sealed.len())
    })
}

/// Stands before libc: notes the inode and the length of each file that was synced, as it was when that began.
const SYNCS: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static int synced(const char *name, int fd) {
    struct stat file;
    int known = fstat(fd, &file);
    int failed = ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
    FILE *log = failed || known ? NULL : fopen(getenv("GUESTSEAL_TEST_SYNCS"), "a");
    if (log) {
        fprintf(log, "%lu %ld\n", (unsigned long)file.st_ino, (long)file.st_size);
        fclose(log);
    }
    return failed;
}

int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }
"#;

pub(crate) fn acknowledged_is_synced() -> Result<()> {
    let mut net = Net::new("synced", 1)?;
    let file = |name: &str| net.deployment.directory().join(name);
    let (source, library, syncs) = (file("syncs.c"), file("syncs.so"), file("syncs"));
    std::fs::write(&source, SYNCS)?;
    let mut compile = Command::new("cc");
    run(compile
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source))?;
    let journal = file("state-h1/journal");
    net.write_host(0, 1)?;
    let mut command = net.topology.hosts[0].command("env");
    command.arg(format!("LD_PRELOAD={}", library.display()));
    command.arg(format!("GUESTSEAL_TEST_SYNCS={}", syncs.display()));
    command.arg(program());
    net.hosts[0] = Some(net.deployment.start_by(0, command, &[])?);
    for number in 0..20 {
        let name = format!("malware.{number}");
        let tag = ["--service", "av", "--name", &name];
        let words = [&["tag", "set", "blue-1"], &tag[..], &["--severity", "10"]].concat();
        net.ctl(0, &words)?;
        // Its length first: what is not synced yet was not acknowledged.
        let mut lengths = Vec::new();
        for entry in std::fs::read_dir(&journal)? {
            let entry = entry?.metadata()?;
            lengths.push((entry.ino(), entry.len()));
        }
        ensure(!lengths.is_empty(), || "there is no journal".into())?;
        let noted = std::fs::read_to_string(&syncs)?;
        let mut synced: HashMap<u64, u64> = HashMap::new();
        for line in noted.lines() {
            let (file, length) = line.split_once(' ').ok_or("half a line")?;
            synced.insert(file.parse()?, length.parse()?);
        }
        for (file, length) in lengths {
            ensure(synced.get(&file) == Some(&length), || {
                format!(
                    "the journal has {length} bytes, synced were {:?}",
                    synced.get(&file)
                )
            })?;
        }
    }
    net.stop(0)?;
    Ok(())
}
