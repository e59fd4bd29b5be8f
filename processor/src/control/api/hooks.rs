//! Webhooks: signed reports by HTTP, from whoever knows the secret of a source.
//!
//! `POST /v1/hooks/NAME`. Who may connect is anybody, so nothing else is answered there, and connections are bounded apart from those of
//! the control socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::Value;

use crate::control::sources::Teller;
use crate::control::sources::webhook::{Gate, Headers, Refused, SecretError};

use super::problem::Problem;
use super::{Counter, HookConfig, limits, routes};

/// The webhooks of one address.
#[derive(Clone)]
struct Hooks {
    gates: Arc<BTreeMap<String, Mutex<Gate>>>,
    counter: Counter,
}

/// What is served at each address.
pub(super) fn routers(
    hooks: &[HookConfig],
    counter: &Counter,
) -> Result<BTreeMap<SocketAddr, Router>, SecretError> {
    let mut gates: BTreeMap<SocketAddr, BTreeMap<String, Mutex<Gate>>> = BTreeMap::new();
    for hook in hooks {
        let gate = Mutex::new(Gate::open(&hook.secret)?);
        gates
            .entry(hook.listen)
            .or_default()
            .insert(hook.name.clone(), gate);
    }
    let router = |gates| {
        Router::new()
            .route("/v1/hooks/{name}", post(report))
            .fallback(nowhere)
            .with_state(Hooks {
                gates: Arc::new(gates),
                counter: counter.clone(),
            })
            .layer(DefaultBodyLimit::max(limits::BODY))
            .layer(middleware::from_fn(routes::in_time))
    };
    Ok(gates
        .into_iter()
        .map(|(listen, gates)| (listen, router(gates)))
        .collect())
}

async fn nowhere() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "UnknownPath",
        "expected POST /v1/hooks/NAME",
    )
}

fn refused(refused: Refused) -> Problem {
    let (status, name) = match refused {
        Refused::Headers => (StatusCode::BAD_REQUEST, "Headers"),
        Refused::Signature => (StatusCode::UNAUTHORIZED, "Signature"),
        Refused::Time => (StatusCode::UNAUTHORIZED, "Time"),
        Refused::Replayed => (StatusCode::CONFLICT, "Replayed"),
        Refused::TooMany => (StatusCode::SERVICE_UNAVAILABLE, "Busy"),
    };
    Problem::new(status, name, refused.to_string())
}

async fn report(
    State(hooks): State<Hooks>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    // Which webhooks there are is not told to who knows none of their secrets.
    let gate = hooks
        .gates
        .get(&name)
        .ok_or_else(|| refused(Refused::Signature))?;
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let id = header("webhook-id");
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let told = Headers {
        id,
        timestamp: header("webhook-timestamp"),
        signature: header("webhook-signature"),
    };
    gate.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .accept(told, &body, now)
        .map_err(refused)?;
    let report = serde_json::from_slice(&body)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "Malformed", format!("the body: {error}")))?;
    let answer = hooks.counter.report(name, report, Teller::Webhook).await;
    let again = |problem: &Problem| matches!(problem.status, 429 | 503 | 507);
    if answer.as_ref().is_err_and(again) {
        gate.lock().unwrap_or_else(PoisonError::into_inner).forget(id);
    }
    answer.map(Json)
}
