//! What a caller is told instead of an answer.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use guestseal_rules::containers::Refusal;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An error: a name for programs, and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// HTTP's status.
    #[serde(skip)]
    pub status: u16,
    /// Its name.
    pub error: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Problem {
    /// A problem.
    pub(in crate::control) fn new(status: StatusCode, error: &str, message: impl Into<String>) -> Self {
        Self {
            status: status.as_u16(),
            error: error.to_owned(),
            message: message.into(),
        }
    }

    pub(in crate::control) fn unknown_guest(name: &str) -> Self {
        let message = format!("guest \"{name}\": no guest has this id or UUID");
        Self::new(StatusCode::NOT_FOUND, Refusal::UnknownGuest.name(), message)
    }

    pub(in crate::control) fn unknown_source(name: &str) -> Self {
        let message = format!("source \"{name}\": no source of this name is told of reports");
        Self::new(StatusCode::NOT_FOUND, "UnknownSource", message)
    }

    pub(super) fn busy() -> Self {
        let message = "too many questions wait for the control loop: try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Busy", message)
    }

    pub(super) fn ending() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Ending", "guestseal is ending")
    }

    pub(in crate::control) fn not_durable(why: &str) -> Self {
        let message = format!("it is in force, but a restart would not know of it: {why}");
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "NotDurable", message)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::UnknownGuest | Refusal::UnknownContainer => StatusCode::NOT_FOUND,
            Refusal::GuestAway | Refusal::Duplicate | Refusal::Late | Refusal::Nothing | Refusal::Pinned => {
                StatusCode::CONFLICT
            }
            Refusal::TooMany | Refusal::OutOfRange | Refusal::NotItsFlow | Refusal::NotAHost => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
        };
        Self::new(status, refusal.name(), refusal.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self)).into_response()
    }
}
