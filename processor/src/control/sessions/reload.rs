//! Sessions under another policy: everything that can fail is done first, on any thread; then the engine is told at once.
//!
//! Who is the same peer and what is the same channel goes on without a handshake. What no rule seals any more, and whoever is
//! no peer any more, has no session from then on.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;

use guestseal_rules::model::Policy;

use crate::control::config::HostConfig;
use crate::keys::derive::Channel;
use crate::keys::handshake::directory::Directory;
use crate::keys::identity::{Identity, PublicKey};
use crate::keys::store::KeyStore;
use crate::sa::table::SaTable;

use super::config::KeysFrom;
use super::scope::Scope;
use super::{Sessions, SessionsError, clocks, listen, say_missing};

/// What sessions are now, for who plans what they are to be.
#[derive(Clone, Debug)]
pub struct Basis {
    scope: Scope,
    own: PublicKey,
    /// Where handshakes are received.
    locals: Vec<IpAddr>,
}

/// What sessions are to be.
#[derive(Debug)]
pub struct Plan {
    scope: Scope,
    directory: Directory,
    channels: Vec<Option<Channel>>,
    /// For addresses that handshakes were not received at before.
    sockets: Vec<UdpSocket>,
    /// `None` if they come from a manager: what it gave last.
    store: Option<KeyStore>,
}

impl Basis {
    /// Plans the sessions of a configuration that comes after.
    ///
    /// # Errors
    /// See [`SessionsError`].
    pub fn plan(&self, config: &HostConfig) -> Result<Option<Plan>, SessionsError> {
        let Some(wanted) = &config.sessions else {
            return Ok(None);
        };
        let policy = &config.policy;
        let scope = self.scope.after(policy, config.host)?;
        let directory = Directory::new(scope.engine_peers(policy, wanted.port)?, self.own)?;
        let mut locals: Vec<IpAddr> = scope.peers().map(|peer| peer.local).collect();
        locals.sort_unstable();
        locals.dedup();
        let new = locals.into_iter().filter(|local| !self.locals.contains(local));
        Ok(Some(Plan {
            directory,
            channels: scope.engine_channels(policy),
            sockets: new
                .map(|local| listen(SocketAddr::new(local, wanted.port)))
                .collect::<Result<Vec<_>, _>>()?,
            store: match &wanted.keys {
                KeysFrom::Files(source) => Some(KeyStore::load(source)?),
                KeysFrom::Manager(_) => None,
            },
            scope,
        }))
    }
}

/// Whether a host can have sessions under this policy, before it has any. What else they need, its own identity among it, is for
/// [`Sessions::open`] to say.
///
/// # Errors
/// See [`SessionsError`].
pub fn check_scope(config: &HostConfig) -> Result<(), SessionsError> {
    let Some(wanted) = &config.sessions else {
        return Ok(());
    };
    let scope = Scope::new(&config.policy, config.host)?;
    let peers = scope.engine_peers(&config.policy, wanted.port)?;
    if let Ok(identity) = Identity::read(&wanted.identity) {
        Directory::new(peers, identity.public())?;
    }
    Ok(())
}

impl Sessions {
    /// What is now, to plan from.
    #[must_use]
    pub fn basis(&self) -> Basis {
        let local = |socket: &UdpSocket| Some(socket.local_addr().ok()?.ip());
        Basis {
            scope: self.scope.clone(),
            own: self.own,
            locals: self.sockets.iter().filter_map(local).collect(),
        }
    }

    /// Becomes what was planned from [`Self::basis`]. `sas` becomes the table that is to be published with the policy.
    pub fn adopt(&mut self, plan: Plan, policy: &Arc<Policy>, sas: &mut Arc<SaTable>) {
        self.policy = Arc::clone(policy);
        self.scope = plan.scope;
        self.sockets.extend(plan.sockets);
        let now = clocks();
        let store = plan.store.or_else(|| self.keys.held()).unwrap_or_default();
        self.engine.set_scope(plan.directory, plan.channels, &store, now);
        say_missing(&self.policy, &self.scope, &store);
        self.hold(&store);
        let peers = self.scope.peers().map(|peer| peer.host);
        *sas = self.installer.set_session_peers(peers);
        // Whether their files have changed, too.
        self.follow_keys();
    }
}
