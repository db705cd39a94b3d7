//! No file, no network, no signal to others: as far as this kernel can forbid it.

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest of the kernel's interfaces that the crate knows; an older kernel enforces what it can.
const NEWEST: ABI = ABI::V10;

/// Denies all that Landlock handles, without an exception. What is open already stays usable.
pub fn restrict() -> Result<(), RulesetError> {
    let rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?;
    let status = rules.create()?.restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced {
        tracing::warn!(
            "this kernel has no Landlock: files are out of reach by seccomp and the VM's user alone"
        );
    }
    Ok(())
}
