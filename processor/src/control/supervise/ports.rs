//! Guest ports that get an interface, or lose it, while guestseal runs: virtual machines start and stop.

use std::sync::Arc;

use axum::http::StatusCode;

use crate::control::added::{Added, AddedGuest, Change};
use crate::control::api::problem::Problem;
use crate::control::assemble::DataPlane;
use crate::control::bindings::{Binding, boot, ports_of};
use crate::control::guests::now;
use crate::control::link;
use crate::wire::ethernet::MacAddress;

use super::Control;

impl Control {
    /// A guest's card is behind an interface: its ports go by that one from now on. Nothing changes if they do already.
    ///
    /// # Errors
    /// If there is no such guest, card or interface here, or if the interface is another guest's.
    pub(super) fn add_port(
        &mut self,
        by: &str,
        guest: &str,
        mac: MacAddress,
        interface: &str,
        plane: Option<&mut DataPlane>,
    ) -> Result<(), Problem> {
        let config = Arc::clone(&self.plan.config);
        let policy = &config.policy;
        let index = self.guests.containers().guest(guest);
        let index = index.ok_or_else(|| Problem::unknown_guest(guest))?;
        let host = config.host_of(index);
        if host != config.host {
            let host = &policy.hosts[host.index()].name;
            let message = format!("guest {guest} is on host {host}: expected guestseal ctl move first");
            return Err(Problem::new(StatusCode::CONFLICT, "OnAnotherHost", message));
        }
        if ports_of(policy, index, mac).next().is_none() {
            let message = format!("guest {guest} has no port with the MAC {mac} in the policy");
            return Err(Problem::new(StatusCode::NOT_FOUND, "UnknownPort", message));
        }
        let number = link::index_of(interface).ok_or_else(|| {
            let message = format!("no interface {interface}: see ip link show");
            Problem::new(StatusCode::NOT_FOUND, "UnknownInterface", message)
        })?;
        // One that it was bound to is another's by now.
        let mut declared = config
            .local_ports()
            .filter(|(_, used)| used.name == interface && used.index.is_none());
        let is_taken = declared.any(|(port, _)| policy.ports[port.index()].guest != index);
        if is_taken || interface == config.uplink {
            let message = format!("interface {interface} is the uplink, or another guest's by the policy");
            return Err(Problem::new(StatusCode::CONFLICT, "InterfaceTaken", message));
        }
        let binding = Binding {
            guest: policy.guests[index.index()].uuid.clone(),
            mac: mac.to_string(),
            interface: interface.to_owned(),
            index: number,
            boot: boot().to_owned(),
        };
        if self.guests.bindings().to(interface) == Some(&binding) {
            return Ok(());
        }
        tracing::info!("guest {guest}: its card {mac} is behind interface {interface}, says {by}");
        self.guests.bind(now(), by, binding);
        self.serve_bound(plane);
        Ok(())
    }

    /// A guest that is to be added, on this host if no other is said.
    pub(super) fn with_host(&self, guest: AddedGuest) -> AddedGuest {
        match guest.host.is_empty() {
            true => AddedGuest {
                host: self.plan.config.host_name().to_owned(),
                ..guest
            },
            false => guest,
        }
    }

    /// How a port is removed that was added with its guest, which no file has; that of a host, or of this one.
    pub(super) fn added_port(&self, host: Option<String>, interface: &str) -> Option<Change> {
        let config = &self.plan.config;
        if host.is_none() && self.guests.bindings().to(interface).is_some() {
            return None;
        }
        let host = host.unwrap_or_else(|| config.host_name().to_owned());
        let interface = interface.to_owned();
        Added::parse(&config.origin.added)
            .has(&host, &interface)
            .then_some(Change::Remove { host, interface })
    }

    /// An interface that was added is no guest port any more.
    ///
    /// # Errors
    /// If it was not added.
    pub(super) fn remove_port(
        &mut self,
        by: &str,
        interface: &str,
        plane: Option<&mut DataPlane>,
    ) -> Result<(), Problem> {
        let Some(binding) = self.guests.bindings().to(interface).cloned() else {
            let message = format!(
                "no port was added for interface {interface}: those of the policy's files go with them"
            );
            return Err(Problem::new(StatusCode::NOT_FOUND, "UnknownPort", message));
        };
        self.unbind(by, &binding);
        self.serve_bound(plane);
        Ok(())
    }

    /// Forgets interfaces that were added and are gone.
    pub(super) fn follow_added_ports(&mut self, plane: Option<&mut DataPlane>) {
        let gone = self.guests.bindings().gone(link::index_of);
        if gone.is_empty() {
            return;
        }
        gone.iter().for_each(|binding| self.unbind("guestseal", binding));
        self.serve_bound(plane);
    }

    fn unbind(&mut self, by: &str, binding: &Binding) {
        tracing::info!(
            "interface {} is no guest port any more, says {by}",
            binding.interface
        );
        self.guests.unbind(now(), by, binding.clone());
    }

    fn serve_bound(&mut self, plane: Option<&mut DataPlane>) {
        self.plan.config = self.guests.placed(&self.plan.config);
        if let Some(plane) = plane {
            plane.adopt(&self.plan);
        }
    }
}
