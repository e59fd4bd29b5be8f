//! Files of sources: which reports of which services are which events, of which guests.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::Location;

use crate::model::source::{
    By, Field, Finder, Input, Meaning, Part, Says, Sockets, Source, Test, Text, Way, Webhook,
};
use crate::model::{Glob, NetworkIndex, Policy};

use super::words::{duration, nearest};
use super::written::{At, Listed, Maybe, Scalar, Words, section};
use super::{File, FileError, FileErrors, read};

/// The JSON Schema of files of sources, for editors.
pub const SOURCES_SCHEMA: &str = include_str!("../../sources.schema.json");

/// Events a second that a source may make if its file does not say.
const RATE: u32 = 100;
/// A name is a part of file names and paths of HTTP.
const LONGEST_NAME: usize = 64;

/// A file of Guestseal's sources: the services that report on guests, and what their reports mean.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawSources {
    /// The services.
    #[serde(default, deserialize_with = "section")]
    sources: Vec<RawSource>,
}

/// A service that reports.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawSource {
    /// Its name.
    name: At<String>,
    /// Suricata's eve.json: its alerts.
    #[serde(default)]
    suricata: Maybe<At<RawWay>>,
    /// ClamAV: clamd's log, or what its VirusEvent tells.
    #[serde(default)]
    clamav: Maybe<At<RawWay>>,
    /// Reports that are JSON, one a line.
    #[serde(default)]
    json: Maybe<At<RawWay>>,
    /// Lines of text.
    #[serde(default)]
    text: Maybe<At<RawText>>,
    /// Reports that are posted by HTTP and signed.
    #[serde(default)]
    webhook: Maybe<At<RawWebhook>>,
    /// Agents in guests, which tell of their flows.
    #[serde(default)]
    agents: Maybe<At<RawAgents>>,
    /// The security service whose tags it sets; its own name without it.
    #[serde(default)]
    service: Maybe<At<String>>,
    /// Events that it may make in a second; more wait where they are.
    #[serde(default)]
    rate: Maybe<At<u32>>,
    /// When it happened: a field, RFC 3339 or seconds since 1970.
    #[serde(default)]
    time: Maybe<At<String>>,
    /// Whom a report speaks of: the first that is a guest.
    #[serde(default)]
    guest: Listed<At<RawFinder>>,
    /// What reports say: the first that matches.
    #[serde(default)]
    reports: Listed<At<RawMeaning>>,
}

/// How reports come: one of file, socket, told.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawWay {
    /// The file that they are written into, relative to this one.
    #[serde(default)]
    file: Maybe<At<String>>,
    /// The Unix socket that who reports connects to.
    #[serde(default)]
    socket: Maybe<At<String>>,
    /// With socket: the group that may connect besides its owner.
    #[serde(default)]
    group: Maybe<At<String>>,
    /// By `guestseal ctl report`: users and @groups that may, besides those that may change everything.
    #[serde(default)]
    told: Maybe<At<Vec<String>>>,
}

/// Lines of text, and how they come: one of file, socket.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawText {
    /// Regular expressions; the groups of the first that matches are a report's fields.
    like: Listed<At<String>>,
    /// The file that they are written into, relative to this one.
    #[serde(default)]
    file: Maybe<At<String>>,
    /// The Unix socket that who reports connects to.
    #[serde(default)]
    socket: Maybe<At<String>>,
    /// With socket: the group that may connect besides its owner.
    #[serde(default)]
    group: Maybe<At<String>>,
}

/// Where signed reports are posted to.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawWebhook {
    /// The address and port to listen at; several webhooks may share one.
    listen: At<String>,
    /// The file of the secret, which nobody else may read.
    secret: At<String>,
}

/// Agents in guests.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawAgents {
    /// The directory of their Unix sockets, one for each guest of this host, called by its id.
    directory: At<String>,
    /// The group that may connect besides the owner.
    #[serde(default)]
    group: Maybe<At<String>>,
}

