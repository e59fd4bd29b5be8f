//! NUMA: memory near the card and the workers.
//!
//! A frame goes from the card to a worker and back; on a machine with several memory nodes each step is dearer where they are
//! on different ones. So memory comes from the node of the uplink's card, which is where its workers belong, too.
//! Memory is given by a thread's policy when it is touched first, so that the policy is set before anything is made, and what is made
//! goes elsewhere only when the node is full. See set_mempolicy(2), and Documentation/admin-guide/mm/numa_memory_policy.rst of Linux.

#![allow(unsafe_code)]

use std::path::Path;

/// More nodes than any kernel is built for (`CONFIG_NODES_SHIFT` is 10 at most).
const NODES: usize = 1024;

/// A memory node, by the kernel's number.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct MemoryNode(usize);

impl MemoryNode {
    /// The node of an interface's card; `None` if it has no card, or the kernel does not know.
    #[must_use]
    pub fn of_interface(name: &str) -> Option<Self> {
        Self::of_card(&Path::new("/sys/class/net").join(name))
    }

    /// The node of a CPU; `None` if the kernel has no nodes.
    #[must_use]
    pub fn of_cpu(cpu: usize) -> Option<Self> {
        Self::of_cpu_in(&Path::new("/sys/devices/system/cpu").join(format!("cpu{cpu}")))
    }

    fn of_card(interface: &Path) -> Option<Self> {
        // Of a virtio card the device is one of its own below that of the PCI bus.
        let device = interface.join("device").canonicalize().ok()?;
        let text = device
            .ancestors()
            .find_map(|one| std::fs::read_to_string(one.join("numa_node")).ok())?;
        // -1 where the kernel does not know.
        Self::new(text.trim().parse().ok()?)
    }

    fn of_cpu_in(cpu: &Path) -> Option<Self> {
        let mut names = std::fs::read_dir(cpu).ok()?.filter_map(Result::ok);
        names.find_map(|entry| {
            let name = entry.file_name();
            Self::new(name.to_str()?.strip_prefix("node")?.parse().ok()?)
        })
    }

    fn new(number: usize) -> Option<Self> {
        (number < NODES).then_some(Self(number))
    }

    /// Lets this thread, and those that it starts from now on, take memory of this node first.
    ///
    /// # Errors
    /// What the kernel says: it has no nodes, or does not let this process choose.
    pub fn prefer(self) -> std::io::Result<()> {
        let mut nodes = [0u64; NODES / 64];
        nodes[self.0 / 64] |= 1 << (self.0 % 64);
        // SAFETY: the kernel reads the mask, one bit less than the number it is given, and keeps nothing of it.
        let status = unsafe {
            libc::syscall(
                libc::SYS_set_mempolicy,
                libc::MPOL_PREFERRED,
                nodes.as_ptr(),
                NODES + 1,
            )
        };
        if status != 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    }
}

impl std::fmt::Display for MemoryNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_has_the_node_that_the_kernel_says() {
        let directory = tempfile::tempdir().unwrap();
        let node = || MemoryNode::of_card(directory.path());
        assert_eq!(node(), None);
        // As of a virtio card; nearer than its bus's is the device's own.
        let bus = directory.path().join("bus");
        let device = bus.join("virtio0");
        std::fs::create_dir_all(&device).unwrap();
        std::os::unix::fs::symlink(&device, directory.path().join("device")).unwrap();
        assert_eq!(node(), None);
        std::fs::write(bus.join("numa_node"), "2\n").unwrap();
        assert_eq!(node(), Some(MemoryNode(2)));
        for (text, expected) in [
            ("1\n", Some(MemoryNode(1))),
            ("0\n", Some(MemoryNode(0))),
            ("-1\n", None),
            ("1024\n", None),
            ("", None),
        ] {
            std::fs::write(device.join("numa_node"), text).unwrap();
            assert_eq!(node(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_cpu_has_the_node_that_stands_in_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let node = || MemoryNode::of_cpu_in(directory.path());
        std::fs::create_dir(directory.path().join("topology")).unwrap();
        assert_eq!(node(), None);
        std::fs::create_dir(directory.path().join("node3")).unwrap();
        assert_eq!(node(), Some(MemoryNode(3)));
    }

    /// In a thread of its own, whose policy nobody else has.
    #[test]
    fn memory_of_the_node_is_preferred_also_by_threads_started_then() {
        let Some(node) = MemoryNode::of_cpu(0) else {
            return;
        };
        let policies = || {
            let maps = std::fs::read_to_string("/proc/thread-self/numa_maps").unwrap();
            let policy_of = |line: &str| line.split(' ').nth(1).unwrap().to_owned();
            maps.lines().map(policy_of).collect::<Vec<_>>()
        };
        let preferred = format!("prefer:{node}");
        let all_prefer = move |policies: &[String]| policies.iter().all(|policy| *policy == preferred);
        std::thread::spawn(move || {
            assert!(!all_prefer(&policies()));
            if let Err(error) = node.prefer() {
                // As in containers that may not.
                assert_eq!(error.raw_os_error(), Some(libc::EPERM));
                return;
            }
            assert!(all_prefer(&policies()));
            let inherited = std::thread::spawn(policies).join().unwrap();
            assert!(all_prefer(&inherited));
        })
        .join()
        .unwrap();
    }
}
