//! Rules, packets and guests in words.

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::facts::{Facts, Party, Ports};
use crate::flows::FlowContext;
use crate::meaning::{Miss, World, reply_type};
use crate::model::{
    Criteria, FlowTest, Glob, Group, LabelTest, Rule, Selector, TagTest, Term, Traffic, VlanTest,
};

use super::{Causes, party};

pub(super) struct Words<'a> {
    pub(super) world: &'a World<'a>,
    pub(super) causes: &'a dyn Causes,
}

impl Words<'_> {
    /// Why a rule matches: who is from and to, and what of the traffic was asked.
    pub(super) fn why(&self, rule: &Rule, facts: &Facts) -> String {
        let (traffic, reply) = self
            .ways(rule, facts)
            .find(|(traffic, reply)| self.world.one_way(rule, traffic, facts, *reply).is_ok())
            .unwrap_or((&rule.traffic[0], false));
        let (from, to) = sides(facts, reply);
        let mut parts = Vec::new();
        if reply {
            parts.push("it is the reply".to_owned());
        }
        parts.push(self.side("from", &rule.from, from));
        parts.push(self.side("to", &rule.to, to));
        parts.extend(self.asked(traffic).map(|(_, words)| words));
        parts.join("; ")
    }

    /// The condition that came nearest, what it wants and what there is.
    pub(super) fn why_not(&self, rule: &Rule, facts: &Facts, miss: Miss) -> String {
        if miss == Miss::Parties {
            return self.not_its_parties(rule, facts);
        }
        let mut wanted: Vec<String> = Vec::new();
        let mut reply = true;
        for (traffic, as_reply) in self.ways(rule, facts) {
            if self.world.one_way(rule, traffic, facts, as_reply) == Err(miss) {
                reply &= as_reply;
                let of_this = |(about, _): &(Miss, String)| *about == miss;
                let asked = self.asked(traffic).filter(of_this).map(|(_, words)| words);
                for words in asked {
                    if !wanted.contains(&words) {
                        wanted.push(words);
                    }
                }
            }
        }
        let wanted = wanted.join(" or ");
        let found = match miss {
            Miss::Parties | Miss::NeedsPorts => {
                return "it needs ports or an ICMP type, and this fragment has none to read".to_owned();
            }
            Miss::Ethertype => format!("the EtherType is {}", ethertype(facts.ethertype)),
            Miss::Vlan => match facts.vlan {
                Some(vlan) => format!("the VLAN is {vlan}"),
                None => "the frame is untagged".to_owned(),
            },
            Miss::Dscp => match facts.protocol {
                Some(_) => format!("the DSCP is {}", facts.dscp),
                None => "the packet has no DSCP (not IP)".to_owned(),
            },
            Miss::Protocol => match facts.protocol {
                Some(number) => format!("the protocol is {}", protocol(number)),
                None => "the packet has no protocol (not IP)".to_owned(),
            },
            // The word of the agent at `from`'s side counts.
            Miss::Flow => match self.world.flows.context(facts, reply) {
                Some(context) => format!("the flow is of {}", context_words(context)),
                None => "no agent at from's side has said anything of the flow".to_owned(),
            },
            Miss::Ports => match facts.ports {
                Ports::Pair { source, destination } => format!("the ports are {source} to {destination}"),
                _ => "the packet has no ports".to_owned(),
            },
            Miss::Icmp => match facts.icmp {
                Some((kind, code)) => format!("the ICMP type is {kind}, the code {code}"),
                None => "the packet is no ICMP".to_owned(),
            },
        };
        let as_reply = if reply { ", as a reply" } else { "" };
        format!("{found}, the rule wants {wanted}{as_reply}")
    }

    /// What may be compared: each kind of traffic, as it is sent and, if nothing is opened, as the reply.
    fn ways<'r>(&self, rule: &'r Rule, facts: &Facts) -> impl Iterator<Item = (&'r Traffic, bool)> + use<'r> {
        let replies: &[bool] = if facts.opening { &[false] } else { &[false, true] };
        let each = |reply| rule.traffic.iter().map(move |traffic| (traffic, reply));
        replies.iter().copied().flat_map(each)
    }

    fn not_its_parties(&self, rule: &Rule, facts: &Facts) -> String {
        let one_way = |reply: bool| {
            let (from, to) = sides(facts, reply);
            let meant = |selector, party| self.world.selects(selector, facts.network, party);
            let mut wrong = Vec::new();
            for (side, selector, found) in [("from", &rule.from, from), ("to", &rule.to, to)] {
                if !meant(selector, found) {
                    let name = party(self.world.policy, found);
                    wrong.push(format!("{name} is not {side} ({})", self.selector(selector)));
                }
            }
            wrong.join(" and ")
        };
        let forward = one_way(false);
        if facts.opening {
            format!("{forward}; what opens a connection is no reply")
        } else if rule.from == rule.to {
            forward
        } else {
            format!("{forward}; as a reply {}", one_way(true))
        }
    }

    /// One side of a rule that matches: who it is, what was asked, and the causes of what the guest is.
    fn side(&self, side: &str, selector: &Selector, found: &Party) -> String {
        let mut text = format!(
            "{side} is {}, asked for {}",
            party(self.world.policy, found),
            self.selector(selector)
        );
        if let Some(guest) = found.guest {
            let mut causes = Vec::new();
            each_term(selector, &mut |term| {
                let cause = match term {
                    Term::Container(_) => self.causes.container(guest),
                    Term::Subject(template) => self.causes.subject(guest, *template),
                    _ => None,
                };
                causes.extend(cause.filter(|cause| !causes.contains(cause)));
            });
            if !causes.is_empty() {
                let _ = write!(text, " ({})", causes.join("; "));
            }
        }
        text
    }

    fn selector(&self, selector: &Selector) -> String {
        match selector {
            Selector::Any => "any".to_owned(),
            Selector::All(terms) => {
                let terms: Vec<String> = terms.iter().map(|term| self.term(term)).collect();
                terms.join(" and ")
            }
            Selector::OneOf(all) if all.is_empty() => "nobody".to_owned(),
            Selector::OneOf(all) => {
                let all: Vec<String> = all.iter().map(|one| self.selector(one)).collect();
                all.join(" or ")
            }
        }
    }

    fn term(&self, term: &Term) -> String {
        let policy = self.world.policy;
        match term {
            Term::Network(network) => format!("network {}", policy.networks[network.index()].name),
            Term::Guest(guest) => format!("guest {}", policy.guests[guest.index()].id),
            Term::Label(test) => label(test),
            Term::Cidr(cidr) => cidr.to_string(),
            Term::Group(group) => self.group(&policy.groups[group.index()]),
            Term::Container(container) => {
                format!("container {}", policy.containers[container.index()].name)
            }
            Term::Criteria(criteria) => self.criteria(&policy.criteria[criteria.index()]),
            Term::Subject(template) => {
                format!("subject of template {}", policy.templates[template.index()].name)
            }
            Term::Not(selector) => format!("not ({})", self.selector(selector)),
        }
    }

    /// By its name; with what it asks of those who are members by what has happened to them.
    fn group(&self, group: &Group) -> String {
        let mut questions: Vec<String> = Vec::new();
        each_term(&group.members, &mut |term| {
            if let Term::Criteria(criteria) = term {
                questions.push(self.criteria(&self.world.policy.criteria[criteria.index()]));
            }
        });
        match questions.is_empty() {
            true => format!("group {}", group.name),
            false => format!("group {} (of whom holds: {})", group.name, questions.join(" or ")),
        }
    }

    fn criteria(&self, criteria: &Criteria) -> String {
        let list = |list: &[Criteria], word: &str| {
            let all: Vec<String> = list.iter().map(|one| self.criteria(one)).collect();
            format!("({})", all.join(word))
        };
        match criteria {
            Criteria::All(all) => list(all, " and "),
            Criteria::Any(any) => list(any, " or "),
            Criteria::Not(one) => format!("not {}", self.criteria(one)),
            Criteria::Tag(test) => tag(test),
            Criteria::Login(test) => match &test.group {
                Some(group) => format!("login of {} of group {group}", test.user),
                None => format!("login of {}", test.user),
            },
            Criteria::Flow(test) => flow(test),
            Criteria::Label(test) => label(test),
            Criteria::Container(container) => {
                let name = &self.world.policy.containers[container.index()].name;
                format!("container {name}")
            }
            Criteria::Neighbour(one) => format!("a neighbour with {}", self.criteria(one)),
        }
    }

    /// Each thing that a kind of traffic asks, in the order in which it is compared.
    fn asked(&self, traffic: &Traffic) -> impl Iterator<Item = (Miss, String)> {
        let code = traffic
            .icmp_code
            .map_or_else(String::new, |code| format!(" code {code}"));
        let answer = |kind| match reply_type(traffic.protocol, kind) {
            Some(answer) => format!(", its answer {answer}"),
            None => String::new(),
        };
        let flow_test = |test: crate::model::FlowTestIndex| flow(&self.world.policy.flow_tests[test.index()]);
        [
            traffic
                .ethertype
                .map(|number| (Miss::Ethertype, ethertype(number))),
            traffic.vlan.map(|test| {
                let words = match test {
                    VlanTest::Untagged => "an untagged frame".to_owned(),
                    VlanTest::Id(id) => format!("VLAN {id}"),
                };
                (Miss::Vlan, words)
            }),
            traffic.dscp.map(|dscp| (Miss::Dscp, format!("DSCP {dscp}"))),
            traffic.protocol.map(|number| (Miss::Protocol, protocol(number))),
            traffic.flow.map(|test| (Miss::Flow, flow_test(test))),
            (!traffic.ports.is_empty()).then(|| (Miss::Ports, format!("port {}", ranges(&traffic.ports)))),
            traffic.icmp_type.map(|kind| {
                let words = format!("ICMP type {kind}{code}{}", answer(kind));
                (Miss::Icmp, words)
            }),
        ]
        .into_iter()
        .flatten()
    }
}

