//! Rules: sections, services, selectors and actions.

use std::collections::HashMap;

use serde_saphyr::Location;

use crate::classify::{Action, Protection};
use crate::compile::parties;
use crate::event::Moment;
use crate::model::{
    AlsoAccept, Cidr, ContainerIndex, Glob, GroupIndex, KeyIndex, LabelTest, NetworkIndex, Owner, Place,
    ProtocolPorts, Rule, Section, SectionIndex, Selector, Service, Suite, TemplateIndex, Term, Traffic,
    VlanTest, service,
};

use super::names::Kind;
use super::raw::{RawAction, RawMode, RawRule, RawSelector};
use super::resolve::Resolver;
use super::words::{dscp_number, ethertype_number, port_range, protocol_number};
use super::written::{At, Labels, Maybe, Scalar, Words};
use super::{File, raw};

/// The section of rules that name none.
const GENERAL: &str = "general";
/// The section of the containers' rules, before all others.
const CONTAINERS: &str = "containers";
/// The section of the templates' rules, behind the containers'.
const TEMPLATES: &str = "templates";
/// Rules that a policy may have.
const MOST_RULES: usize = 1 << 17;

impl Resolver {
    pub(super) fn services(&mut self, files: &[(File, raw::RawPolicy)]) {
        for (source, file) in files {
            for raw in &file.services {
                if !self.declare(source, Kind::Service, &raw.name, self.policy.services.len()) {
                    continue;
                }
                let mut matches = Vec::new();
                if let Some(protocol) = &*raw.protocol {
                    matches.extend(self.protocol_ports(source, protocol, &raw.ports));
                } else if let Some(first) = raw.ports.first() {
                    self.fail(source, &first.at, NEEDS_PROTOCOL);
                }
                for one in &*raw.matches {
                    matches.extend(self.protocol_ports(source, &one.protocol, &one.ports));
                }
                if raw.protocol.is_none() && raw.matches.is_empty() {
                    let message = format!(
                        "service \"{}\" is nothing: expected protocol, or match",
                        raw.name.value
                    );
                    self.fail(source, &raw.name.at, message);
                }
                self.policy.services.push(Service {
                    name: raw.name.value.clone(),
                    matches,
                    place: Some(source.place(&raw.name.at)),
                    used: false,
                });
            }
        }
        for service in service::built_in() {
            let number = self.policy.services.len();
            if self.names.declare(Kind::Service, &service.name, number) {
                self.policy.services.push(service);
            }
        }
    }

    fn protocol_ports(
        &mut self,
        source: &File,
        protocol: &At<Scalar>,
        ports: &[At<Scalar>],
    ) -> Option<ProtocolPorts> {
        let protocol = self.protocol(source, protocol)?;
        let ports = self.ports(source, ports, Some(protocol));
        Some(ProtocolPorts { protocol, ports })
    }

    fn protocol(&mut self, source: &File, text: &At<Scalar>) -> Option<u8> {
        let number = protocol_number(&text.value);
        if number.is_none() {
            let message = format!(
                "\"{}\" is no protocol: expected tcp, udp, sctp, icmp, icmpv6, esp or a number up to 255",
                &*text.value
            );
            self.fail(source, &text.at, message);
        }
        number
    }

    fn ports(
        &mut self,
        source: &File,
        texts: &[At<Scalar>],
        protocol: Option<u8>,
    ) -> Vec<std::ops::RangeInclusive<u16>> {
        let mut ports = Vec::new();
        for text in texts {
            match port_range(&text.value) {
                Ok(range) => ports.push(range),
                Err(why) => self.fail(source, &text.at, format!("\"{}\" {why}", &*text.value)),
            }
        }
        if let (Some(first), false) = (texts.first(), matches!(protocol, Some(6 | 17 | 132))) {
            self.fail(source, &first.at, NEEDS_PROTOCOL);
        }
        ports
    }

