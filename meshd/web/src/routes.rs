//! The list of operations, each with the backend's method behind it.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, Response};
use axum::{Extension, Router};
use vdc_api::{ApiError, ErrorCode, MEDIA_JSON, MEDIA_METRICS, endpoint};

use crate::reply;
use crate::route::{OnHangUp, Routes, Shared};
use crate::{Backup, Call};

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let routes = Routes(Router::new());
    let routes = of_the_node(routes);
    let routes = of_a_vdc(routes);
    let routes = of_workloads(routes);
    let routes = of_images(routes);
    let routes = of_coordination(routes);
    routes.0.fallback(no_such_path).method_not_allowed_fallback(no_such_method).with_state(shared)
}

fn of_the_node(routes: Routes) -> Routes {
    routes
        .json(endpoint::VERSION, |c, (), ()| async move { c.backend.version().await })
        .json(endpoint::HEALTH, |c, (), ()| async move { c.backend.health().await })
        .json(endpoint::STATUS, |c, query, ()| async move { c.backend.status(query).await })
        .json(endpoint::EVENTS, |c, query, ()| async move { c.backend.events(query).await })
        .stream(
            endpoint::EVENTS_STREAM,
            OnHangUp::Drop,
            |c, query, ()| async move { c.backend.events_stream(query).await },
        )
        .text(endpoint::METRICS, MEDIA_METRICS, |c, (), ()| async move { c.backend.metrics().await })
        .text(endpoint::OPENAPI, MEDIA_JSON, |_, (), ()| async move {
            vdc_api::openapi()
                .to_json()
                .map_err(|_| ApiError::new(ErrorCode::Internal, "the document cannot be written as JSON"))
        })
        .json(endpoint::VDC_LIST, |c, (), ()| async move { c.backend.vdc_list().await })
        .json(endpoint::VDC_CREATE, |c, (), body| async move { c.backend.vdc_create(&c.call, body).await })
        .stream(endpoint::JOIN, OnHangUp::RunToEnd, |c, (), body| async move { c.backend.join(&c.call, body).await })
}

fn of_a_vdc(routes: Routes) -> Routes {
    routes
        .json(endpoint::VDC_USE, |c, (), ()| async move { c.backend.vdc_use(&c.call, c.vdc()).await })
        .json(endpoint::VDC_RECOVER, |c, (), body| async move { c.backend.vdc_recover(&c.call, c.vdc(), body).await })
        .json(endpoint::LEAVE, |c, (), body| async move { c.backend.leave(&c.call, c.vdc(), body).await })
        .json(endpoint::RENEW, |c, (), ()| async move { c.backend.renew(&c.call, c.vdc()).await })
        .json(endpoint::NODE_LIST, |c, (), ()| async move { c.backend.node_list(c.vdc()).await })
        .json(endpoint::NODE_SHOW, |c, (), ()| async move { c.backend.node_show(c.vdc(), c.id()).await })
        .json(endpoint::NODE_REVOKE, |c, (), body| async move {
            c.backend.node_revoke(&c.call, c.vdc(), c.id(), body).await
        })
        .json(endpoint::NODE_ISSUED, |c, query, ()| async move { c.backend.node_issued(c.vdc(), c.id(), query).await })
        .json(endpoint::GRANT, |c, (), body| async move { c.backend.grant(&c.call, c.vdc(), c.id(), body).await })
        .json(endpoint::PEERS, |c, (), ()| async move { c.backend.peers(c.vdc()).await })
        .json(endpoint::CONNECT, |c, (), body| async move { c.backend.connect(&c.call, c.vdc(), body).await })
        .stream(endpoint::PING, OnHangUp::Drop, |c, query, ()| async move { c.backend.ping(c.vdc(), query).await })
        .json(endpoint::INVITE_LIST, |c, (), ()| async move { c.backend.invite_list(c.vdc()).await })
        .json(
            endpoint::INVITE_CREATE,
            |c, (), body| async move { c.backend.invite_create(&c.call, c.vdc(), body).await },
        )
        .json(
            endpoint::INVITE_REVOKE,
            |c, (), ()| async move { c.backend.invite_revoke(&c.call, c.vdc(), c.id()).await },
        )
        .json(endpoint::SITE_LIST, |c, (), ()| async move { c.backend.site_list(c.vdc()).await })
        .json(endpoint::SITE_ADD, |c, (), body| async move { c.backend.site_add(&c.call, c.vdc(), body).await })
        .json(endpoint::EXPOSURE_LIST, |c, (), ()| async move { c.backend.exposure_list(c.vdc()).await })
        .json(endpoint::EXPOSURE_CHANGE, |c, (), body| async move {
            c.backend.exposure_change(&c.call, c.vdc(), body).await
        })
        .json(endpoint::BLOCK_LIST, |c, (), ()| async move { c.backend.block_list(c.vdc()).await })
        .json(endpoint::BLOCK_CREATE, |c, (), body| async move { c.backend.block_create(&c.call, c.vdc(), body).await })
        .json(endpoint::BLOCK_LIFT, |c, (), ()| async move { c.backend.block_lift(&c.call, c.vdc(), c.id()).await })
        .json(endpoint::EXPLAIN, |c, query, ()| async move { c.backend.explain(c.vdc(), query).await })
}

