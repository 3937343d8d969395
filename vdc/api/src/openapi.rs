//! The OpenAPI document, made from the list of operations.

use utoipa::ToSchema;
use utoipa::openapi::path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ComponentsBuilder, ObjectBuilder, Type};
use utoipa::openapi::{
    ContentBuilder, HttpMethod, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, PathItem, Ref, RefOr, Required,
    ResponseBuilder, Schema,
};

use crate::endpoint::{ALL, NamedSchema, Operation};
use crate::{ErrorBody, MEDIA_BYTES, MEDIA_JSON, MEDIA_METRICS, MEDIA_SSE, Method, Reply, endpoint};

/// The API as an OpenAPI 3.1 document. `openapi.json` beside this crate's manifest holds it as JSON.
#[must_use]
pub fn openapi() -> OpenApi {
    let mut components = ComponentsBuilder::new()
        .schema(ErrorBody::name(), <ErrorBody as utoipa::PartialSchema>::schema())
        .schemas_from_iter(inner_schemas::<ErrorBody>());
    let mut document = OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("meshd")
                .version("v1")
                .description(Some(
                    "The API of a node's daemon, served on a unix socket. Reading needs access to the socket; changing \
                     something needs uid 0 or membership of group meshd.",
                ))
                .license(Some(LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build())),
        )
        .build();
    for operation in ALL {
        for named in operation.body.map(|f| f()).into_iter().chain([(operation.response)()]) {
            if is_component(&named) {
                components = components.schema(named.name, named.schema);
            }
            components = components.schemas_from_iter(named.inner);
        }
        let item = PathItem::new(http_method(operation.method), describe(operation));
        match document.paths.paths.get_mut(operation.path) {
            Some(existing) => existing.merge_operations(item),
            None => drop(document.paths.paths.insert(operation.path.to_owned(), item)),
        }
    }
    document.components = Some(components.build());
    document
}

fn inner_schemas<T: ToSchema>() -> Vec<(String, RefOr<Schema>)> {
    let mut inner = Vec::new();
    T::schemas(&mut inner);
    inner
}

/// Strings and bytes are written in place.
fn is_component(named: &NamedSchema) -> bool {
    named.name != "String" && !named.is_bytes()
}

fn http_method(method: Method) -> HttpMethod {
    match method {
        Method::Get => HttpMethod::Get,
        Method::Post => HttpMethod::Post,
        Method::Put => HttpMethod::Put,
        Method::Patch => HttpMethod::Patch,
        Method::Delete => HttpMethod::Delete,
    }
}

fn describe(operation: &Operation) -> OperationBuilder {
    let response = (operation.response)();
    let media = match operation.reply {
        Reply::Json => MEDIA_JSON,
        Reply::Stream => MEDIA_SSE,
        Reply::Bytes => MEDIA_BYTES,
        Reply::Text if operation.path == endpoint::METRICS.path => MEDIA_METRICS,
        Reply::Text | Reply::Upgrade => MEDIA_JSON,
    };
    let description = match operation.reply {
        Reply::Stream => {
            "Server-Sent Events; the data of each is one value of this schema, of an `error` event an ErrorBody"
        }
        Reply::Upgrade => {
            "The connection speaks meshd-stream/1 from here on: frames of a kind byte, a length in four bytes, big endian, and so many bytes"
        }
        Reply::Bytes => "A stream of bytes; one that fails on the way breaks off",
        Reply::Json | Reply::Text => "Success",
    };
    let success = ResponseBuilder::new().description(description);
    let (code, success) = match operation.reply {
        Reply::Upgrade => ("101", success),
        Reply::Json | Reply::Stream | Reply::Text | Reply::Bytes => {
            ("200", success.content(media, reference(&response)))
        }
    };
    let mut builder = OperationBuilder::new()
        .operation_id(Some(operation.id))
        .summary(Some(operation.summary))
        .response(code, success)
        .response(
            "default",
            ResponseBuilder::new().description("Failure").content(
                MEDIA_JSON,
                ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorBody::name()))).build(),
            ),
        );
    for parameter in path_parameters(operation.path) {
        builder = builder.parameter(parameter);
    }
    for parameter in operation.parameters.map(|f| f()).unwrap_or_default() {
        builder = builder.parameter(parameter);
    }
    if let Some(body) = operation.body {
        let media = if operation.takes_bytes() { MEDIA_BYTES } else { MEDIA_JSON };
        let body = RequestBodyBuilder::new().required(Some(Required::True)).content(media, reference(&body())).build();
        builder = builder.request_body(Some(body));
    }
    builder
}

fn reference(named: &NamedSchema) -> utoipa::openapi::Content {
    let builder = ContentBuilder::new();
    if is_component(named) {
        builder.schema(Some(Ref::from_schema_name(&named.name))).build()
    } else {
        builder.schema(Some(named.schema.clone())).build()
    }
}

fn path_parameters(path: &str) -> impl Iterator<Item = Parameter> {
    path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}')).map(|name| {
        let description = match name {
            "vdc" => "Local name or id prefix of the VDC; `-` for the only one, or the one in use",
            "node" => "Name, `NAME.SITE` or key prefix of the node",
            _ => "Id or id prefix",
        };
        ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some(description))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String).build()))
            .build()
    })
}