    /// The rules in the order in which they are tried: the containers' (of one that is nested in another before the
    /// other's), the templates', then the sections', in the sections' order, a section's in the order of the files.
    pub(super) fn rules(&mut self, files: &[(File, raw::RawPolicy)]) {
        self.sections(files);
        let mut ordered: Vec<(SectionIndex, usize, &File, &RawRule, Owner)> = Vec::new();
        for (source, file) in files {
            for raw in &file.containers {
                let Some(number) = self.names.find(Kind::Container, &raw.name.value) else {
                    continue;
                };
                let container = ContainerIndex(number as u16);
                let depth = self.policy.chain(container).count();
                for rule in &raw.rules {
                    let owner = Owner::Container(container);
                    ordered.push((SectionIndex(0), usize::MAX - depth, source, rule, owner));
                }
            }
            for raw in &file.templates {
                let Some(number) = self.names.find(Kind::Template, &raw.name.value) else {
                    continue;
                };
                for rule in &*raw.rules {
                    let owner = Owner::Template(TemplateIndex(number as u16));
                    ordered.push((SectionIndex(1), 0, source, rule, owner));
                }
            }
            let section = match &*file.section {
                None => self.names.find(Kind::Section, GENERAL),
                Some(name) => self.known(source, Kind::Section, name),
            };
            let section = SectionIndex(section.unwrap_or(0) as u16);
            for rule in &file.rules {
                ordered.push((section, 0, source, rule, Owner::Section));
            }
        }
        ordered.sort_by_key(|(section, depth, ..)| (*section, *depth));
        if let Some((_, _, source, rule, _)) = ordered.get(MOST_RULES) {
            let message = format!("too many rules: expected at most {MOST_RULES}");
            return self.fail(source, &rule.name.at, message);
        }
        let mut names = HashMap::new();
        for (section, _, source, rule, owner) in ordered {
            if let Some(before) = names.insert(rule.name.value.as_str(), source.place(&rule.name.at)) {
                let message = format!(
                    "rule \"{}\" is declared twice, first at {before}",
                    rule.name.value
                );
                self.fail(source, &rule.name.at, message);
            }
            self.rule(source, rule, section, owner);
        }
    }

    fn sections(&mut self, files: &[(File, raw::RawPolicy)]) {
        let enforced = |name: &str| Section {
            name: name.to_owned(),
            monitor: false,
            place: Place::default(),
        };
        self.policy.sections.extend([CONTAINERS, TEMPLATES].map(enforced));
        for (source, file) in files {
            for raw in &file.sections {
                let name = raw.name.value.as_str();
                if [CONTAINERS, TEMPLATES].contains(&name) {
                    let message = format!(
                        "section \"{name}\" is there already, for the {name}' own rules: expected another name"
                    );
                    self.fail(source, &raw.name.at, message);
                    continue;
                }
                if self.declare(source, Kind::Section, &raw.name, self.policy.sections.len()) {
                    self.policy.sections.push(Section {
                        name: name.to_owned(),
                        monitor: raw.mode == RawMode::Monitor,
                        place: source.place(&raw.name.at),
                    });
                }
            }
        }
        let number = self.policy.sections.len();
        if self.names.declare(Kind::Section, GENERAL, number) {
            self.policy.sections.push(enforced(GENERAL));
        }
    }

    fn rule(&mut self, source: &File, raw: &RawRule, section: SectionIndex, owner: Owner) {
        let name_at = &raw.name.at;
        if raw.name.value.is_empty() {
            self.fail(source, name_at, "a rule's name is not empty");
        }
        let word = match owner {
            Owner::Section => None,
            Owner::Container(_) => Some(("container", "members")),
            Owner::Template(_) => Some(("template", "subject")),
        };
        if let Some((what, word)) = word
            && !is_own(&raw.from)
            && !is_own(&raw.to)
        {
            let message = format!(
                "rule \"{}\" of a {what} is not about its guests: expected from: {word} or to: {word}",
                raw.name.value
            );
            self.fail(source, name_at, message);
        }
        let from = self.party(source, name_at, "from", &raw.from, owner);
        let to = self.party(source, name_at, "to", &raw.to, owner);
        let traffic = self.traffic(source, raw);
        let action = self.action(source, raw, name_at, [&from, &to]);
        let also_accept = self.also_accept(source, raw, action);
        let mirror = self.mirror(source, raw);
        let place = source.place(name_at);
        self.policy.rules.push(Rule {
            name: raw.name.value.clone(),
            from,
            to,
            traffic,
            action,
            also_accept,
            log: raw.log,
            mirror,
            section,
            owner,
            place,
        });
    }

