//! `/v1/events`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use godwit_api::server::{ErrorResponse, Json, Query};
use godwit_types::event::Event;
use godwit_types::{ApiError, ErrorCode};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Shared;
use crate::manager::Manager;

/// Events read from the store at once.
const BATCH: u64 = 100;
/// Events that one JSON answer lists at most.
const LIST_MAX: u64 = 10_000;
/// Events that wait for a slow client.
const QUEUE_MAX: usize = 16;
/// How often a silent stream says that it is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize)]
pub(super) struct After {
    #[serde(default)]
    after: u64,
}

/// What happened after the event with the sequence number `after`.
///
/// A stream of server-sent events without an end; `Last-Event-ID` overrides `after`. To a client that accepts
/// `application/json` and not `text/event-stream`: an array of the events that are kept.
#[utoipa::path(get, path = "/v1/events", operation_id = "follow_events", tag = "events",
    params(("after" = Option<u64>, Query), ("Last-Event-ID" = Option<u64>, Header)),
    responses(
        (status = 200, content((String = "text/event-stream"), (Vec<Event> = "application/json"))),
        (status = "default", body = ApiError)))]
pub(super) async fn follow(
    State(manager): Shared,
    Query(After { after }): Query<After>,
    headers: HeaderMap,
) -> Result<Response, ErrorResponse> {
    let after = last_event_id(&headers)?.unwrap_or(after);
    let accepted = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accepted.contains("application/json") && !accepted.contains("text/event-stream") {
        let events = manager.store.read(move |tx| Ok(tx.events_after(after, LIST_MAX)?)).await?;
        return Ok(Json(events).into_response());
    }
    let (queue, events) = mpsc::channel(QUEUE_MAX);
    manager.spawn(feed(Arc::clone(&manager), after, queue));
    Ok(Sse::new(ReceiverStream::new(events))
        .keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| {
        ApiError::new(
            ErrorCode::Invalid,
            "the header Last-Event-ID does not carry an event's sequence number",
        )
    })
}

/// Sends events until the client is gone or the manager ends.
async fn feed(manager: Arc<Manager>, mut after: u64, queue: mpsc::Sender<Result<sse::Event, Infallible>>) {
    let (mut news, mut stop) = (manager.store.last_event(), manager.stop.subscribe());
    loop {
        // Marked seen before the reading, so that nothing in between is missed.
        news.borrow_and_update();
        let events = match manager.store.read(move |tx| Ok(tx.events_after(after, BATCH)?)).await {
            Ok(events) => events,
            Err(error) => return tracing::error!("an event stream ends: {error}"),
        };
        for event in &events {
            let Ok(data) = serde_json::to_string(event) else { continue };
            let item = sse::Event::default().id(event.sequence.to_string()).data(data);
            if queue.send(Ok(item)).await.is_err() {
                return;
            }
            after = event.sequence;
        }
        if events.is_empty() {
            tokio::select! {
                changed = news.changed() => if changed.is_err() { return },
                _ = stop.changed() => return,
                () = queue.closed() => return,
            }
        }
    }
}
