//! Containers, groups, and what is asked of guests.

use std::time::Duration;

use serde_saphyr::Location;

use crate::model::{
    Container, ContainerIndex, Criteria, CriteriaIndex, Damping, FlowTest, FlowTestIndex, Glob, Group,
    GuestIndex, LoginTest, Place, Release, SecurityService, Selector, TagTest, Template, Term, Transfer,
};

use super::names::Kind;
use super::raw::{ByHand, RawCriteria, RawFlow, RawTag};
use super::resolve::Resolver;
use super::rules::labels;
use super::words::{Age, age, at_least, duration};
use super::written::{At, WordOr};
use super::{File, raw};

/// The container of guests that nothing has moved. It needs no declaration.
const DEFAULT: &str = "default";

/// Containers nest so deep at most.
const MOST_NESTED: usize = 16;

impl Resolver {
    pub(super) fn containers(&mut self, files: &[(File, raw::RawPolicy)]) {
        for (source, file) in files {
            for service in &file.security_services {
                let number = self.policy.security_services.len();
                if self.declare(source, Kind::SecurityService, service, number) {
                    self.policy.security_services.push(SecurityService {
                        name: service.value.clone(),
                        place: source.place(&service.at),
                    });
                }
            }
        }
        self.policy.containers.push(Container {
            name: DEFAULT.to_owned(),
            parent: None,
            quarantine: false,
            services: Vec::new(),
            transfers: Vec::new(),
            release: None,
            by_hand: false,
            place: Place::default(),
        });
        let mut declared = Vec::new();
        for (source, file) in files {
            for raw in &file.containers {
                // The default container is the first, wherever it is declared; the others stand in their order.
                let number = if raw.name.value == DEFAULT {
                    0
                } else {
                    self.policy.containers.len()
                };
                if !self.declare(source, Kind::Container, &raw.name, number) {
                    continue;
                }
                let container = Container {
                    name: raw.name.value.clone(),
                    quarantine: raw.quarantine,
                    by_hand: matches!(&*raw.release, Some(WordOr::Word(ByHand))),
                    place: source.place(&raw.name.at),
                    ..self.policy.containers[0].clone()
                };
                match number {
                    0 => self.policy.containers[0] = container,
                    _ => self.policy.containers.push(container),
                }
                declared.push((source, raw, ContainerIndex(number as u16)));
            }
        }
        self.names.declare(Kind::Container, DEFAULT, 0);
        for (source, raw, container) in &declared {
            self.container_details(source, raw, *container);
        }
        for (source, raw, container) in &declared {
            if let Some(parent) = &*raw.parent
                && self.policy.chain(*container).nth(MOST_NESTED).is_some()
            {
                let message = format!(
                    "container \"{}\" is nested too deep: expected at most {MOST_NESTED} levels",
                    raw.name.value
                );
                self.fail(source, &parent.at, message);
            }
        }
        let mut dampings = files
            .iter()
            .filter_map(|(source, file)| Some((source, file.damping.as_ref()?)));
        if let Some((source, raw)) = dampings.next() {
            self.damping(source, &raw.value);
        }
        for (source, raw) in dampings {
            self.fail(
                source,
                &raw.at,
                "damping is declared twice: expected it in one file",
            );
        }
    }

    fn damping(&mut self, source: &File, raw: &raw::RawDamping) {
        let within = self.some_time(source, &raw.within);
        let hold = self.some_time(source, &raw.hold);
        let transfers = raw.transfers.value;
        if transfers == 0 {
            self.fail(source, &raw.transfers.at, "expected at least one transfer");
        }
        self.policy.damping = Damping {
            transfers,
            within,
            hold,
        };
    }