    fn traffic(&mut self, source: &File, raw: &RawRule) -> Vec<Traffic> {
        let protocol = raw.protocol.as_ref().and_then(|text| self.protocol(source, text));
        let ethertype = raw.ethertype.as_ref().and_then(|text| {
            let number = ethertype_number(&text.value);
            if number.is_none() {
                let message = format!(
                    "\"{}\" is no EtherType: expected arp, ipv4, ipv6 or a number such as 0x88cc",
                    &*text.value
                );
                self.fail(source, &text.at, message);
            }
            number
        });
        let ports = match (&*raw.protocol, protocol) {
            // Which ports it might have had is not known.
            (Some(_), None) => Vec::new(),
            _ => self.ports(source, &raw.ports, protocol),
        };
        if let (Some(kind), false) = (&*raw.icmp_type, matches!(protocol, Some(1 | 58))) {
            self.fail(source, &kind.at, "icmp-type needs protocol: icmp or icmpv6");
        }
        if let (Some(code), None) = (&*raw.icmp_code, &*raw.icmp_type) {
            self.fail(source, &code.at, "icmp-code needs icmp-type");
        }
        let about_ip = protocol.is_some() || raw.service.is_some() || raw.dscp.is_some();
        if let (Some(text), true, Some(number)) = (&*raw.ethertype, about_ip, ethertype)
            && !matches!(number, 0x0800 | 0x86dd)
        {
            self.fail(
                source,
                &text.at,
                "a rule with a protocol, service or DSCP is about IP: expected ethertype ipv4, ipv6 or none",
            );
        }
        let dscp = raw.dscp.as_ref().and_then(|text| {
            let number = dscp_number(&text.value);
            if number.is_none() {
                let message = format!(
                    "\"{}\" is no DSCP: expected 0 to 63, or a name such as ef, cs1 or af41",
                    &*text.value
                );
                self.fail(source, &text.at, message);
            }
            number
        });
        let vlan = raw.vlan.as_ref().and_then(|text| match &*text.value {
            "none" => Some(VlanTest::Untagged),
            number => {
                let id = number.parse().ok().filter(|id| *id <= 4094).map(VlanTest::Id);
                if id.is_none() {
                    let message =
                        format!("\"{number}\" is no VLAN: expected 0 to 4094, or none for untagged frames");
                    self.fail(source, &text.at, message);
                }
                id
            }
        });
        let flow = raw.flow.as_ref().and_then(|flow| self.ask_flow(source, flow));
        let one = Traffic {
            ethertype,
            vlan,
            dscp,
            protocol,
            ports,
            icmp_type: raw.icmp_type.as_ref().map(|kind| kind.value),
            icmp_code: raw.icmp_code.as_ref().map(|code| code.value),
            flow,
        };
        let Some(names) = &*raw.service else {
            return vec![one];
        };
        if raw.protocol.is_some() {
            let message = "a service says its protocol: expected either service or protocol";
            self.fail(source, &names.at, message);
        }
        let mut traffic = Vec::new();
        for name in names.each() {
            if let Some(number) = self.known(source, Kind::Service, &name) {
                let service = &mut self.policy.services[number];
                service.used = true;
                traffic.extend(service.matches.iter().map(|matched| Traffic {
                    protocol: Some(matched.protocol),
                    ports: matched.ports.clone(),
                    ..one.clone()
                }));
            }
        }
        traffic
    }

    pub(super) fn key_of(&mut self, source: &File, name: &At<String>) -> Option<KeyIndex> {
        self.known(source, Kind::Key, name)
            .map(|number| KeyIndex(number as u16))
    }

    fn action(
        &mut self,
        source: &File,
        raw: &RawRule,
        name_at: &Location,
        parties: [&Selector; 2],
    ) -> Action {
        let protection = match raw.action {
            RawAction::Encrypt => Protection::Encrypt,
            RawAction::Authenticate => Protection::Authenticate,
            RawAction::Plaintext | RawAction::Drop => {
                let at = raw.key.as_ref().map(|key| key.at);
                if let Some(at) = at.or(raw.suite.as_ref().map(|suite| suite.at)) {
                    self.fail(
                        source,
                        &at,
                        "a key and its suite go with encrypt or authenticate only",
                    );
                }
                return if matches!(raw.action, RawAction::Drop) {
                    Action::Drop
                } else {
                    Action::Plaintext
                };
            }
        };
        let key = match &*raw.key {
            Some(key) => self.key_of(source, key),
            None => {
                let networks: Vec<NetworkIndex> = parties.into_iter().filter_map(only_network).collect();
                let default = networks
                    .first()
                    .and_then(|network| self.policy.networks[network.index()].default_key);
                if default.is_none() {
                    let message = format!(
                        "rule \"{}\" seals but names no key: expected key, or a network in from or to that has one",
                        raw.name.value
                    );
                    self.fail(source, name_at, message);
                }
                default
            }
        };
        let Some(key) = key else {
            return Action::Drop;
        };
        self.check_suite(source, raw, key);
        Action::Seal { protection, key }
    }

