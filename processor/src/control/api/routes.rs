//! What can be asked by HTTP, and its description in OpenAPI: each route and its description are one.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use futures_util::stream;
use guestseal_rules::event::{self, Event, Moment, What};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, broadcast};
use utoipa::openapi::{Info, OpenApi};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::control::added::{AddedGuest, AddedPort};
use crate::control::journal::Journal;
use crate::control::reload::Reloaded;
use crate::control::sources::Teller;
use crate::wire::ethernet::MacAddress;

use super::access::{Caller, Right};
use super::problem::Problem;
use super::{Ask, Counter, limits};

type Answer = Result<Json<Value>, Problem>;

#[derive(Clone)]
struct Api {
    counter: Counter,
    streams: Arc<Semaphore>,
}

impl Api {
    async fn ask(&self, caller: &Caller, needed: Right, ask: Ask) -> Answer {
        permit(caller, needed)?;
        self.counter.ask(caller.name(), ask).await.map(Json)
    }

    async fn event(&self, caller: &Caller, guest: String, time: Option<Moment>, what: What) -> Answer {
        self.ask(caller, Right::Change, Ask::Event(Event { time, guest, what }))
            .await
    }
}

fn permit(caller: &Caller, needed: Right) -> Result<(), Problem> {
    if caller.may(needed) {
        return Ok(());
    }
    let verb = match needed {
        Right::Read => "read",
        Right::Change => "change",
    };
    let message = format!(
        "{} may not {verb} here: expected root, guestseal's own user, or one that api: in the host's file lets {verb}",
        caller.name()
    );
    Err(Problem::new(StatusCode::FORBIDDEN, "Forbidden", message))
}

/// A body of JSON, whatever its type is called.
struct Told<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Told<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let name = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => "TooLarge",
                _ => "Unreadable",
            };
            Problem::new(rejection.status(), name, rejection.body_text())
        })?;
        serde_json::from_slice(&bytes)
            .map(Told)
            .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "Malformed", format!("the body: {error}")))
    }
}

/// What stands behind the question mark.
struct Asked<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(asked)| Asked(asked))
            .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "Malformed", error.body_text()))
    }
}

/// A tag that a security service has put on a guest.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TagBody {
    /// The security service.
    service: String,
    /// The tag's name.
    name: String,
    /// How bad, 0 to 100.
    severity: u8,
    /// How long it lasts if it is not set again, such as `12h`; until it is cleared without it.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    lasts: Option<event::Lasts>,
    /// When it was seen, as RFC 3339 writes it; now without it.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    time: Option<Moment>,
}

/// Tags that are cleared.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct TagQuery {
    /// The security service; `*` stands for any characters.
    service: String,
    /// Their name; `*` stands for any characters.
    name: String,
}

/// Into which container.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ContainerBody {
    /// Its name.
    container: String,
}

/// A guest's card and the interface that it is behind.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PortBody {
    /// Id or UUID of the guest.
    guest: String,
    /// The card's MAC, as the policy has it.
    mac: String,
    /// The interface.
    interface: String,
    /// The logical network, for a guest that is in no file of the policy.
    #[serde(default)]
    network: Option<String>,
    /// That guest's addresses at this port.
    #[serde(default)]
    addresses: Vec<String>,
    /// That guest's host; this one without it.
    #[serde(default)]
    host: Option<String>,
    /// That guest's UUID; its id without it.
    #[serde(default)]
    uuid: Option<String>,
    /// That guest's labels.
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Whose port.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PortQuery {
    /// The host whose it is; this one without it.
    #[serde(default)]
    host: Option<String>,
}

/// On which host.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct HostBody {
    /// Its name.
    host: String,
}

/// Which part of the journal.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct JournalQuery {
    /// Entries behind this number.
    #[serde(default)]
    after: u64,
    /// At most so many, and at most 1000.
    #[serde(default)]
    most: Option<usize>,
}

/// That it is in force, and durable.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::control) struct Accepted {
    /// The generation of the rules that hold since.
    pub(in crate::control) generation: u32,
}

