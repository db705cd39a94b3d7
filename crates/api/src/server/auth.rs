//! The bearer token of every request.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use godwit_types::{ApiError, ErrorCode};

use super::documents::ErrorResponse;
use crate::token::Token;

/// `router`, whose routes so far answer only requests that carry `Authorization: Bearer TOKEN`. Routes added
/// afterwards are open.
pub fn require_token<S: Clone + Send + Sync + 'static>(router: Router<S>, token: Token) -> Router<S> {
    router.route_layer(from_fn_with_state(token, check))
}

async fn check(State(token): State<Token>, request: Request, next: Next) -> Result<Response, ErrorResponse> {
    match bearer(request.headers()) {
        Some(given) if token.matches(given) => Ok(next.run(request).await),
        Some(_) => Err(unauthorized("the token is not the manager's")),
        None => Err(unauthorized("the request carries no bearer token")),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn unauthorized(message: &str) -> ErrorResponse {
    ErrorResponse(
        ApiError::new(ErrorCode::Unauthorized, message)
            .remedy("name the manager's token file with --token-file or GODWIT_TOKEN_FILE"),
    )
}
