//! Changing a part of a document.

use std::fmt::Display;

use godwit_types::{ApiError, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// `current` with the changes of a JSON merge patch (RFC 7386): what is named changes, and `null` brings back the default. An
/// object with a `kind` is one of several shapes, and replaces the one before it as a whole.
pub(super) fn merged<T: Serialize + DeserializeOwned>(current: &T, changes: Value) -> Result<T, ApiError> {
    let unfit = |why: &dyn Display| {
        ApiError::new(ErrorCode::Invalid, format!("the change does not fit: {why}"))
            .remedy("GET /v1/openapi.json of the manager describes every document")
    };
    let unreadable = |error: serde_json::Error| unfit(&error);
    if !changes.is_object() {
        return Err(unfit(&"it is no object"));
    }
    let mut whole = serde_json::to_value(current).map_err(unreadable)?;
    merge(&mut whole, changes);
    serde_json::from_value(whole).map_err(unreadable)
}

/// As deep as the request's parser lets documents be.
fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) if !changes.contains_key("kind") => {
            for (name, change) in changes {
                if change.is_null() {
                    into.remove(&name);
                } else {
                    merge(into.entry(name).or_insert(Value::Null), change);
                }
            }
        }
        (into, changes) => *into = changes,
    }
}

#[cfg(test)]
mod tests {
    use godwit_scheduler::settings::{HostSettings, VmSettings};
    use godwit_types::power::PowerDriver;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_named_stays_and_null_is_the_default() {
        let settings = VmSettings { pool: Some("gold".parse().unwrap()), ..VmSettings::default() };
        let settings = merged(&settings, json!({"controls": {"cpu": {"limit": 500}}})).unwrap();
        assert_eq!(settings.controls.cpu.limit, Some(500));
        assert_eq!(settings.controls.cpu.shares, 1000);
        assert_eq!(settings.pool, Some("gold".parse().unwrap()));
        let settings =
            merged(&settings, json!({"pool": null, "controls": {"cpu": {"limit": null}}})).unwrap();
        assert_eq!(settings, VmSettings::default());
    }

    #[test]
    fn what_is_one_of_several_shapes_is_replaced_as_a_whole() {
        let driver = json!({"driver": {"kind": "wake_on_lan", "mac": "52:54:00:00:00:01"}});
        let settings = merged(&HostSettings::default(), driver).unwrap();
        let settings = merged(&settings, json!({"driver": {"kind": "simulated", "program": "lab"}})).unwrap();
        assert_eq!(settings.driver, PowerDriver::Simulated { program: "lab".parse().unwrap() });
    }

    #[test]
    fn a_field_that_does_not_exist_is_named() {
        for wrong in
            [json!({"pol": "gold"}), json!({"controls": {"cpu": {"reserved": 1}}}), json!([]), json!(3)]
        {
            let error = merged(&VmSettings::default(), wrong).unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid);
            assert!(error.message.contains("does not fit"), "{error}");
        }
        let error = merged(&VmSettings::default(), json!({"pol": "gold"})).unwrap_err();
        assert!(error.message.contains("`pol`") && error.message.contains("`pool`"), "{error}");
    }
}