fn of_workloads(routes: Routes) -> Routes {
    routes
        .stream(endpoint::WORKLOAD_RUN, OnHangUp::RunToEnd, |c, (), body| async move {
            c.backend.workload_run(&c.call, c.vdc(), body).await
        })
        .json(endpoint::WORKLOAD_LIST, |c, (), ()| async move { c.backend.workload_list(c.vdc()).await })
        .json(endpoint::WORKLOAD_SHOW, |c, (), ()| async move { c.backend.workload_show(c.vdc(), c.id()).await })
        .json(
            endpoint::WORKLOAD_START,
            |c, (), ()| async move { c.backend.workload_start(&c.call, c.vdc(), c.id()).await },
        )
        .json(endpoint::WORKLOAD_STOP, |c, (), body| async move {
            c.backend.workload_stop(&c.call, c.vdc(), c.id(), body).await
        })
        .json(endpoint::WORKLOAD_SIGNAL, |c, (), body| async move {
            c.backend.workload_signal(&c.call, c.vdc(), c.id(), body).await
        })
        .json(endpoint::WORKLOAD_REMOVE, |c, query, ()| async move {
            c.backend.workload_remove(&c.call, c.vdc(), c.id(), query).await
        })
        .json(
            endpoint::WORKLOAD_WAIT,
            |c, query, ()| async move { c.backend.workload_wait(c.vdc(), c.id(), query).await },
        )
        .stream(endpoint::WORKLOAD_LOGS, OnHangUp::Drop, |c, query, ()| async move {
            c.backend.workload_logs(c.vdc(), c.id(), query).await
        })
        .stream(endpoint::WORKLOAD_STATS, OnHangUp::Drop, |c, query, ()| async move {
            c.backend.workload_stats(c.vdc(), c.id(), query).await
        })
        .upgrade(endpoint::WORKLOAD_EXEC, |c, (), body| async move {
            c.backend.workload_exec(&c.call, c.vdc(), c.id(), body).await
        })
        .upgrade(endpoint::WORKLOAD_ATTACH, |c, (), body| async move {
            c.backend.workload_attach(&c.call, c.vdc(), c.id(), body).await
        })
        .upgrade(endpoint::WORKLOAD_COPY, |c, (), body| async move {
            c.backend.workload_copy(&c.call, c.vdc(), c.id(), body).await
        })
}

fn of_images(routes: Routes) -> Routes {
    routes
        .json(endpoint::CAPACITY, |c, (), ()| async move { c.backend.capacity(c.vdc()).await })
        .json(endpoint::IMAGE_LIST, |c, (), ()| async move { c.backend.image_list(c.vdc()).await })
        .stream(endpoint::IMAGE_PULL, OnHangUp::RunToEnd, |c, (), body| async move {
            c.backend.image_pull(&c.call, c.vdc(), body).await
        })
        .json(endpoint::IMAGE_TAG, |c, (), body| async move { c.backend.image_tag(&c.call, c.vdc(), body).await })
        .json(endpoint::IMAGE_REMOVE, |c, (), ()| async move { c.backend.image_remove(&c.call, c.vdc(), c.id()).await })
        .json(endpoint::IMAGE_CLEAN, |c, (), ()| async move { c.backend.image_clean(&c.call, c.vdc()).await })
}

fn of_coordination(routes: Routes) -> Routes {
    routes
        .json(endpoint::COORD_STATUS, |c, (), ()| async move { c.coord()?.coord_status(c.vdc()).await })
        .json(
            endpoint::COORD_RECOVER,
            |c, (), body| async move { c.coord()?.coord_recover(&c.call, c.vdc(), body).await },
        )
        .download(endpoint::COORD_BACKUP, |c, (), body| async move {
            c.coord()?.coord_backup(&c.call, c.vdc(), body).await?.into_pieces()
        })
        .upload(endpoint::COORD_RESTORE, |c, query, pieces| async move {
            let (coord, backup) = (c.coord()?, Backup::read(pieces).await?);
            coord.coord_restore(&c.call, c.vdc(), query, backup).await
        })
}

async fn no_such_path(Extension(call): Extension<Call>, request: Request<Body>) -> Response<Body> {
    let error = ApiError::not_found(format!("there is no {} in this API", shortened(request.uri().path())))
        .hint("the list of operations is at /v1/openapi.json");
    reply::error(error, &call.request_id)
}

async fn no_such_method(Extension(call): Extension<Call>, request: Request<Body>) -> Response<Body> {
    let path = shortened(request.uri().path());
    let error = ApiError::new(ErrorCode::MethodNotAllowed, format!("{} is not possible on {path}", request.method()))
        .hint("the list of operations is at /v1/openapi.json");
    reply::error(error, &call.request_id)
}

fn shortened(path: &str) -> String {
    path.chars().take(120).collect()
}
