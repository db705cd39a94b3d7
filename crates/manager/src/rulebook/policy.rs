//! The cluster's policy.

use godwit_scheduler::policy::Policy;
use godwit_types::{ApiError, ErrorCode};
use serde_json::Value;

use super::merge::merged;
use super::{admitted, changed, refuse};
use crate::store::Tx;

/// Changes what is named of the policy.
pub(crate) fn set(tx: &Tx<'_>, changes: Value) -> Result<Policy, ApiError> {
    let policy = merged(&tx.policy()?, changes)?;
    let found = policy.findings().into_iter().map(|finding| (finding.to_string(), finding.remedy()));
    refuse(ErrorCode::Invalid, found.collect())?;
    admitted(tx, || Ok(tx.put_policy(&policy)?))?;
    changed(tx, "the policy was changed".into())?;
    Ok(policy)
}
