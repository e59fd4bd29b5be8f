//! Stand-in until the model lands.
#![allow(missing_docs)]
use std::collections::BTreeMap;
use std::net::IpAddr;
macro_rules! ix { ($($n:ident $t:ty),*) => { $(#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)] pub struct $n(pub $t);)* } }
ix!(NetworkIndex u16, GuestIndex u32, KeyIndex u16, RuleIndex u32, HostIndex u16, PortIndex u32);
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Suite { Aes256Gcm, Aes128Gcm }
impl Suite { pub fn key_length(self) -> usize { match self { Suite::Aes256Gcm => 32, Suite::Aes128Gcm => 16 } } }
impl std::fmt::Display for Suite { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("suite") } }
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Cidr { pub address: IpAddr, pub prefix: u8 }
impl Cidr { pub fn contains(&self, _a: IpAddr) -> bool { true } }
#[derive(Debug)]
pub struct Policy { pub hosts: Vec<Host>, pub networks: Vec<Network>, pub guests: Vec<Guest>, pub ports: Vec<GuestPort>, pub keys: Vec<Key> }
#[derive(Debug)]
pub struct Host { pub name: String, pub addresses: Vec<IpAddr> }
#[derive(Debug)]
pub struct Network { pub name: String }
#[derive(Debug)]
pub struct Guest { pub id: String, pub host: HostIndex, pub labels: BTreeMap<String, String>, pub ports: Vec<PortIndex> }
#[derive(Debug)]
pub struct GuestPort { pub guest: GuestIndex, pub interface: String, pub network: NetworkIndex, pub mac: [u8; 6], pub addresses: Vec<IpAddr>, pub router: bool }
#[derive(Debug)]
pub struct Key { pub id: String, pub suite: Suite }