    fn mirror(&mut self, source: &File, raw: &RawRule) -> Option<String> {
        let interface = raw.mirror.as_ref()?;
        self.interface_name(source, interface);
        if matches!(raw.action, RawAction::Drop) {
            let message =
                "a rule that drops lets nothing pass of which there could be a copy: expected no mirror";
            self.fail(source, &interface.at, message);
        }
        Some(interface.value.clone())
    }

    fn also_accept(&mut self, source: &File, raw: &RawRule, action: Action) -> Option<AlsoAccept> {
        let also = raw.also_accept.as_ref()?;
        let protection = match also.value.action {
            RawAction::Encrypt => Some(Protection::Encrypt),
            RawAction::Authenticate => Some(Protection::Authenticate),
            RawAction::Plaintext => None,
            RawAction::Drop => {
                self.fail(
                    source,
                    &also.at,
                    "nothing is accepted by drop: expected encrypt, authenticate or plaintext",
                );
                return None;
            }
        };
        let second = match (protection, &*also.value.key) {
            (None, None) => Some(Action::Plaintext),
            (Some(protection), Some(key)) => {
                let key = self.key_of(source, key);
                key.map(|key| Action::Seal { protection, key })
            }
            (None, Some(key)) => {
                self.fail(source, &key.at, "a key goes with encrypt or authenticate only");
                None
            }
            (Some(_), None) => {
                self.fail(source, &also.at, "what is sealed needs a key: expected key");
                None
            }
        };
        if second == Some(action) || matches!(raw.action, RawAction::Drop) {
            let message = "this is no second form of what the rule does: expected another action or key, and no rule that drops";
            self.fail(source, &also.at, message);
        }
        let until = &also.value.until;
        let moment = until.value.parse::<jiff::Timestamp>().ok();
        let moment = moment.and_then(|time| Moment::try_from(time).ok());
        if moment.is_none() {
            let message = format!(
                "\"{}\" is no moment: expected one such as 2026-12-01T12:00:00Z",
                until.value
            );
            self.fail(source, &until.at, message);
        }
        Some(AlsoAccept {
            action: second?,
            until: moment?,
        })
    }

    /// A key has one suite: the same bytes are never used by two ciphers.
    fn check_suite(&mut self, source: &File, raw: &RawRule, key: KeyIndex) {
        let Some(wanted) = &*raw.suite else { return };
        let (id, suite): (&str, Suite) = {
            let key = &self.policy.keys[key.index()];
            (&key.id, key.suite)
        };
        if wanted.value != suite {
            let message = format!("key \"{id}\" is of suite {suite}: expected the same here, or none");
            self.fail(source, &wanted.at, message);
        }
    }

    fn party(
        &mut self,
        source: &File,
        at: &Location,
        side: &str,
        raw: &RawSelector,
        owner: Owner,
    ) -> Selector {
        let selector = self.selector(source, raw, at, owner);
        if self.errors.is_empty() && parties::alternatives(&selector, &self.policy).is_none() {
            let message = format!(
                "{side} comes to more than {} alternatives: expected a simpler selector, or several rules",
                parties::MOST
            );
            self.fail(source, at, message);
        }
        selector
    }

