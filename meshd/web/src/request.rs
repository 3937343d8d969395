//! Reading a request: query and body, with errors that name the field.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Query;
use axum::http::{HeaderMap, Uri, header};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use vdc_api::{ApiError, ErrorCode, MEDIA_BYTES, MEDIA_JSON, REQUEST_BYTES_MAX};

/// How much of an oversize body is read and thrown away, so that the client gets to read the refusal: closing a unix socket
/// with unread bytes in it resets the peer.
const DISCARD_BYTES_MAX: usize = 16 * REQUEST_BYTES_MAX;

/// Parses the query string.
pub(crate) fn parse_query<Q: DeserializeOwned>(uri: &Uri) -> Result<Q, ApiError> {
    Query::<Q>::try_from_uri(uri).map(|Query(query)| query).map_err(|rejection| {
        // "Failed to …: FIELD: REASON", or without the field.
        let text = rejection.body_text();
        let text = text.split_once(": ").map_or(text.as_str(), |(_, rest)| rest);
        let (field, text) = match text.split_once(": ") {
            Some((field, rest)) if !field.contains(' ') => (Some(field), rest),
            _ => (quoted_field(text), text),
        };
        let error = ApiError::new(ErrorCode::BadRequest, format!("the query is not valid: {text}"));
        ApiError { field: field.map(str::to_owned), ..error }
    })
}

/// Parses the body. An empty one stands for nothing, or for all defaults.
pub(crate) fn parse_body<B: DeserializeOwned>(body: &[u8]) -> Result<B, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return serde_json::from_str("null").or_else(|_| parse_body(b"{}"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = Some(error.path().to_string()).filter(|path| path != "." && !path.contains('?'));
        let text = error.inner().to_string();
        let field = match (path, quoted_field(&text)) {
            (Some(path), Some(name)) if path != name && !path.ends_with(&format!(".{name}")) => {
                Some(format!("{path}.{name}"))
            }
            (Some(path), _) => Some(path),
            (None, name) => name.map(str::to_owned),
        };
        ApiError { field, ..ApiError::new(ErrorCode::BadRequest, format!("the request body is not valid: {text}")) }
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::new(ErrorCode::BadRequest, format!("the request body is not valid: {error}")))?;
    Ok(value)
}

/// The name in serde's "unknown field `x`" and "missing field `x`".
fn quoted_field(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("unknown field `").or_else(|| text.strip_prefix("missing field `"))?;
    rest.split('`').next()
}

/// Reads the body within the limits.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body, deadline: Duration) -> Result<Bytes, ApiError> {
    let bytes = tokio::time::timeout(deadline, collect(body))
        .await
        .map_err(|_| ApiError::new(ErrorCode::Timeout, "the request body did not arrive in time"))??;
    if !bytes.is_empty() && !is_media(headers, MEDIA_JSON) {
        let error = ApiError::new(ErrorCode::UnsupportedMediaType, "the request body is not declared as JSON");
        return Err(error.hint(format!("send it with `content-type: {MEDIA_JSON}`")));
    }
    Ok(bytes)
}

/// Refuses an upload that is declared as something else than bytes.
pub(crate) fn check_bytes(headers: &HeaderMap) -> Result<(), ApiError> {
    if is_media(headers, MEDIA_BYTES) {
        return Ok(());
    }
    let error = ApiError::new(ErrorCode::UnsupportedMediaType, "the request body is not declared as bytes");
    Err(error.hint(format!("send it with `content-type: {MEDIA_BYTES}`")))
}

async fn collect(mut body: Body) -> Result<Bytes, ApiError> {
    let mut bytes = BytesMut::new();
    let mut seen = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::new(ErrorCode::BadRequest, "the request body broke off"))?;
        let Ok(chunk) = frame.into_data() else { continue };
        seen = seen.saturating_add(chunk.remaining());
        if seen <= REQUEST_BYTES_MAX {
            bytes.extend_from_slice(&chunk);
        } else if seen > DISCARD_BYTES_MAX {
            break;
        }
    }
    if seen > REQUEST_BYTES_MAX {
        return Err(ApiError::new(
            ErrorCode::TooLarge,
            format!("the request body is larger than {REQUEST_BYTES_MAX} bytes"),
        ));
    }
    Ok(bytes.freeze())
}

/// The media type, with or without parameters.
fn is_media(headers: &HeaderMap, media: &str) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    value.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case(media)
}

#[cfg(test)]
mod tests {
    use vdc_api::{ExposureChange, LeaveRequest, SiteAdd, StatusQuery, VdcCreate};

    use super::*;

    fn field_of<B: DeserializeOwned + std::fmt::Debug>(body: &str) -> Option<String> {
        let error = parse_body::<B>(body.as_bytes()).expect_err("malformed");
        assert_eq!(error.code, ErrorCode::BadRequest);
        error.field
    }

    #[test]
    fn errors_name_the_field() {
        assert_eq!(field_of::<VdcCreate>(r#"{"name":"a"}"#).as_deref(), Some("site"));
        assert_eq!(field_of::<VdcCreate>(r#"{"name":"a","site":"b","ipv5":1}"#).as_deref(), Some("ipv5"));
        assert_eq!(field_of::<VdcCreate>(r#"{"name":7,"site":"b"}"#).as_deref(), Some("name"));
        assert_eq!(field_of::<ExposureChange>(r#"{"add":["80",81]}"#).as_deref(), Some("add[1]"));
        assert_eq!(field_of::<SiteAdd>(r#"{"name":"a","expires_s":-1}"#).as_deref(), Some("expires_s"));
        assert_eq!(field_of::<VdcCreate>("{"), None);
        assert_eq!(field_of::<VdcCreate>(r#"{"name":"a","site":"b"} x"#), None);
        assert_eq!(field_of::<VdcCreate>("\u{0}\u{1}"), None);
    }

    #[test]
    fn empty_body_is_nothing_or_all_defaults() {
        parse_body::<()>(b"").expect("nothing");
        assert_eq!(parse_body::<LeaveRequest>(b" \n").expect("defaults"), LeaveRequest::default());
        assert_eq!(field_of::<VdcCreate>("").as_deref(), Some("name"));
    }

    #[test]
    fn query_errors_name_the_field() {
        let query = |text: &str| parse_query::<StatusQuery>(&text.parse::<Uri>().expect("a URI"));
        assert_eq!(query("/v1/status?vdc=acme").expect("valid").vdc.as_deref(), Some("acme"));
        assert_eq!(query("/v1/status?vcd=acme").expect_err("misspelt").field.as_deref(), Some("vcd"));
        assert!(parse_query::<()>(&"/x?y=1".parse::<Uri>().expect("a URI")).is_err());
        parse_query::<()>(&"/x".parse::<Uri>().expect("a URI")).expect("no query");
    }
}