    fn container_details(&mut self, source: &File, raw: &raw::RawContainer, container: ContainerIndex) {
        if let Some(name) = &*raw.parent {
            let parent = self.container_of(source, name);
            let inside =
                parent.is_some_and(|parent| self.policy.chain(parent).any(|outer| outer == container));
            if inside {
                let message = format!("container \"{}\" would be nested in itself", raw.name.value);
                self.fail(source, &name.at, message);
            } else {
                self.policy.containers[container.index()].parent = parent;
            }
        }
        for service in &raw.security_services {
            if self.known(source, Kind::SecurityService, service).is_some() {
                let services = &mut self.policy.containers[container.index()].services;
                services.push(service.value.clone());
            }
        }
        for transfer in &raw.transfers {
            let when = self.criteria(source, &transfer.when, &transfer.name.at);
            let to = self.container_of(source, &transfer.to);
            if to == Some(container) {
                let message = "a transfer leads elsewhere: expected another container";
                self.fail(source, &transfer.to.at, message);
            }
            let services = &self.policy.security_services;
            let rank = services.iter().position(|service| asks(&when, &service.name));
            let transfer = Transfer {
                name: transfer.name.value.clone(),
                when,
                to: to.unwrap_or(container),
                priority: transfer.priority,
                precedence: rank.unwrap_or(services.len()) as u32,
                place: source.place(&transfer.name.at),
            };
            self.policy.containers[container.index()].transfers.push(transfer);
        }
        if let Some(WordOr::Map(release)) = &*raw.release {
            let when = match &*release.when {
                Some(when) => self.criteria(source, when, &raw.name.at),
                // All cleared.
                None => Criteria::Not(Box::new(Criteria::Tag(any_tag()))),
            };
            let after = release.after.as_ref().map(|text| self.duration(source, text));
            self.policy.containers[container.index()].release = Some(Release {
                when,
                after: after.unwrap_or_default(),
            });
        }
    }

    pub(super) fn groups(&mut self, files: &[(File, raw::RawPolicy)]) {
        for (source, file) in files {
            for raw in &file.groups {
                if !self.declare(source, Kind::Group, &raw.name, self.policy.groups.len()) {
                    continue;
                }
                let mut members = Vec::new();
                for text in raw.addresses.iter().flatten() {
                    members.extend(self.cidr(source, text).map(|cidr| vec![Term::Cidr(cidr)]));
                }
                for id in raw.guests.iter().flatten() {
                    members.extend(self.guest_of(source, id).map(|guest| vec![Term::Guest(guest)]));
                }
                if !raw.labels.0.is_empty() {
                    members.push(labels(&raw.labels).map(Term::Label).collect());
                }
                if let Some(when) = &*raw.when {
                    let criteria = self.criteria(source, when, &raw.name.at);
                    members.extend(
                        self.ask(source, &raw.name.at, criteria)
                            .map(|one| vec![Term::Criteria(one)]),
                    );
                }
                if raw.addresses.is_none()
                    && raw.guests.is_none()
                    && raw.labels.0.is_empty()
                    && raw.when.is_none()
                {
                    let message = format!(
                        "group \"{}\" says nothing of its members: expected addresses, guests, labels or when",
                        raw.name.value
                    );
                    self.fail(source, &raw.name.at, message);
                }
                self.policy.groups.push(Group {
                    name: raw.name.value.clone(),
                    members: Selector::OneOf(members.into_iter().map(Selector::All).collect()),
                    place: source.place(&raw.name.at),
                });
            }
        }
    }

    pub(super) fn templates(&mut self, files: &[(File, raw::RawPolicy)]) {
        for (source, file) in files {
            for raw in &file.templates {
                if !self.declare(source, Kind::Template, &raw.name, self.policy.templates.len()) {
                    continue;
                }
                let when = self.criteria(source, &raw.when, &raw.name.at);
                let lifetime = raw.lifetime.as_ref().map(|text| self.some_time(source, text));
                self.policy.templates.push(Template {
                    name: raw.name.value.clone(),
                    when,
                    lifetime,
                    place: source.place(&raw.name.at),
                });
            }
        }
    }