/// What finds a guest in a report: one of id, in, interface, mac, address.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawFinder {
    /// Only in reports of which each of these fields is like one of its patterns.
    #[serde(default)]
    when: Maybe<BTreeMap<String, At<Words>>>,
    /// Its id or UUID.
    #[serde(default)]
    id: Maybe<At<String>>,
    /// The field that its id or UUID is a part of.
    #[serde(default, rename = "in")]
    within: Maybe<At<String>>,
    /// With in: a regular expression of which the group `guest` is the id.
    #[serde(default)]
    like: Maybe<At<String>>,
    /// The interface of one of its ports.
    #[serde(default)]
    interface: Maybe<At<String>>,
    /// With interface: the VLAN of a trunk.
    #[serde(default)]
    vlan: Maybe<At<Scalar>>,
    /// The MAC of one of its ports.
    #[serde(default)]
    mac: Maybe<At<String>>,
    /// An address of one of its ports.
    #[serde(default)]
    address: Maybe<At<String>>,
    /// With address, and if wanted with mac: the logical network.
    #[serde(default)]
    network: Maybe<At<String>>,
}

/// What some reports say: one of tag, clear, login, logout, ignore.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawMeaning {
    /// Only reports of which each of these fields is like one of its patterns.
    #[serde(default)]
    when: Maybe<BTreeMap<String, At<Words>>>,
    /// Whom they speak of, if others than those of the source.
    #[serde(default)]
    guest: Listed<At<RawFinder>>,
    /// The guest gets a tag.
    #[serde(default)]
    tag: Maybe<At<RawTag>>,
    /// It loses tags.
    #[serde(default)]
    clear: Maybe<At<RawClear>>,
    /// A user has logged in.
    #[serde(default)]
    login: Maybe<At<RawLogin>>,
    /// A user has logged out.
    #[serde(default)]
    logout: Maybe<At<RawLogout>>,
    /// They are noise, and counted as such.
    #[serde(default)]
    ignore: Maybe<At<bool>>,
}

/// A tag. Its texts may have fields in them, such as "{signature}".
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawTag {
    /// Its name.
    name: At<String>,
    /// Its severity, 0 to 100.
    severity: At<Scalar>,
    /// How long it lasts if it is not set again, such as 12h; until it is cleared without it.
    #[serde(default)]
    lasts: Maybe<At<String>>,
}

/// Tags that are cleared.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawClear {
    /// Their name; * stands for any characters.
    name: At<String>,
}

/// A user who logs in. Texts may have fields in them.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawLogin {
    /// The user.
    user: At<String>,
    /// Groups: words between spaces or commas.
    #[serde(default)]
    groups: Listed<At<String>>,
}

/// A user who logs out.
#[derive(Debug, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawLogout {
    /// The user.
    user: At<String>,
}

/// The fields of a service that have names of their own, and their JSON pointers.
type Known = Vec<(String, String)>;

const CLAMAV: &[(&str, &str)] = &[
    ("file", "/CLAM_VIRUSEVENT_FILENAME"),
    ("virus", "/CLAM_VIRUSEVENT_VIRUSNAME"),
];

const SURICATA: &[(&str, &str)] = &[
    ("action", "/alert/action"),
    ("application", "/app_proto"),
    ("category", "/alert/category"),
    ("destination", "/dest_ip"),
    ("destination-mac", "/ether/dest_mac"),
    ("interface", "/in_iface"),
    ("protocol", "/proto"),
    ("severity", "/alert/severity"),
    ("signature", "/alert/signature"),
    ("signature-id", "/alert/signature_id"),
    ("source", "/src_ip"),
    ("source-mac", "/ether/src_mac"),
    ("vlan", "/vlan"),
];