#[utoipa::path(get, path = "/v1/status", responses((status = 200, description = "Everything in short", body = Value)))]
async fn status(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer {
    api.ask(&caller, Right::Read, Ask::Status).await
}

#[utoipa::path(get, path = "/v1/guests", responses((status = 200, description = "All guests", body = Value)))]
async fn guests(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer {
    api.ask(&caller, Right::Read, Ask::Guests).await
}

#[utoipa::path(get, path = "/v1/guests/{guest}", params(("guest" = String, Path, description = "Id or UUID")),
    responses((status = 200, description = "One guest", body = Value), (status = 404, body = Problem)))]
async fn guest(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(guest): Path<String>,
) -> Answer {
    api.ask(&caller, Right::Read, Ask::Guest(guest)).await
}

#[utoipa::path(get, path = "/v1/containers", responses((status = 200, description = "All containers", body = Value)))]
async fn containers(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer {
    api.ask(&caller, Right::Read, Ask::Containers).await
}

#[utoipa::path(get, path = "/v1/ports", responses((status = 200, description = "The guest ports of this host", body = Value)))]
async fn ports(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer {
    api.ask(&caller, Right::Read, Ask::Ports).await
}

#[utoipa::path(get, path = "/v1/endpoints", responses((status = 200, description = "Where all guest ports are", body = Value)))]
async fn endpoints(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer {
    api.ask(&caller, Right::Read, Ask::Endpoints).await
}

#[utoipa::path(get, path = "/v1/security-associations",
    responses((status = 200, description = "Security associations", body = Value)))]
async fn security_associations(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer {
    api.ask(&caller, Right::Read, Ask::SecurityAssociations).await
}

#[utoipa::path(get, path = "/v1/counters",
    responses((status = 200, description = "Packets by outcome and rule", body = Value)))]
async fn counters(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer {
    api.ask(&caller, Right::Read, Ask::Counters).await
}

#[utoipa::path(get, path = "/v1/histograms",
    responses((status = 200, description = "Latencies in ns by direction and outcome", body = Value)))]
