//! JSON in and out, and every error as an [`ApiError`] document.

use axum::Router;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use godwit_types::{ApiError, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::REQUEST_BYTES_MAX;

/// `router` with documents for unknown paths and methods, and a bound on request bodies.
pub fn with_error_documents<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
}

/// An error as a response, with the status of its code.
#[derive(Debug)]
pub struct ErrorResponse(pub ApiError);

impl From<ApiError> for ErrorResponse {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

/// A JSON document, in a request or a response.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ErrorResponse;

    async fn from_request(request: Request, state: &S) -> Result<Self, ErrorResponse> {
        let body = Bytes::from_request(request, state).await.map_err(|rejection| match rejection {
            BytesRejection::FailedToBufferBody(_) => {
                invalid(format!("the request's body was cut off or is longer than {REQUEST_BYTES_MAX} bytes"))
            }
            other => invalid(other.body_text()),
        })?;
        serde_json::from_slice(&body).map(Self).map_err(|e| {
            let error =
                ApiError::new(ErrorCode::Invalid, format!("the request's document is not valid: {e}"));
            ErrorResponse(error.remedy("GET /v1/openapi.json of the manager describes every document"))
        })
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(CONTENT_TYPE, "application/json")], body).into_response(),
            Err(error) => {
                let message = format!("cannot write the answer as JSON: {error}");
                (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
            }
        }
    }
}

/// The variable parts of the path.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ErrorResponse> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(value)| Self(value)).map_err(|e| invalid(e.body_text()))
    }
}

/// The query.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ErrorResponse;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ErrorResponse> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|axum::extract::Query(value)| Self(value)).map_err(|e| invalid(e.body_text()))
    }
}

fn invalid(message: String) -> ErrorResponse {
    ErrorResponse(ApiError::new(ErrorCode::Invalid, message))
}

async fn unknown_path(uri: Uri) -> ErrorResponse {
    ErrorResponse(ApiError::new(ErrorCode::NotFound, format!("there is nothing at {}", uri.path())))
}

async fn unknown_method(method: Method, uri: Uri) -> ErrorResponse {
    invalid(format!("{} does not take {method}", uri.path()))
}