/// Every term that a selector has, but for those that it negates.
fn each_term(selector: &Selector, of: &mut impl FnMut(&Term)) {
    match selector {
        Selector::Any => {}
        Selector::All(terms) => terms.iter().for_each(of),
        Selector::OneOf(all) => all.iter().for_each(|one| each_term(one, of)),
    }
}

fn sides(facts: &Facts, reply: bool) -> (&Party, &Party) {
    if reply {
        (&facts.destination, &facts.source)
    } else {
        (&facts.source, &facts.destination)
    }
}

fn label(test: &LabelTest) -> String {
    let values: Vec<&str> = test.values.iter().map(Glob::as_str).collect();
    format!("label {}={}", test.name, values.join("|"))
}

fn tag(test: &TagTest) -> String {
    let mut text = format!("tag {}/{}", test.service, test.name);
    if test.severity > 0 {
        let _ = write!(text, " of severity >={}", test.severity);
    }
    if test.count > 1 {
        let _ = write!(text, " set >={} times", test.count);
    }
    if let Some(age) = test.older_than {
        let _ = write!(text, " for {}", time(age));
    }
    if let Some(age) = test.younger_than {
        let _ = write!(text, " within {}", time(age));
    }
    text
}

/// As the files say it.
fn time(time: Duration) -> String {
    let milliseconds = time.as_millis();
    let units = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
    units
        .into_iter()
        .find(|(_, unit)| milliseconds.is_multiple_of(*unit))
        .map_or_else(
            || format!("{milliseconds}ms"),
            |(word, unit)| format!("{}{word}", milliseconds / unit),
        )
}