    pub(super) fn flow_test(&mut self, source: &File, raw: &At<RawFlow>) -> FlowTest {
        let glob = |text: &Option<String>| text.as_deref().map(Glob::new);
        let test = FlowTest {
            user: glob(&raw.value.user),
            group: glob(&raw.value.group),
            application: glob(&raw.value.application),
        };
        if test == FlowTest::default() {
            let message = "an empty map asks nothing of a flow: expected user, group or application";
            self.fail(source, &raw.at, message);
        }
        test
    }

    /// The number of a question that rules ask.
    pub(super) fn ask(&mut self, source: &File, at: &Location, criteria: Criteria) -> Option<CriteriaIndex> {
        if let Some(known) = self.names.criteria.get(&criteria) {
            return Some(*known);
        }
        let number = self.numbered(source, at, "questions about guests", self.policy.criteria.len())?;
        self.policy.criteria.push(criteria.clone());
        self.names.criteria.insert(criteria, CriteriaIndex(number));
        Some(CriteriaIndex(number))
    }

    /// The number of a question about flows.
    pub(super) fn ask_flow(&mut self, source: &File, raw: &At<RawFlow>) -> Option<FlowTestIndex> {
        let test = self.flow_test(source, raw);
        if let Some(known) = self.names.flow_tests.get(&test) {
            return Some(*known);
        }
        let number = self.numbered(
            source,
            &raw.at,
            "questions about flows",
            self.policy.flow_tests.len(),
        )?;
        self.policy.flow_tests.push(test.clone());
        self.names.flow_tests.insert(test, FlowTestIndex(number));
        Some(FlowTestIndex(number))
    }

    /// The next number, if there is one.
    fn numbered(&mut self, source: &File, at: &Location, what: &str, next: usize) -> Option<u16> {
        let number = u16::try_from(next).ok();
        if number.is_none() {
            let message = format!("too many {what}: expected at most {}", u32::from(u16::MAX) + 1);
            self.fail(source, at, message);
        }
        number
    }

    pub(super) fn container_of(&mut self, source: &File, name: &At<String>) -> Option<ContainerIndex> {
        self.known(source, Kind::Container, name)
            .map(|number| ContainerIndex(number as u16))
    }

    pub(super) fn guest_of(&mut self, source: &File, id: &At<String>) -> Option<GuestIndex> {
        self.known(source, Kind::Guest, id)
            .map(|number| GuestIndex(number as u32))
    }

    /// What is asked of a guest; `at` is the place of whoever asks.
    fn criteria(&mut self, source: &File, raw: &RawCriteria, at: &Location) -> Criteria {
        self.question(source, raw, at, false)
    }

    fn question(&mut self, source: &File, raw: &RawCriteria, at: &Location, of_neighbour: bool) -> Criteria {
        let mut list = Vec::new();
        let mut each = |all: &[RawCriteria]| -> Vec<Criteria> {
            all.iter()
                .map(|one| self.question(source, one, at, of_neighbour))
                .collect()
        };
        if !raw.all.is_empty() {
            list.push(Criteria::All(each(&raw.all)));
        }
        if !raw.any.is_empty() {
            list.push(Criteria::Any(each(&raw.any)));
        }
        if let Some(one) = &*raw.not {
            list.push(Criteria::Not(Box::new(self.question(
                source,
                one,
                at,
                of_neighbour,
            ))));
        }
        if let Some(tag) = &*raw.tag {
            list.push(self.tag(source, tag));
        }
        if let Some(login) = &*raw.login {
            list.push(Criteria::Login(LoginTest {
                user: login.user.as_deref().map_or_else(Glob::any, Glob::new),
                group: login.group.as_deref().map(Glob::new),
            }));
        }
        if let Some(flow) = &*raw.flow {
            list.push(Criteria::Flow(self.flow_test(source, flow)));
        }
        list.extend(labels(&raw.label).map(Criteria::Label));
        if let Some(name) = &*raw.container {
            let container = self.container_of(source, name);
            list.push(Criteria::Container(container.unwrap_or(ContainerIndex(0))));
        }
        if let Some(one) = &*raw.neighbour {
            if of_neighbour {
                let message = "a neighbour's neighbour cannot be asked: expected neighbour once";
                self.fail(source, &one.at, message);
            }
            let of_it = self.question(source, &one.value, &one.at, true);
            list.push(Criteria::Neighbour(Box::new(of_it)));
        }
        match list.len() {
            0 => {
                let message = "an empty map asks nothing of a guest: expected all, any, not, tag, login, flow, label, container or neighbour";
                self.fail(source, at, message);
                Criteria::All(list)
            }
            1 => list.remove(0),
            _ => Criteria::All(list),
        }
    }