    fn selector(&mut self, source: &File, raw: &RawSelector, at: &Location, owner: Owner) -> Selector {
        match (raw, owner) {
            (RawSelector::Any, _) => Selector::Any,
            (RawSelector::Members, Owner::Container(container)) => {
                Selector::All(vec![Term::Container(container)])
            }
            (RawSelector::Subject, Owner::Template(template)) => Selector::All(vec![Term::Subject(template)]),
            (RawSelector::Members, _) => {
                let message = "members are those of a container: expected it only in a container's rule";
                self.fail(source, at, message);
                Selector::Any
            }
            (RawSelector::Subject, _) => {
                let message = "the subject is a template's: expected it only in a template's rule";
                self.fail(source, at, message);
                Selector::Any
            }
            (RawSelector::OneOf(all), _) => Selector::OneOf(
                all.iter()
                    .map(|one| self.selector(source, one, at, owner))
                    .collect(),
            ),
            (RawSelector::All(terms), _) => {
                let mut all = self.terms(source, terms, at, owner);
                match all.len() {
                    1 => Selector::All(all.remove(0)),
                    _ => Selector::OneOf(all.into_iter().map(Selector::All).collect()),
                }
            }
        }
    }

    /// A map's terms; where it lists values, once for each choice of them.
    fn terms(&mut self, source: &File, terms: &raw::RawTerms, at: &Location, owner: Owner) -> Vec<Vec<Term>> {
        let mut all = vec![Vec::new()];
        let mut and = |one_of: Vec<Term>| {
            // What comes to more is refused with the whole selector.
            if all.len() <= parties::MOST {
                all = all
                    .iter()
                    .flat_map(|terms| {
                        one_of.iter().map(move |term| {
                            let mut terms: Vec<Term> = terms.clone();
                            terms.push(term.clone());
                            terms
                        })
                    })
                    .collect();
            }
        };
        let mut each =
            |words: &Maybe<At<Words>>, resolve: &mut dyn FnMut(&mut Self, &At<String>) -> Option<Term>| {
                if let Some(words) = &**words {
                    and(words.each().filter_map(|word| resolve(self, &word)).collect());
                }
            };
        each(&terms.network, &mut |this, name| {
            this.known(source, Kind::Network, name)
                .map(|number| Term::Network(NetworkIndex(number as u16)))
        });
        each(&terms.guest, &mut |this, id| {
            this.guest_of(source, id).map(Term::Guest)
        });
        each(&terms.cidr, &mut |this, text| {
            this.cidr(source, text).map(Term::Cidr)
        });
        each(&terms.group, &mut |this, name| {
            this.known(source, Kind::Group, name)
                .map(|number| Term::Group(GroupIndex(number as u16)))
        });
        each(&terms.container, &mut |this, name| {
            this.container_of(source, name).map(Term::Container)
        });
        for test in labels(&terms.label) {
            and(vec![Term::Label(test)]);
        }
        if let Some(tag) = &*terms.tag {
            let test = self.tag(source, tag);
            and(self
                .ask(source, at, test)
                .map(Term::Criteria)
                .into_iter()
                .collect());
        }
        if let Some(selector) = &*terms.not {
            and(vec![Term::Not(self.selector(source, selector, at, owner))]);
        }
        all
    }

    pub(super) fn cidr(&mut self, source: &File, text: &At<String>) -> Option<Cidr> {
        match text.value.parse::<Cidr>() {
            Ok(cidr) => Some(cidr),
            Err(why) => {
                self.fail(source, &text.at, format!("\"{}\": {why}", text.value));
                None
            }
        }
    }
}

const NEEDS_PROTOCOL: &str = "ports need a protocol that has them: expected protocol: tcp, udp or sctp";

/// Whether everybody whom a selector means is of the rule's own container or template.
fn is_own(raw: &RawSelector) -> bool {
    match raw {
        RawSelector::Members | RawSelector::Subject => true,
        RawSelector::OneOf(all) => all.iter().all(is_own),
        RawSelector::Any | RawSelector::All(_) => false,
    }
}

/// Each label and the values it may have.
pub(super) fn labels(raw: &Labels) -> impl Iterator<Item = LabelTest> + '_ {
    raw.0.iter().map(|(name, values)| LabelTest {
        name: name.clone(),
        values: values.texts().map(Glob::new).collect(),
    })
}

/// The one network in which everybody is whom a selector means.
fn only_network(selector: &Selector) -> Option<NetworkIndex> {
    match selector {
        Selector::Any => None,
        Selector::All(terms) => terms.iter().find_map(|term| match term {
            Term::Network(network) => Some(*network),
            _ => None,
        }),
        Selector::OneOf(all) => {
            let first = only_network(all.first()?)?;
            all.iter()
                .all(|one| only_network(one) == Some(first))
                .then_some(first)
        }
    }
}
