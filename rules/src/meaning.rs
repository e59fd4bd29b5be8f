//! What the words of a rule mean, one packet against one rule, without short cuts.
//!
//! A rule `from A to B port P` also means the reply, from B port P to A; what opens a TCP connection is no reply.
//! [`World::first_match`] is the definition that the fast look-up of [`crate::classify`] is held to; [`crate::explain`] tells it.

use crate::classify::Verdict;
use crate::facts::{Facts, Party, Ports};
use crate::flows::Flows;
use crate::membership::Membership;
use crate::model::{NetworkIndex, Policy, Rule, RuleIndex, Selector, Term, Traffic};

/// The policy and what its guests are at this moment.
#[derive(Copy, Clone, Debug)]
pub struct World<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Its guests, in their order.
    pub guests: &'a [Membership],
    /// What is known of flows.
    pub flows: &'a Flows,
}

/// The first condition of a rule that a packet does not meet.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Miss {
    /// From and to, in either direction; or in the forward one, for a packet that opens a connection.
    Parties,
    /// The EtherType.
    Ethertype,
    /// The VLAN tag.
    Vlan,
    /// The DSCP.
    Dscp,
    /// The upper-layer protocol.
    Protocol,
    /// What is known of the flow.
    Flow,
    /// The ports.
    Ports,
    /// The ICMP type or code.
    Icmp,
    /// Everything else holds, and the packet is a fragment whose ports cannot be read.
    NeedsPorts,
}

impl World<'_> {
    /// Whether a selector means a party.
    #[must_use]
    pub fn selects(&self, selector: &Selector, network: NetworkIndex, party: &Party) -> bool {
        match selector {
            Selector::Any => true,
            Selector::OneOf(list) => list.iter().any(|one| self.selects(one, network, party)),
            Selector::All(terms) => terms.iter().all(|term| self.term(term, network, party)),
        }
    }

    fn term(&self, term: &Term, network: NetworkIndex, party: &Party) -> bool {
        let guest = || party.guest.and_then(|guest| self.guests.get(guest.index()));
        match term {
            Term::Network(wanted) => *wanted == network,
            Term::Guest(wanted) => party.guest == Some(*wanted),
            Term::Cidr(cidr) => party.address.is_some_and(|address| cidr.contains(address)),
            Term::Label(test) => {
                guest().is_some_and(|guest| test.passes(guest.labels.get(&test.name).map(String::as_str)))
            }
            Term::Group(group) => self.selects(&self.policy.groups[group.index()].members, network, party),
            Term::Container(container) => guest().is_some_and(|guest| guest.containers.contains(container)),
            Term::Subject(template) => guest().is_some_and(|guest| guest.subject_of.contains(template)),
            Term::Criteria(criteria) => guest().is_some_and(|guest| guest.holds(*criteria)),
            Term::Not(selector) => !self.selects(selector, network, party),
        }
    }

    /// Compares one rule.
    ///
    /// # Errors
    /// The condition that came nearest to a match.
    pub fn compare(&self, rule: &Rule, facts: &Facts) -> Result<(), Miss> {
        let replies: &[bool] = if facts.opening { &[false] } else { &[false, true] };
        let mut nearest = Miss::Parties;
        for reply in replies {
            for traffic in &rule.traffic {
                match self.one_way(rule, traffic, facts, *reply) {
                    Ok(()) => return Ok(()),
                    Err(miss) => nearest = nearest.max(miss),
                }
            }
        }
        Err(nearest)
    }

    /// Compares one kind of traffic of a rule, as it is sent or as the reply.
    pub(crate) fn one_way(
        &self,
        rule: &Rule,
        traffic: &Traffic,
        facts: &Facts,
        reply: bool,
    ) -> Result<(), Miss> {
        let (from, to) = if reply {
            (&facts.destination, &facts.source)
        } else {
            (&facts.source, &facts.destination)
        };
        let hold = |condition: bool, miss| if condition { Ok(()) } else { Err(miss) };
        let parties =
            self.selects(&rule.from, facts.network, from) && self.selects(&rule.to, facts.network, to);
        hold(parties, Miss::Parties)?;
        let is = |wanted: Option<u16>, found| wanted.is_none_or(|wanted| Some(wanted) == found);
        hold(is(traffic.ethertype, Some(facts.ethertype)), Miss::Ethertype)?;
        hold(
            traffic.vlan.is_none_or(|test| test.passes(facts.vlan)),
            Miss::Vlan,
        )?;
        // What is no IP packet has no DSCP.
        let dscp = facts.protocol.map(|_| u16::from(facts.dscp));
        hold(is(traffic.dscp.map(u16::from), dscp), Miss::Dscp)?;
        hold(
            is(traffic.protocol.map(u16::from), facts.protocol.map(u16::from)),
            Miss::Protocol,
        )?;
        if let Some(test) = traffic.flow {
            // The word of the agent at `from`'s side counts.
            let told = self.flows.context(facts, reply);
            hold(self.policy.flow_tests[test.index()].passes(told), Miss::Flow)?;
        }
        if (traffic.icmp_type.is_some() || !traffic.ports.is_empty()) && facts.ports == Ports::Unreadable {
            return Err(Miss::NeedsPorts);
        }
        if !traffic.ports.is_empty() {
            let port = match facts.ports {
                Ports::Pair { source, .. } if reply => Some(source),
                Ports::Pair { destination, .. } => Some(destination),
                _ => None,
            };
            let inside = |port| traffic.ports.iter().any(|range| range.contains(&port));
            hold(port.is_some_and(inside), Miss::Ports)?;
        }
        if let Some(sent) = traffic.icmp_type {
            let wanted = if reply {
                reply_type(traffic.protocol, sent)
            } else {
                Some(sent)
            };
            let code = |found| traffic.icmp_code.is_none_or(|wanted| wanted == found);
            let matches = facts
                .icmp
                .is_some_and(|(found, found_code)| Some(found) == wanted && code(found_code));
            hold(matches, Miss::Icmp)?;
        }
        Ok(())
    }

    /// What the rules say, read one after the other: of those that are enforced, or of those that are only watched.
    #[must_use]
    pub fn first_match(&self, facts: &Facts, monitor: bool) -> Verdict {
        for (number, rule) in (0u32..).zip(&self.policy.rules) {
            if self.policy.sections[rule.section.index()].monitor != monitor {
                continue;
            }
            match self.compare(rule, facts) {
                Ok(()) => {
                    let rule_index = RuleIndex(number);
                    return Verdict::Matched {
                        rule: rule_index,
                        action: rule.action,
                    };
                }
                Err(Miss::NeedsPorts) => return Verdict::FragmentNeedsPorts,
                Err(_) => {}
            }
        }
        Verdict::NoRule
    }
}

/// The ICMP type that answers one: echo and neighbour discovery have an answer, nothing else has.
#[must_use]
pub fn reply_type(protocol: Option<u8>, kind: u8) -> Option<u8> {
    match (protocol, kind) {
        (Some(1), 8) => Some(0),
        (Some(58), 128) => Some(129),
        (Some(58), 135) => Some(136),
        (Some(58), 133) => Some(134),
        _ => None,
    }
}
