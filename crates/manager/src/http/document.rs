//! `/v1/openapi.json`.

use godwit_api::server::Json;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// The API's description.
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", operation_id = "show_openapi", tag = "manager", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn serve() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi())
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Godwit manager",
        description = "The cluster of hosts that Godwit manages: its hosts, its VMs, and how they move.\n\n\
            Every error is an ApiError document. Every request but `/v1/health` carries the manager's token as a \
            bearer token."
    ),
    paths(
        super::health,
        serve,
        super::hosts::list,
        super::hosts::show,
        super::hosts::heartbeat,
        super::hosts::plan_maintenance,
        super::hosts::enter_maintenance,
        super::hosts::exit_maintenance,
        super::scheduler::status,
        super::scheduler::run,
        super::scheduler::list,
        super::scheduler::show,
        super::scheduler::apply,
        super::scheduler::reject,
        super::scheduler::replay,
        super::scheduler::explain,
        super::scheduler::what_if,
        super::vms::list,
        super::vms::create,
        super::vms::show,
        super::vms::remove,
        super::vms::start,
        super::vms::stop,
        super::vms::migrate,
        super::vms::move_storage,
        super::vms::plan_migration,
        super::vms::migration_check,
        super::console::open,
        super::power::show,
        super::power::wake,
        super::power::standby,
        super::rules::list,
        super::rules::add,
        super::rules::show,
        super::rules::remove,
        super::pools::list,
        super::pools::show,
        super::pools::members,
        super::pools::set,
        super::pools::remove,
        super::settings::show_vm,
        super::settings::set_vm,
        super::settings::show_host,
        super::settings::set_host,
        super::settings::show_policy,
        super::settings::set_policy,
        super::cpu_baseline::show,
        super::cpu_baseline::set,
        super::cpu_baseline::clear,
        super::tasks::list,
        super::tasks::show,
        super::tasks::cancel,
        super::tasks::set_bandwidth,
        super::events::follow,
        super::arbiter::commit,
        super::arbiter::claim,
    ),
    security(("token" = [])),
    modifiers(&BearerToken)
)]
struct Document;

struct BearerToken;

impl Modify for BearerToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;
