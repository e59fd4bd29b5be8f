//! `guestseal check`: validates files offline.

use std::path::PathBuf;

use clap::Args;
use guestseal_rules::check::warnings;
use guestseal_rules::load::load_policy;
use guestseal_rules::model::Policy;

use crate::control::config::{ConfigError, HostConfig, is_host_file, read};
use crate::control::sessions::usage::used_up;

use super::Failure;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  guestseal check policy.yaml rules-of-tenants.yaml\n  guestseal check host.yaml\n\n\
                        Policy files are taken together, in this order; a host's file with the policy files that it names. \
                        Exits with 1 if there is a mistake, or, with --strict, a warning."
)]
pub(super) struct Check {
    /// Policy files, or hosts' configuration files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Warnings are mistakes
    #[arg(long)]
    strict: bool,
}

impl Check {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut policies = Vec::new();
        let mut warned = 0;
        for path in &self.files {
            let source = read(path)?;
            if is_host_file(&source) {
                let config = HostConfig::load_offline(path)?;
                let (sas, sources) = (config.sas.len(), config.sources.len());
                println!(
                    "{}: ok, {sas} security associations, {sources} sources, {}",
                    path.display(),
                    summary(&config.policy)
                );
                warned += warn(&config.policy);
                for key in used_up(&config.state_directory) {
                    println!("warning: key {key} is used up: give all hosts its next generation");
                    warned += 1;
                }
            } else {
                policies.push(source);
            }
        }
        if !policies.is_empty() {
            let policy = load_policy(&policies).map_err(ConfigError::from)?;
            let names: Vec<&str> = policies.iter().map(|source| source.name.as_str()).collect();
            println!("{}: ok, {}", names.join(", "), summary(&policy));
            warned += warn(&policy);
        }
        if self.strict && warned > 0 {
            Err(format!("{warned} warnings").into())
        } else {
            Ok(())
        }
    }
}

pub(super) fn summary(policy: &Policy) -> String {
    format!(
        "{} hosts, {} networks, {} guests, {} keys, {} rules",
        policy.hosts.len(),
        policy.networks.len(),
        policy.guests.len(),
        policy.keys.len(),
        policy.rules.len()
    )
}

pub(super) fn warn(policy: &Policy) -> usize {
    let all = warnings(policy);
    all.iter().for_each(|warning| println!("warning: {warning}"));
    all.len()
}
