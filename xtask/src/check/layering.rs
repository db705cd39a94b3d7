//! Each crate may use only the crates of the layers below it.

use crate::metadata::Metadata;

/// The crates from the bottom to the top. One may use those before it.
const LAYERS: [&str; 15] = [
    "godwit-types",
    "godwit-faults",
    "godwit-api",
    "godwit-ledger",
    "godwit-scheduler",
    "godwit-simulator",
    "godwit-migration",
    "godwit-tls",
    "godwit-provision",
    "godwit-vmm",
    "godwit-host",
    "godwit-health",
    "godwit-manager",
    "godwit-console",
    "godwit",
];

/// Exceptions that are stricter than the layers: the first never uses the second, not even through others.
const NEVER: [(&str, &str); 6] = [
    ("godwit-host", "godwit-vmm"),
    ("godwit-host", "godwit-scheduler"),
    ("godwit-manager", "godwit-vmm"),
    ("godwit-manager", "godwit-host"),
    ("godwit-console", "godwit-manager"),
    ("godwit-migration", "godwit-api"),
];

/// Every dependency that points upwards or is excepted. Members that are in no layer (tests, guests, lab, sim, xtask) are free,
/// but no layer may use them.
pub(crate) fn faults(metadata: &Metadata) -> Vec<String> {
    let mut faults = Vec::new();
    let members: Vec<&str> = metadata.members().map(|member| member.name.as_str()).collect();
    for member in metadata.members() {
        let Some(layer) = layer(&member.name) else { continue };
        for dependency in member.dependencies.iter().filter(|dependency| dependency.kind.is_none()) {
            let name = dependency.name.as_str();
            if members.contains(&name) && self::layer(name).is_none_or(|below| below >= layer) {
                faults.push(format!("{} may not use {name}, which is not below it", member.name));
            }
            if NEVER.contains(&(&member.name, name)) {
                faults.push(format!("{} may not use {name}", member.name));
            }
        }
    }
    faults
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(edges: &[(&str, &str)]) -> Metadata {
        let mut names: Vec<&str> = edges.iter().flat_map(|(from, to)| [*from, *to]).collect();
        names.sort_unstable();
        names.dedup();
        let packages: Vec<_> = names
            .iter()
            .map(|name| {
                let uses = edges.iter().filter(|(from, _)| from == name);
                let dependencies: Vec<_> =
                    uses.map(|(_, to)| serde_json::json!({"name": to, "kind": null})).collect();
                serde_json::json!({"id": name, "name": name, "version": "1.0.0", "dependencies": dependencies})
            })
            .collect();
        let document = serde_json::json!({"packages": packages, "workspace_members": names});
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn a_crate_may_use_what_is_below_it() {
        let edges =
            [("godwit-vmm", "godwit-migration"), ("godwit", "godwit-manager"), ("xtask", "godwit-lab")];
        assert_eq!(faults(&metadata(&edges)), [] as [&str; 0]);
    }

    #[test]
    fn a_dependency_upwards_sideways_or_on_a_test_crate_is_a_fault() {
        for edge in [
            ("godwit-types", "godwit-migration"),
            ("godwit-host", "godwit-vmm"),
            ("godwit-manager", "godwit-vmm"),
            ("godwit-vmm", "godwit-lab"),
        ] {
            assert!(!faults(&metadata(&[edge])).is_empty(), "{edge:?} was accepted");
        }
    }
}