async fn histograms(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer {
    api.ask(&caller, Right::Read, Ask::Histograms).await
}

/// Tells of something that happened to a guest: a tag, a login, a label, a flow. The answer comes when it is in force and
/// durable.
#[utoipa::path(post, path = "/v1/events", request_body(content = Value, description = "One event, as in a file of events"),
    responses((status = 200, body = Accepted), (status = 400, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn post_event(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Told(event): Told<Event>,
) -> Answer {
    api.ask(&caller, Right::Change, Ask::Event(event)).await
}

/// Tells of something in the words of a source: what it means, and of which guest, says the file of sources. The answer comes when it
/// is in force and durable.
#[utoipa::path(post, path = "/v1/sources/{source}/reports", params(("source" = String, Path, description = "Its name")),
    request_body(content = Value, description = "One report"),
    responses((status = 200, body = Accepted), (status = 403, body = Problem), (status = 404, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem)))]
async fn post_report(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(source): Path<String>,
    Told(report): Told<Value>,
) -> Answer {
    let answer = api.counter.report(source, report, Teller::Caller(caller)).await;
    answer.map(Json)
}

/// Sets a tag, or sets it once more.
#[utoipa::path(post, path = "/v1/guests/{guest}/tags", params(("guest" = String, Path, description = "Id or UUID")), request_body = TagBody,
    responses((status = 200, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn set_tag(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(guest): Path<String>,
    Told(tag): Told<TagBody>,
) -> Answer {
    let what = What::Tag(event::TagSet {
        service: tag.service,
        name: tag.name,
        severity: tag.severity,
        lasts: tag.lasts,
    });
    api.event(&caller, guest, tag.time, what).await
}

/// Clears tags.
#[utoipa::path(delete, path = "/v1/guests/{guest}/tags", params(("guest" = String, Path, description = "Id or UUID"), TagQuery),
    responses((status = 200, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn clear_tags(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(guest): Path<String>,
    Asked(tags): Asked<TagQuery>,
) -> Answer {
    let what = What::Clear(event::TagClear {
        service: tags.service,
        name: tags.name,
    });
    api.event(&caller, guest, None, what).await
}

/// Moves a guest into a container by hand; the rules may move it on.
#[utoipa::path(post, path = "/v1/guests/{guest}/transfer", params(("guest" = String, Path, description = "Id or UUID")), request_body = ContainerBody,
    responses((status = 200, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn transfer(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(guest): Path<String>,
    Told(ContainerBody { container }): Told<ContainerBody>,
) -> Answer {
    let what = What::Transfer(event::Into { container });
    api.event(&caller, guest, None, what).await
}

/// Holds a guest in a container, whatever the rules say.
#[utoipa::path(post, path = "/v1/guests/{guest}/pin", params(("guest" = String, Path, description = "Id or UUID")), request_body = ContainerBody,
    responses((status = 200, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn pin(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(guest): Path<String>,
    Told(ContainerBody { container }): Told<ContainerBody>,
) -> Answer {
    let what = What::Pin(event::Into { container });
    api.event(&caller, guest, None, what).await
}

/// Gives a pinned guest back to where it was.
#[utoipa::path(delete, path = "/v1/guests/{guest}/pin", params(("guest" = String, Path, description = "Id or UUID")),
    responses((status = 200, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn unpin(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(guest): Path<String>,
) -> Answer {
    api.event(&caller, guest, None, What::Unpin(event::Nothing {}))
        .await
}

/// Moves a guest back to where it came from.
#[utoipa::path(post, path = "/v1/guests/{guest}/release", params(("guest" = String, Path, description = "Id or UUID")),
    responses((status = 200, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn release(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(guest): Path<String>,
) -> Answer {
    api.event(&caller, guest, None, What::Release(event::Nothing {}))
        .await
}

/// A guest's card is behind an interface of this host, whatever the policy calls it: its port is served by that one until it is
/// gone or removed. With a network it is a port of a guest that is in no file of the policy, and is in force like a reload.
#[utoipa::path(post, path = "/v1/ports", request_body = PortBody,
    responses((status = 200, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem), (status = 422, body = Problem)))]
async fn add_port(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Told(port): Told<PortBody>,
) -> Answer {
    let mac: MacAddress = port.mac.parse().map_err(|_| {
        let message = format!(
            "\"{}\" is no MAC: expected one such as 02:00:00:01:00:01",
            port.mac
        );
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "OutOfRange", message)
    })?;
    let ask = match port.network {
        None => Ask::AddPort {
            guest: port.guest,
            mac,
            interface: port.interface,
        },
        Some(network) => Ask::AddGuest(AddedGuest {
            id: port.guest,
            uuid: port.uuid,
            host: port.host.unwrap_or_default(),
            labels: port.labels,
            ports: vec![AddedPort {
                interface: port.interface,
                network,
                mac: mac.to_string(),
                addresses: port.addresses,
            }],
        }),
    };
    api.ask(&caller, Right::Change, ask).await
}

/// An interface that was added is no guest port any more.
#[utoipa::path(delete, path = "/v1/ports/{interface}", params(("interface" = String, Path, description = "The interface"), PortQuery),
    responses((status = 200, body = Accepted), (status = 404, body = Problem)))]
async fn remove_port(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(interface): Path<String>,
    Asked(PortQuery { host }): Asked<PortQuery>,
) -> Answer {
    let ask = Ask::RemovePort { host, interface };
    api.ask(&caller, Right::Change, ask).await
}

/// A guest is on another host: what is for it goes there from the next batch of packets on. Every host is to be told.
#[utoipa::path(post, path = "/v1/guests/{guest}/move", params(("guest" = String, Path, description = "Id or UUID")), request_body = HostBody,
    responses((status = 200, body = Accepted), (status = 404, body = Problem), (status = 409, body = Problem)))]
async fn move_guest(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Path(guest): Path<String>,
    Told(HostBody { host }): Told<HostBody>,
) -> Answer {
    api.ask(&caller, Right::Change, Ask::Move { guest, host }).await
}

/// Reads the host's file and the policy's files again. The answer comes when the policy is in force and durable; a mistake in any
/// of them changes nothing, and is named with its file, line and what was expected.
#[utoipa::path(post, path = "/v1/policy/reload",
    responses((status = 200, body = Reloaded), (status = 409, body = Problem, description = "It changes what is fixed while guestseal runs"),
        (status = 422, body = Problem, description = "A mistake in a file")))]
async fn reload(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Answer {
    api.ask(&caller, Right::Change, Ask::Reload).await
}

/// Who did what and when. Asking for everything behind the last number that was seen loses nothing that is kept.
#[utoipa::path(get, path = "/v1/journal", params(JournalQuery),
    responses((status = 200, description = "Entries of the journal", body = Value)))]
async fn journal(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    Asked(asked): Asked<JournalQuery>,
) -> Answer {
    permit(&caller, Right::Read)?;
    let most = asked.most.unwrap_or(limits::ENTRIES).min(limits::ENTRIES);
    let directory = api.counter.state_directory.clone();
    let read = tokio::task::spawn_blocking(move || Journal::read_after(&directory, asked.after, most));
    let failed = |why: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "Journal", why);
    let entries = read
        .await
        .map_err(|error| failed(error.to_string()))?
        .map_err(|error| failed(crate::control::supervise::chain(&error)))?;
    Ok(Json(json!(entries)))
}

/// What is done from here on, as server-sent events: entries of the journal without their numbers. A listener that is too slow is
/// told by an event `lost` how many it has missed.
#[utoipa::path(get, path = "/v1/events", responses((status = 200, description = "Server-sent events", content_type = "text/event-stream")))]
async fn events(State(api): State<Api>, Extension(caller): Extension<Caller>) -> Result<Response, Problem> {
    permit(&caller, Right::Read)?;
    let Ok(place) = Arc::clone(&api.streams).try_acquire_owned() else {
        let message = "too many event streams at once: end another one first";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", message));
    };
    let receiver = api.counter.news.subscribe();
    let news = stream::unfold((receiver, place), |(mut receiver, place)| async move {
        let event = match receiver.recv().await {
            Ok(text) => SseEvent::default().data(&*text),
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                SseEvent::default().event("lost").data(lost.to_string())
            }
            Err(broadcast::error::RecvError::Closed) => return None,
        };
        Some((Ok::<_, std::convert::Infallible>(event), (receiver, place)))
    });
    Ok(Sse::new(news)
        .keep_alive(KeepAlive::new().interval(limits::PULSE))
        .into_response())
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "This description in OpenAPI", body = Value)))]
async fn description(Extension(caller): Extension<Caller>) -> Answer {
    permit(&caller, Right::Read)?;
    Ok(Json(json!(openapi())))
}