fn flow(test: &FlowTest) -> String {
    let parts = [
        ("user", &test.user),
        ("group", &test.group),
        ("application", &test.application),
    ];
    let said: Vec<String> = parts
        .iter()
        .filter_map(|(word, glob)| glob.as_ref().map(|glob| format!("{word} {glob}")))
        .collect();
    format!("a flow of {}", said.join(" and "))
}

fn context_words(context: &FlowContext) -> String {
    let mut said = Vec::new();
    said.extend(context.user.as_ref().map(|user| format!("user {user}")));
    if !context.groups.is_empty() {
        said.push(format!("groups {}", context.groups.join(", ")));
    }
    said.extend(
        context
            .application
            .as_ref()
            .map(|application| format!("application {application}")),
    );
    if said.is_empty() {
        said.push("nobody known".to_owned());
    }
    said.join(" and ")
}

fn ranges(ranges: &[RangeInclusive<u16>]) -> String {
    let each: Vec<String> = ranges
        .iter()
        .map(|range| match (range.start(), range.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        })
        .collect();
    each.join(", ")
}

fn ethertype(number: u16) -> String {
    match number {
        0x0800 => "ipv4".to_owned(),
        0x0806 => "arp".to_owned(),
        0x86dd => "ipv6".to_owned(),
        number => format!("{number:#06x}"),
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        50 => "esp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        number => number.to_string(),
    }
}
