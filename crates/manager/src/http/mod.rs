//! The manager's API: one handler for each route, one entry in [`routes`] for each path.

mod arbiter;
mod console;
mod cpu_baseline;
mod document;
mod events;
mod hosts;
mod pools;
mod power;
mod rules;
mod scheduler;
mod settings;
mod tasks;
mod vms;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{MethodRouter, delete, get, post};
use godwit_api::server::{ErrorResponse, Json, require_token, with_error_documents};
use godwit_types::api::Health;

use crate::manager::Manager;

pub use document::openapi;

type Shared = State<Arc<Manager>>;
type Answer<T> = Result<Json<T>, ErrorResponse>;

/// The whole API.
pub(crate) fn router(manager: Arc<Manager>) -> Router {
    let add = |router: Router<Arc<Manager>>, (path, route): (&str, _)| router.route(path, route);
    let closed = require_token(routes().into_iter().fold(Router::new(), add), manager.token.clone());
    let all = open_routes().into_iter().fold(closed, add);
    with_error_documents(all).with_state(manager)
}

/// What only the holder of the token may ask.
fn routes() -> Vec<(&'static str, MethodRouter<Arc<Manager>>)> {
    vec![
        ("/v1/openapi.json", get(document::serve)),
        ("/v1/hosts", get(hosts::list)),
        ("/v1/hosts/{name}", get(hosts::show)),
        ("/v1/hosts/{name}/heartbeat", post(hosts::heartbeat)),
        (
            "/v1/hosts/{name}/maintenance",
            get(hosts::plan_maintenance)
                .merge(post(hosts::enter_maintenance))
                .merge(delete(hosts::exit_maintenance)),
        ),
        ("/v1/scheduler", get(scheduler::status)),
        ("/v1/scheduler/run", post(scheduler::run)),
        ("/v1/scheduler/decisions", get(scheduler::list)),
        ("/v1/scheduler/decisions/{id}", get(scheduler::show)),
        ("/v1/scheduler/decisions/{id}/apply", post(scheduler::apply)),
        ("/v1/scheduler/decisions/{id}/reject", post(scheduler::reject)),
        ("/v1/scheduler/decisions/{id}/replay", post(scheduler::replay)),
        ("/v1/scheduler/explain/{vm}", get(scheduler::explain)),
        ("/v1/scheduler/what-if", post(scheduler::what_if)),
        ("/v1/vms", get(vms::list).post(vms::create)),
        ("/v1/vms/{vm}", get(vms::show).merge(delete(vms::remove))),
        ("/v1/vms/{vm}/start", post(vms::start)),
        ("/v1/vms/{vm}/stop", post(vms::stop)),
        ("/v1/vms/{vm}/migrate", post(vms::migrate)),
        ("/v1/vms/{vm}/move-storage", post(vms::move_storage)),
        ("/v1/vms/{vm}/plan-migration", post(vms::plan_migration)),
        ("/v1/vms/{vm}/migration-check", get(vms::migration_check)),
        ("/v1/vms/{vm}/console", get(console::open)),
        ("/v1/vms/{vm}/settings", get(settings::show_vm).post(settings::set_vm)),
        ("/v1/hosts/{name}/settings", get(settings::show_host).post(settings::set_host)),
        ("/v1/hosts/{name}/power", get(power::show)),
        ("/v1/hosts/{name}/wake", post(power::wake)),
        ("/v1/hosts/{name}/standby", post(power::standby)),
        ("/v1/rules", get(rules::list).post(rules::add)),
        ("/v1/rules/{name}", get(rules::show).merge(delete(rules::remove))),
        ("/v1/pools", get(pools::list)),
        ("/v1/pools/{name}", get(pools::show).post(pools::set).merge(delete(pools::remove))),
        ("/v1/pools/{name}/members", get(pools::members)),
        ("/v1/policy", get(settings::show_policy).post(settings::set_policy)),
        (
            "/v1/cpu-baseline",
            get(cpu_baseline::show).merge(post(cpu_baseline::set)).merge(delete(cpu_baseline::clear)),
        ),
        ("/v1/tasks", get(tasks::list)),
        ("/v1/tasks/{id}", get(tasks::show)),
        ("/v1/tasks/{id}/cancel", post(tasks::cancel)),
        ("/v1/tasks/{id}/bandwidth", post(tasks::set_bandwidth)),
        ("/v1/events", get(events::follow)),
        ("/v1/arbiter/commit", post(arbiter::commit)),
        ("/v1/arbiter/claim", post(arbiter::claim)),
    ]
}

/// What anybody may ask.
fn open_routes() -> Vec<(&'static str, MethodRouter<Arc<Manager>>)> {
    vec![("/v1/health", get(health))]
}

/// Whether the manager serves, and which version it is. Needs no token.
#[utoipa::path(get, path = "/v1/health", tag = "manager", security(()), responses((status = 200, body = Health)))]
async fn health() -> Json<Health> {
    Json(Health { version: env!("CARGO_PKG_VERSION").to_owned() })
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