fn described() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(OpenApi::new(
        Info::new("Guestseal", env!("CARGO_PKG_VERSION")),
        utoipa::openapi::Paths::new(),
    ))
    .routes(routes!(status))
    .routes(routes!(guests))
    .routes(routes!(guest))
    .routes(routes!(set_tag, clear_tags))
    .routes(routes!(transfer))
    .routes(routes!(pin, unpin))
    .routes(routes!(release))
    .routes(routes!(move_guest))
    .routes(routes!(containers))
    .routes(routes!(reload))
    .routes(routes!(ports, add_port))
    .routes(routes!(remove_port))
    .routes(routes!(endpoints))
    .routes(routes!(security_associations))
    .routes(routes!(counters))
    .routes(routes!(histograms))
    .routes(routes!(journal))
    .routes(routes!(events, post_event))
    .routes(routes!(post_report))
    .routes(routes!(description))
}

/// What can be asked, in OpenAPI.
#[must_use]
pub fn openapi() -> OpenApi {
    described().split_for_parts().1
}

/// What takes longer than other answers.
const RELOAD: &str = "/v1/policy/reload";
const PORTS: &str = "/v1/ports";

pub(super) async fn in_time(request: Request, next: Next) -> Response {
    let time = match request.uri().path() {
        path if path == RELOAD || path.starts_with(PORTS) => limits::RELOAD_TIME,
        _ => limits::ANSWER_TIME,
    };
    match tokio::time::timeout(time, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let seconds = time.as_secs();
            let message = format!("no whole request and answer within {seconds} s");
            Problem::new(StatusCode::REQUEST_TIMEOUT, "Slow", message).into_response()
        }
    }
}

async fn nowhere() -> Problem {
    let message = "there is no such path: see /v1/openapi.json";
    Problem::new(StatusCode::NOT_FOUND, "UnknownPath", message)
}

async fn otherwise() -> Problem {
    let message = "this path is asked by another method: see /v1/openapi.json";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "UnknownMethod", message)
}

pub(super) fn router(counter: Counter) -> Router {
    let streams = Arc::new(Semaphore::new(limits::STREAMS));
    let (router, _) = described().split_for_parts();
    router
        .fallback(nowhere)
        .method_not_allowed_fallback(otherwise)
        .with_state(Api { counter, streams })
        .layer(DefaultBodyLimit::max(limits::BODY))
        .layer(middleware::from_fn(in_time))
}