    pub(super) fn tag(&mut self, source: &File, raw: &RawTag) -> Criteria {
        let mut test = any_tag();
        test.service = raw
            .service
            .as_ref()
            .map_or_else(Glob::any, |at| Glob::new(&at.value));
        test.name = raw.name.as_deref().map_or_else(Glob::any, Glob::new);
        if let Some(text) = &*raw.severity {
            match at_least(&text.value, 100) {
                Some(severity) => test.severity = severity as u8,
                None => {
                    let message = format!(
                        "\"{}\" is no severity: expected 0 to 100, or such as \">=70\"",
                        &*text.value
                    );
                    self.fail(source, &text.at, message);
                }
            }
        }
        if let Some(text) = &*raw.count {
            match at_least(&text.value, u32::MAX).filter(|count| *count > 0) {
                Some(count) => test.count = count,
                None => {
                    let message = format!(
                        "\"{}\" is no count: expected 1 or more, or such as \">=3\"",
                        &*text.value
                    );
                    self.fail(source, &text.at, message);
                }
            }
        }
        if let Some(text) = &*raw.age {
            match age(&text.value) {
                Some(Age::AtLeast(age)) => test.older_than = Some(age),
                Some(Age::AtMost(age)) => test.younger_than = Some(age),
                None => {
                    let message = format!(
                        "\"{}\" is no age: expected such as \">10m\" or \"<1h\"",
                        text.value
                    );
                    self.fail(source, &text.at, message);
                }
            }
        }
        // Where services are declared, a tag of another is one that nobody sets.
        if let Some(name) = &*raw.service
            && !self.policy.security_services.is_empty()
            && !name.value.contains('*')
        {
            self.known(source, Kind::SecurityService, name);
        }
        Criteria::Tag(test)
    }

    fn duration(&mut self, source: &File, text: &At<String>) -> Duration {
        duration(&text.value).unwrap_or_else(|why| {
            self.fail(source, &text.at, format!("\"{}\" {why}", text.value));
            Duration::ZERO
        })
    }

    /// A duration that is not nothing.
    fn some_time(&mut self, source: &File, text: &At<String>) -> Duration {
        let before = self.errors.len();
        let time = self.duration(source, text);
        if time.is_zero() && self.errors.len() == before {
            let message = format!("\"{}\" is no time at all: expected such as 30s or 5m", text.value);
            self.fail(source, &text.at, message);
        }
        time
    }
}

/// Every tag passes.
fn any_tag() -> TagTest {
    TagTest {
        service: Glob::any(),
        name: Glob::any(),
        severity: 0,
        older_than: None,
        younger_than: None,
        count: 1,
    }
}

/// Whether something is asked of a service's tags.
fn asks(criteria: &Criteria, service: &str) -> bool {
    match criteria {
        Criteria::All(list) | Criteria::Any(list) => list.iter().any(|one| asks(one, service)),
        Criteria::Not(one) | Criteria::Neighbour(one) => asks(one, service),
        Criteria::Tag(test) => test.service.matches(service),
        _ => false,
    }
}
