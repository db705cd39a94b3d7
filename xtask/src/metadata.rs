//! What cargo knows about the packages.

use std::collections::BTreeSet;

use godwit_lab::setup;
use serde::Deserialize;

use crate::error::{Result, XtaskError};
use crate::step;

/// The answer of `cargo metadata`.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    workspace_members: Vec<String>,
}

/// One package, of the workspace or not.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) dependencies: Vec<Dependency>,
}

/// A dependency as the package declares it.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// `None` for an ordinary one, otherwise `dev` or `build`.
    pub(crate) kind: Option<String>,
}

impl Metadata {
    /// Asks cargo about the workspace and everything that it depends on.
    pub(crate) fn load() -> Result<Self> {
        let text = step::captured(&mut setup::cargo_command(&["metadata", "--format-version", "1"]))?;
        serde_json::from_str(&text)
            .map_err(|source| XtaskError::Metadata { command: "cargo metadata".into(), source })
    }

    /// The workspace's own packages.
    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| self.workspace_members.contains(&package.id))
    }
}

/// Everything that ends up in what the package builds, itself included, with its own choice of features.
pub(crate) fn closure(package: &str) -> Result<BTreeSet<String>> {
    let mut command =
        setup::cargo_command(&["tree", "--package", package, "--edges", "normal", "--prefix", "none"]);
    let text = step::captured(command.args(["--format", "{p}"]))?;
    Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}
