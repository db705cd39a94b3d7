//! Licences and duplicate versions, from what cargo knows. cargo-deny looks closer where it is installed.

use std::collections::{BTreeMap, BTreeSet};

use crate::metadata::Metadata;

/// Crates whose types cross crate borders, so that two versions of one would not fit together; and servers, of which
/// one is enough.
const ONCE: [&str; 8] =
    ["vm-memory", "vmm-sys-util", "kvm-bindings", "rustls", "axum", "hyper", "tokio", "prost"];

/// Licences that a dependency may have; any one side of an `OR` is enough. The same list is in `deny.toml`.
const LICENCES: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates of [`ONCE`] of which there are several versions.
pub(crate) fn duplicates(metadata: &Metadata) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &metadata.packages {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    let several = versions.iter().filter(|(name, versions)| ONCE.contains(name) && versions.len() > 1);
    several.map(|(name, versions)| format!("{name} is there as {versions:?}; agree on one")).collect()
}

/// Packages whose licence is not among [`LICENCES`].
pub(crate) fn licences(metadata: &Metadata) -> Vec<String> {
    let mut faults = Vec::new();
    for package in &metadata.packages {
        let licence = package.license.as_deref().unwrap_or("none");
        if !allowed(licence) {
            faults.push(format!("{} {} has the licence '{licence}'", package.name, package.version));
        }
    }
    faults
}

/// Whether an SPDX expression can be satisfied. Old packages write `/` for `OR`.
fn allowed(expression: &str) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut words = words.as_slice();
    let satisfied = any_of(&mut words);
    satisfied && words.is_empty()
}

fn any_of(words: &mut &[&str]) -> bool {
    let mut satisfied = all_of(words);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        satisfied |= all_of(words);
    }
    satisfied
}

fn all_of(words: &mut &[&str]) -> bool {
    let mut satisfied = one_of(words);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        satisfied &= one_of(words);
    }
    satisfied
}

fn one_of(words: &mut &[&str]) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let satisfied = any_of(words);
            let closed = words.first() == Some(&")");
            *words = words.get(1..).unwrap_or_default();
            satisfied && closed
        }
        [licence, "WITH", exception, rest @ ..] => {
            *words = rest;
            LICENCES.contains(&format!("{licence} WITH {exception}").as_str()) || LICENCES.contains(licence)
        }
        [licence, rest @ ..] => {
            *words = rest;
            LICENCES.contains(licence)
        }
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_is_judged_as_the_expression_that_it_is() {
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-2.0/MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
            "MIT AND (GPL-3.0 OR BSD-3-Clause)",
        ] {
            assert!(allowed(good), "{good} was refused");
        }
        for bad in ["", "none", "GPL-3.0", "MIT AND GPL-3.0", "(MIT", "AGPL-3.0 OR GPL-3.0"] {
            assert!(!allowed(bad), "{bad} was allowed");
        }
    }
}
