//! As much of JSON Schema 2020-12 as the API's description uses: no more keywords pass for a schema.

use serde_json::Value;

const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];
/// Keywords that say nothing of which documents are meant.
const NOTES: [&str; 8] =
    ["description", "title", "default", "example", "examples", "deprecated", "format", "contentMediaType"];

/// What is wrong with a schema as such, and with those in it.
pub(super) fn unsound(schema: &Value) -> Vec<String> {
    let Some(keywords) = schema.as_object() else {
        return if schema.is_boolean() { vec![] } else { vec![format!("{schema} is no schema")] };
    };
    let wrong = keywords.iter().flat_map(|(keyword, value)| match keyword.as_str() {
        "type" => {
            let known = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
            let is_well = known(value) || value.as_array().is_some_and(|names| names.iter().all(known));
            if is_well { vec![] } else { vec![format!("{value} is no type")] }
        }
        "properties" => each(value.as_object().map(|of| of.values().collect()), keyword),
        "oneOf" | "anyOf" | "allOf" | "prefixItems" => {
            each(value.as_array().filter(|of| !of.is_empty()).map(|of| of.iter().collect()), keyword)
        }
        "items" | "additionalProperties" | "propertyNames" => unsound(value),
        "required" => {
            let names = value.as_array().map(|names| names.iter().all(Value::is_string));
            if names == Some(true) { vec![] } else { vec![format!("required: {value}")] }
        }
        "enum" => {
            if value.is_array() {
                vec![]
            } else {
                vec![format!("enum: {value}")]
            }
        }
        "minimum" | "maximum" => {
            if value.is_number() {
                vec![]
            } else {
                vec![format!("{keyword}: {value}")]
            }
        }
        "uniqueItems" if value.is_boolean() => vec![],
        "minItems" | "maxItems" | "minLength" | "maxLength" => {
            if value.is_u64() {
                vec![]
            } else {
                vec![format!("{keyword}: {value}")]
            }
        }
        "$ref" => {
            if value.is_string() {
                vec![]
            } else {
                vec![format!("$ref: {value}")]
            }
        }
        "const" => vec![],
        note if NOTES.contains(&note) => vec![],
        other => vec![format!("the keyword {other} is not known")],
    });
    wrong.collect()
}

fn each(schemas: Option<Vec<&Value>>, keyword: &str) -> Vec<String> {
    match schemas {
        Some(schemas) => schemas.into_iter().flat_map(unsound).collect(),
        None => vec![format!("{keyword} has no schemas")],
    }
}

/// In what a document is not as a schema of the description says, each with its place.
pub(super) fn faults(description: &Value, schema: &Value, given: &Value) -> Vec<String> {
    let fault = |what: String| vec![format!(": {what}, and not {given}")];
    let Some(keywords) = schema.as_object() else { return vec![] };
    let within = |schema: &Value, given: &Value| faults(description, schema, given);
    let matching = |of: &Value| {
        let all = of.as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().filter(|schema| within(schema, given).is_empty()).count()
    };
    let at = |place: String, found: Vec<String>| -> Vec<String> {
        found.into_iter().map(|fault| format!("{place}{fault}")).collect()
    };
    let check = |(keyword, value): (&String, &Value)| match keyword.as_str() {
        "$ref" => {
            let place = value.as_str().and_then(|place| place.strip_prefix('#'));
            match place.and_then(|place| description.pointer(place)) {
                Some(schema) => within(schema, given),
                None => fault(format!("{value} leads nowhere")),
            }
        }
        "type" => {
            let is_any = match value {
                Value::Array(names) => names.iter().any(|name| is_of(given, name)),
                name => is_of(given, name),
            };
            if is_any { vec![] } else { fault(format!("of type {value}")) }
        }
        "enum" if !value.as_array().is_some_and(|all| all.contains(given)) => {
            fault(format!("one of {value}"))
        }
        "const" if value != given => fault(value.to_string()),
        "minimum" if compared(given, value).is_some_and(|(given, least)| given < least) => {
            fault(format!("at least {value}"))
        }
        "maximum" if compared(given, value).is_some_and(|(given, most)| given > most) => {
            fault(format!("at most {value}"))
        }
        "required" => {
            let names = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let missing = names.iter().filter_map(Value::as_str).filter(|name| given.get(name).is_none());
            missing.map(|name| format!(" lacks {name}: {given}")).collect()
        }
        "properties" => {
            let known = value.as_object().into_iter().flatten();
            let there = known.filter_map(|(name, schema)| Some((name, schema, given.get(name)?)));
            there.flat_map(|(name, schema, given)| at(format!(".{name}"), within(schema, given))).collect()
        }
        "additionalProperties" => {
            let known =
                |name: &String| keywords.get("properties").is_some_and(|known| known.get(name).is_some());
            let others = given.as_object().into_iter().flatten().filter(|(name, _)| !known(name));
            let judge = |(name, given): (&String, &Value)| match value {
                Value::Bool(false) => vec![format!(" knows no {name}")],
                schema => at(format!(".{name}"), within(schema, given)),
            };
            others.flat_map(judge).collect()
        }
        "prefixItems" => {
            let pairs = value.as_array().into_iter().flatten().zip(given.as_array().into_iter().flatten());
            pairs.flat_map(|(schema, given)| at("[..]".into(), within(schema, given))).collect()
        }
        "items" => {
            let before = keywords.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
            let rest = given.as_array().into_iter().flatten().skip(before);
            let judge = |given: &Value| match value {
                Value::Bool(false) => vec![" has more than is known".to_owned()],
                schema => at("[]".into(), within(schema, given)),
            };
            rest.flat_map(judge).collect()
        }
        "allOf" => value.as_array().into_iter().flatten().flat_map(|schema| within(schema, given)).collect(),
        "anyOf" if matching(value) == 0 => fault("as any of several schemas says".into()),
        "oneOf" if matching(value) != 1 => fault(format!("as exactly one schema says of {value}")),
        _ => vec![],
    };
    keywords.iter().flat_map(check).collect()
}

/// Bounds are about numbers alone.
fn compared(given: &Value, bound: &Value) -> Option<(f64, f64)> {
    given.as_f64().zip(bound.as_f64())
}

fn is_of(given: &Value, name: &Value) -> bool {
    match name.as_str().unwrap_or_default() {
        "array" => given.is_array(),
        "boolean" => given.is_boolean(),
        "integer" => given.is_i64() || given.is_u64(),
        "null" => given.is_null(),
        "number" => given.is_number(),
        "object" => given.is_object(),
        "string" => given.is_string(),
        _ => false,
    }
}