/// Reads a file of sources about the guests of a policy.
///
/// # Errors
/// Every mistake that was found.
pub fn load_sources(source: &super::Source, policy: &Policy) -> Result<Vec<Source>, FileErrors> {
    let file = File::new(source);
    let raw: RawSources = read(source, &file).map_err(|error| FileErrors(vec![error]))?;
    let mut resolver = Resolver {
        file: &file,
        policy,
        known: Vec::new(),
        errors: Vec::new(),
    };
    let mut names = HashSet::new();
    let mut sources = Vec::new();
    for one in &raw.sources {
        if !names.insert(&one.name.value) {
            resolver.wrong::<()>(
                one.name.at,
                format!("source \"{}\" is declared twice", one.name.value),
            );
        }
        sources.extend(resolver.source(one));
    }
    if resolver.errors.is_empty() {
        Ok(sources)
    } else {
        Err(FileErrors(resolver.errors))
    }
}

struct Resolver<'a> {
    file: &'a File,
    policy: &'a Policy,
    /// Of the source that is read.
    known: Known,
    errors: Vec<FileError>,
}

impl Resolver<'_> {
    fn wrong<T>(&mut self, at: Location, message: impl Into<String>) -> Option<T> {
        self.errors.push(self.file.error(&at, message));
        None
    }

    /// Of what was not found; with what was probably meant.
    fn unknown<'n, T>(
        &mut self,
        at: Location,
        message: String,
        name: &str,
        all: impl Iterator<Item = &'n str>,
    ) -> Option<T> {
        let mut error = self.file.error(&at, message);
        error.0.help = nearest(name, all).map(|near| format!("did you mean \"{near}\"?"));
        self.errors.push(error);
        None
    }

    /// The one that is there of several fields.
    fn only<T>(&mut self, at: Location, of: &str, mut found: Vec<T>) -> Option<T> {
        if found.len() == 1 {
            return found.pop();
        }
        let count = if found.is_empty() { "none" } else { "more than one" };
        self.wrong(at, format!("{count} of {of}: expected one"))
    }

    fn source(&mut self, raw: &RawSource) -> Option<Source> {
        let at = raw.name.at;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let name = &raw.name.value;
        if name.is_empty() || name.len() > LONGEST_NAME || name.starts_with('.') || !name.chars().all(plain) {
            return self.wrong(
                at,
                "a source's name is also a part of paths: expected up to 64 letters, digits, - _ and .",
            );
        }
        let (known, input) = self.input(raw)?;
        self.known = known;
        let service = raw.service.as_ref().unwrap_or(&raw.name);
        let declared = &self.policy.security_services;
        if !declared.is_empty() && !declared.iter().any(|one| one.name == service.value) {
            let message = format!(
                "no security service \"{}\" is declared in the policy",
                service.value
            );
            let all = declared.iter().map(|one| one.name.as_str());
            self.unknown::<()>(service.at, message, &service.value, all);
        }
        let rate = match &raw.rate.0 {
            Some(rate) if rate.value == 0 => self.wrong(rate.at, "no event a second: expected at least 1")?,
            rate => rate.as_ref().map_or(RATE, |rate| rate.value),
        };
        let time = match (&raw.time.0, &input) {
            (Some(time), _) => self.field(&time.value, time.at),
            (None, Input::Suricata(_)) => Some(Field("/timestamp".to_owned())),
            (None, _) => None,
        };
        let by_itself = matches!(input, Input::Agents(_));
        if by_itself != raw.reports.is_empty() {
            let message = if by_itself {
                "agents tell of their flows and of nothing else: expected no reports"
            } else {
                "what do its reports say? Expected reports, such as [{tag: {name: alert, severity: 50}}]"
            };
            self.wrong::<()>(at, message);
        }
        let guests = self.finders(&raw.guest);
        let meanings = raw
            .reports
            .iter()
            .filter_map(|one| self.meaning(&one.value, one.at))
            .collect();
        let speaks_of_nobody =
            |one: &At<RawMeaning>| one.value.guest.is_empty() && one.value.ignore.is_none();
        if raw.guest.is_empty() && raw.reports.iter().any(speaks_of_nobody) {
            self.wrong::<()>(
                at,
                "whom does it speak of? Expected guest, such as [{address: \"{source}\", network: NAME}]",
            );
        }
        Some(Source {
            name: name.clone(),
            service: service.value.clone(),
            input,
            rate,
            time,
            guests,
            meanings,
        })
    }

    /// What it is, and the names of its fields.
    fn input(&mut self, raw: &RawSource) -> Option<(Known, Input)> {
        let known = |all: &[(&str, &str)]| {
            let pair = |(name, pointer): &(&str, &str)| ((*name).to_owned(), (*pointer).to_owned());
            all.iter().map(pair).collect()
        };
        let services = [
            raw.suricata.as_ref().map(|way| way.at),
            raw.clamav.as_ref().map(|way| way.at),
            raw.json.as_ref().map(|way| way.at),
            raw.text.as_ref().map(|text| text.at),
            raw.webhook.as_ref().map(|webhook| webhook.at),
            raw.agents.as_ref().map(|agents| agents.at),
        ];
        let there: Vec<Location> = services.into_iter().flatten().collect();
        let at = there.get(1).copied().unwrap_or(raw.name.at);
        self.only(at, "suricata, clamav, json, text, webhook, agents", there)?;
        if let Some(way) = &raw.suricata.0 {
            Some((known(SURICATA), Input::Suricata(self.way(way)?)))
        } else if let Some(way) = &raw.clamav.0 {
            Some((known(CLAMAV), Input::Clamav(self.way(way)?)))
        } else if let Some(way) = &raw.json.0 {
            Some((Known::new(), Input::Json(self.way(way)?)))
        } else if let Some(text) = &raw.text.0 {
            self.text_lines(text)
        } else if let Some(webhook) = &raw.webhook.0 {
            let listen = &webhook.value.listen;
            let Ok(address) = listen.value.parse() else {
                let message = format!(
                    "\"{}\" is no address and port, such as 192.0.2.1:7444",
                    listen.value
                );
                return self.wrong(listen.at, message);
            };
            let webhook = Webhook {
                listen: address,
                secret: PathBuf::from(&webhook.value.secret.value),
            };
            Some((Known::new(), Input::Webhook(webhook)))
        } else {
            let agents = &raw.agents.as_ref()?.value;
            let sockets = sockets(&agents.directory, agents.group.as_ref());
            Some((Known::new(), Input::Agents(sockets)))
        }
    }

    /// Lines of text: the groups of their patterns are fields.
    fn text_lines(&mut self, raw: &At<RawText>) -> Option<(Known, Input)> {
        let text = &raw.value;
        let way = self.one_way(raw.at, &text.file, &text.socket, &text.group, &Maybe(None))?;
        let (mut known, mut like) = (Known::new(), Vec::new());
        for pattern in text.like.iter() {
            match regex::Regex::new(&pattern.value) {
                Ok(regex) => {
                    let groups = regex.capture_names().flatten();
                    known.extend(groups.map(|name| (name.to_owned(), format!("/{name}"))));
                    like.push(regex);
                }
                Err(error) => self.wrong(pattern.at, not_regular(&error))?,
            }
        }
        Some((known, Input::Text(way, like)))
    }

    fn way(&mut self, raw: &At<RawWay>) -> Option<Way> {
        let way = &raw.value;
        self.one_way(raw.at, &way.file, &way.socket, &way.group, &way.told)
    }

    fn one_way(
        &mut self,
        at: Location,
        file: &Maybe<At<String>>,
        socket: &Maybe<At<String>>,
        group: &Maybe<At<String>>,
        told: &Maybe<At<Vec<String>>>,
    ) -> Option<Way> {
        if let Some(group) = group.as_ref().filter(|_| socket.is_none()) {
            return self.wrong(group.at, "group says nothing here: it goes with socket");
        }
        let file = file.iter().map(|file| Way::File(PathBuf::from(&file.value)));
        let socket = socket
            .iter()
            .map(|path| Way::Socket(sockets(path, group.as_ref())));
        let told = told.iter().map(|people| Way::Told(people.value.clone()));
        self.only(at, "file, socket, told", file.chain(socket).chain(told).collect())
    }

    fn field(&mut self, name: &str, at: Location) -> Option<Field> {
        if name.starts_with('/') {
            return Some(Field(name.to_owned()));
        }
        if let Some((_, pointer)) = self.known.iter().find(|(known, _)| known == name) {
            return Some(Field(pointer.clone()));
        }
        let message =
            format!("no field is called \"{name}\": expected a JSON pointer such as /a/b, or a known name");
        let known = self.known.clone();
        self.unknown(at, message, name, known.iter().map(|(known, _)| known.as_str()))
    }

    fn text(&mut self, text: &str, at: Location) -> Option<Text> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let Some((name, after)) = behind.split_once('}') else {
                return self.wrong(at, format!("\"{text}\": a {{ without its }}"));
            };
            if !before.is_empty() {
                parts.push(Part::Fixed(before.to_owned()));
            }
            parts.push(Part::Field(self.field(name, at)?));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Fixed(rest.to_owned()));
        }
        if parts.is_empty() {
            return self.wrong(
                at,
                "an empty text: expected a name, or a field such as \"{/a/b}\"",
            );
        }
        Some(Text(parts))
    }

    fn texts(&mut self, text: &At<String>) -> Option<Text> {
        self.text(&text.value, text.at)
    }

    fn tests(&mut self, when: Option<&BTreeMap<String, At<Words>>>) -> Vec<Test> {
        let mut tests = Vec::new();
        for (name, words) in when.into_iter().flatten() {
            let field = self.field(name, words.at);
            tests.extend(field.map(|field| Test {
                field,
                like: words.value.texts().map(Glob::new).collect(),
            }));
        }
        tests
    }

    fn finders(&mut self, raw: &[At<RawFinder>]) -> Vec<Finder> {
        raw.iter()
            .filter_map(|one| {
                Some(Finder {
                    when: self.tests(one.value.when.as_ref()),
                    by: self.by(&one.value, one.at)?,
                })
            })
            .collect()
    }

    fn by(&mut self, raw: &RawFinder, at: Location) -> Option<By> {
        let fields = [&raw.id, &raw.within, &raw.interface, &raw.mac, &raw.address];
        let found = fields.into_iter().flat_map(|field| field.iter()).collect();
        self.only(at, "id, in, interface, mac, address", found)?;
        let beside = [
            (
                "like",
                raw.like.as_ref().map(|like| like.at),
                raw.within.is_some(),
            ),
            (
                "vlan",
                raw.vlan.as_ref().map(|vlan| vlan.at),
                raw.interface.is_some(),
            ),
            (
                "network",
                raw.network.as_ref().map(|network| network.at),
                raw.mac.is_some() || raw.address.is_some(),
            ),
        ];
        for (name, there, fits) in beside {
            if let Some(at) = there.filter(|_| !fits) {
                return self.wrong(
                    at,
                    format!("{name} says nothing here: see which fields it goes with"),
                );
            }
        }
        let network = match &raw.network.0 {
            Some(network) => Some(self.network(network)?),
            None => None,
        };
        if let Some(id) = &raw.id.0 {
            let text = self.texts(id)?;
            if let [Part::Fixed(id_text)] = &text.0[..]
                && !self
                    .policy
                    .guests
                    .iter()
                    .any(|guest| guest.id == *id_text || guest.uuid == *id_text)
            {
                let message = format!("no guest \"{id_text}\" is declared in the policy");
                let all = self.policy.guests.iter().map(|guest| guest.id.as_str());
                return self.unknown(id.at, message, id_text, all);
            }
            Some(By::Id(text))
        } else if let Some(within) = &raw.within.0 {
            let field = self.field(&within.value, within.at)?;
            let Some(like) = &raw.like.0 else {
                return self.wrong(
                    at,
                    "in needs like: a regular expression with a group (?<guest>...)",
                );
            };
            match regex::Regex::new(&like.value) {
                Ok(regex) if regex.capture_names().flatten().any(|name| name == "guest") => {
                    Some(By::Within(field, regex))
                }
                Ok(_) => self.wrong(
                    like.at,
                    "the pattern has no group (?<guest>...): where is the guest?",
                ),
                Err(error) => self.wrong(like.at, not_regular(&error)),
            }
        } else if let Some(interface) = &raw.interface.0 {
            let vlan = match &raw.vlan.0 {
                Some(vlan) => Some(self.text(&vlan.value, vlan.at)?),
                None => None,
            };
            Some(By::Interface(self.texts(interface)?, vlan))
        } else if let Some(mac) = &raw.mac.0 {
            Some(By::Mac(self.texts(mac)?, network))
        } else {
            let address = self.texts(raw.address.as_ref()?)?;
            let Some(network) = network else {
                return self.wrong(
                    at,
                    "address needs network: several guests may have the same address",
                );
            };
            Some(By::Address(address, network))
        }
    }

    fn network(&mut self, name: &At<String>) -> Option<NetworkIndex> {
        let found = self.policy.network(&name.value);
        if found.is_some() {
            return found;
        }
        let message = format!("no network \"{}\" is declared in the policy", name.value);
        let all = self.policy.networks.iter().map(|network| network.name.as_str());
        self.unknown(name.at, message, &name.value, all)
    }

    fn meaning(&mut self, raw: &RawMeaning, at: Location) -> Option<Meaning> {
        let places = [
            raw.tag.as_ref().map(|tag| tag.at),
            raw.clear.as_ref().map(|clear| clear.at),
            raw.login.as_ref().map(|login| login.at),
            raw.logout.as_ref().map(|logout| logout.at),
            raw.ignore.as_ref().map(|ignore| ignore.at),
        ];
        let there: Vec<Location> = places.into_iter().flatten().collect();
        let at = there.first().copied().unwrap_or(at);
        self.only(at, "tag, clear, login, logout, ignore", there)?;
        let when = self.tests(raw.when.as_ref());
        let guests = self.finders(&raw.guest);
        let says = if let Some(tag) = &raw.tag.0 {
            self.tag(&tag.value)?
        } else if let Some(clear) = &raw.clear.0 {
            Says::Clear {
                name: self.texts(&clear.value.name)?,
            }
        } else if let Some(login) = &raw.login.0 {
            Says::Login {
                user: self.texts(&login.value.user)?,
                groups: login
                    .value
                    .groups
                    .iter()
                    .filter_map(|group| self.texts(group))
                    .collect(),
            }
        } else if let Some(logout) = &raw.logout.0 {
            Says::Logout {
                user: self.texts(&logout.value.user)?,
            }
        } else {
            match &raw.ignore.0 {
                Some(ignore) if ignore.value => Says::Nothing,
                _ => return self.wrong(at, "ignore: false says nothing: expected true, or no ignore"),
            }
        };
        Some(Meaning { when, guests, says })
    }

    fn tag(&mut self, raw: &RawTag) -> Option<Says> {
        let name = self.texts(&raw.name);
        let severity = self.text(&raw.severity.value, raw.severity.at)?;
        if let [Part::Fixed(fixed)] = &severity.0[..]
            && !fixed.parse().is_ok_and(|number: u8| number <= 100)
        {
            return self.wrong(
                raw.severity.at,
                format!("\"{fixed}\" is no severity: expected 0 to 100, or a field such as \"{{/score}}\""),
            );
        }
        let lasts = match &raw.lasts.0 {
            None => None,
            Some(lasts) => match duration(&lasts.value) {
                Ok(duration) if !duration.is_zero() => Some(duration),
                Ok(_) => self.wrong(lasts.at, "lasts: expected more than nothing")?,
                Err(why) => self.wrong(lasts.at, format!("\"{}\" {why}", lasts.value))?,
            },
        };
        Some(Says::Tag {
            name: name?,
            severity,
            lasts,
        })
    }
}

fn sockets(path: &At<String>, group: Option<&At<String>>) -> Sockets {
    Sockets {
        path: PathBuf::from(&path.value),
        group: group.map(|group| group.value.clone()),
    }
}

/// The last line of what the parser says is the reason; the lines before show the pattern.
fn not_regular(error: &regex::Error) -> String {
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default();
    format!("no regular expression: {}", reason.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests;
