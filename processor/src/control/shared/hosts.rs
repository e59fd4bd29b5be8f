//! Which hosts are alive: each writes a key under a lease, which etcd takes away when the host is not heard any more.
//!
//! What a host says of itself there is shown, never used: who may write to etcd can hand nobody a peer's key. Where it is not what
//! the policy's files say, that is shown, too.

use std::collections::BTreeMap;
use std::net::IpAddr;

use guestseal_rules::model::{HostIndex, Policy};
use serde::{Deserialize, Serialize};

use crate::control::config::HostConfig;

/// How long a host that is not heard counts as alive, in seconds.
pub(super) const LEASE: i64 = 10;
/// Hosts that are remembered, and bytes of what one says.
const MOST: usize = 65_536;
const LONGEST: usize = 4096;

/// What a host says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Told {
    version: String,
    addresses: Vec<IpAddr>,
    public_keys: Vec<String>,
}

/// This host, and what it says of itself.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) name: String,
    pub(super) told: Told,
}

/// A host, as status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostSeen {
    /// Whether etcd hears it.
    pub alive: bool,
    /// Guestseal's version there.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// What it says of itself otherwise than the policy here does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<&'static str>,
}

impl Own {
    pub(super) fn of(config: &HostConfig) -> Self {
        Self {
            name: config.host_name().to_owned(),
            told: Told::by(&config.policy, config.host),
        }
    }
}

impl Told {
    fn by(policy: &Policy, host: HostIndex) -> Self {
        let host = &policy.hosts[host.index()];
        let hex = |key: &[u8; 32]| key.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            addresses: host.addresses.clone(),
            public_keys: host.public_keys.iter().map(hex).collect(),
        }
    }

    /// Takes what a key says into what is known of hosts, or nothing any more; whether it could be read.
    pub(super) fn take(hosts: &mut BTreeMap<String, Self>, name: &str, value: Option<&[u8]>) -> bool {
        let Some(value) = value else {
            hosts.remove(name);
            return true;
        };
        let told = Some(value).filter(|value| value.len() <= LONGEST && name.len() <= LONGEST);
        let told: Option<Self> = told.and_then(|value| serde_json::from_slice(value).ok());
        match told.filter(|_| hosts.len() < MOST || hosts.contains_key(name)) {
            Some(told) => {
                hosts.insert(name.to_owned(), told);
                true
            }
            None => false,
        }
    }
}

/// The hosts of the policy but for this one, and those that etcd knows besides.
pub(super) fn seen(
    told: &BTreeMap<String, Told>,
    policy: &Policy,
    own: HostIndex,
) -> BTreeMap<String, HostSeen> {
    let silent = HostSeen {
        alive: false,
        version: String::new(),
        differs: None,
    };
    let declared = (0u16..).map(HostIndex).zip(&policy.hosts);
    let mut seen: BTreeMap<String, HostSeen> = declared
        .filter(|(number, _)| *number != own)
        .map(|(_, host)| (host.name.clone(), silent.clone()))
        .collect();
    for (name, told) in told {
        let differs = match policy.host(name) {
            Some(host) if host == own => continue,
            None => Some("no host of the policy"),
            Some(host) => {
                let expected = Told::by(policy, host);
                if told.public_keys != expected.public_keys {
                    Some("another public key")
                } else if told.addresses != expected.addresses {
                    Some("other addresses")
                } else {
                    None
                }
            }
        };
        let host = HostSeen {
            alive: true,
            version: told.version.clone(),
            differs,
        };
        seen.insert(name.clone(), host);
    }
    seen
}

#[cfg(test)]
mod tests {
    use guestseal_rules::load::{Source, load_policy};

    use super::*;

    #[test]
    fn what_a_host_says_of_itself_is_held_against_the_policy() {
        let text = include_str!("../../../../rules/examples/demo/policy.yaml").to_owned();
        let name = "policy.yaml".into();
        let policy = load_policy(&[Source { name, text }]).unwrap();
        let (h1, h2) = (policy.host("h1").unwrap(), policy.host("h2").unwrap());
        let mut hosts = BTreeMap::new();
        let state = |hosts: &BTreeMap<_, _>| seen(hosts, &policy, h1)["h2"].clone();
        assert!(!state(&hosts).alive);
        let own = Told::by(&policy, h2);
        let value = serde_json::to_vec(&own).unwrap();
        assert!(Told::take(&mut hosts, "h2", Some(&value)));
        assert!(state(&hosts).alive && state(&hosts).differs.is_none());
        let mut foreign = own;
        foreign.public_keys = vec!["00".repeat(32)];
        let value = serde_json::to_vec(&foreign).unwrap();
        assert!(Told::take(&mut hosts, "h2", Some(&value)));
        assert_eq!(state(&hosts).differs, Some("another public key"));
        for bad in [&b"{}"[..], b"\xff", &[b' '; LONGEST + 1]] {
            assert!(!Told::take(&mut hosts, "h3", Some(bad)));
        }
        assert!(Told::take(&mut hosts, "h2", None) && !state(&hosts).alive);
    }
}
