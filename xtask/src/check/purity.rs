//! What a crate may not know, wherever it comes from.

use std::path::{Path, PathBuf};

use godwit_lab::setup;

use crate::error::Result;
use crate::metadata::closure;

/// A crate, and beginnings of package names that may not be among anything it is built from.
const FORBIDDEN: [(&str, &[&str]); 8] = [
    ("godwit-types", &["tokio", "hyper", "axum", "kvm-", "libc", "nix", "rustix"]),
    ("godwit-ledger", &["tokio", "hyper", "axum", "kvm-", "libc", "nix", "rustix"]),
    ("godwit-scheduler", &["tokio", "hyper", "axum", "kvm-", "libc", "nix", "rustix", "rand"]),
    ("godwit-simulator", &["tokio", "hyper", "axum", "kvm-", "libc", "nix", "rustix", "rand"]),
    ("godwit-migration", &["tokio", "hyper", "axum", "kvm-", "libc", "nix", "rustix"]),
    ("godwit-tls", &["tokio", "hyper", "axum", "kvm-"]),
    ("godwit-vmm", &["tokio", "hyper", "axum"]),
    ("godwit-manager", &["kvm-", "vm-memory", "godwit-vmm", "godwit-host"]),
];

/// Sources that may not touch the outside world, and the one folder or file of each that may.
const SANS_IO: [(&str, Option<&str>); 6] = [
    ("crates/types/src", None),
    ("crates/ledger/src", None),
    ("crates/scheduler/src", None),
    ("crates/simulator/src", None),
    ("crates/migration/src", Some("driver")),
    ("sim/src", Some("main.rs")),
];

/// Words that reach outside.
const OUTSIDE: [&str; 9] = [
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "std::fs",
    "std::process",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
];

/// Every forbidden package and every forbidden word.
pub(crate) fn faults() -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (package, forbidden) in FORBIDDEN {
        if !setup::root().join("crates").join(package.trim_start_matches("godwit-")).exists() {
            continue;
        }
        for name in closure(package)? {
            if forbidden.iter().any(|beginning| name.starts_with(beginning)) {
                faults.push(format!("{package} may not be built from {name}"));
            }
        }
    }
    for (folder, shell) in SANS_IO {
        for file in sources(&setup::root().join(folder)) {
            let inside = file.strip_prefix(setup::root().join(folder)).unwrap_or(&file);
            if shell.is_some_and(|shell| inside.to_string_lossy().starts_with(shell)) {
                continue;
            }
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let words = outside_words(&text);
            faults.extend(words.iter().map(|word| format!("{}: {word} is I/O", file.display())));
        }
    }
    Ok(faults)
}

/// The words before the tests, which may do as they like.
fn outside_words(text: &str) -> Vec<&'static str> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines: Vec<&str> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    OUTSIDE.into_iter().filter(|word| lines.iter().any(|line| line.contains(word))).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_in_code_is_seen_and_in_comments_and_tests_is_not() {
        assert_eq!(outside_words("use std::net::TcpStream;"), ["TcpStream"]);
        assert!(outside_words("// a TcpStream elsewhere\nfn f() {}\n#[cfg(test)]\nuse std::fs;").is_empty());
        assert!(outside_words("use std::net::SocketAddr;").is_empty());
    }
}
