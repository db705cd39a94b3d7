//! The ownership records.

use std::collections::BTreeMap;

use godwit_types::ownership::Ownership;
use godwit_types::{Epoch, VmId};
use rusqlite::{OptionalExtension, params};

use super::codec::Text;
use super::{StoreError, Tx};

impl Tx<'_> {
    /// The VM's record, and in how many consecutive reports its owner did not name it.
    pub(crate) fn ownership(&self, vm: VmId) -> Result<Option<(Ownership, u32)>, StoreError> {
        let mut query = self
            .sql
            .prepare_cached("SELECT owner, epoch, claimed, missing_reports FROM ownership WHERE vm = ?")?;
        let row = query.query_row([Text(&vm)], |row| {
            let epoch = Epoch(row.get(1)?);
            let owned = Ownership { vm, owner: row.get::<_, Text<_>>(0)?.0, epoch, claimed: row.get(2)? };
            Ok((owned, row.get(3)?))
        });
        Ok(row.optional()?)
    }

    /// Every VM's record.
    pub(crate) fn ownerships(&self) -> Result<BTreeMap<VmId, Ownership>, StoreError> {
        let mut query = self.sql.prepare_cached("SELECT vm, owner, epoch, claimed FROM ownership")?;
        let rows = query.query_map([], |row| {
            let (vm, owner) = (row.get::<_, Text<_>>(0)?.0, row.get::<_, Text<_>>(1)?.0);
            Ok((vm, Ownership { vm, owner, epoch: Epoch(row.get(2)?), claimed: row.get(3)? }))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Writes the record. A new one is missing from no report yet.
    pub(crate) fn put_ownership(&self, owned: &Ownership) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "INSERT INTO ownership (vm, owner, epoch, claimed) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (vm) DO UPDATE SET owner = ?2, epoch = ?3, claimed = ?4, missing_reports = 0",
            )?
            .execute(params![Text(&owned.vm), Text(&owned.owner), owned.epoch.0, owned.claimed])?;
        Ok(())
    }

    pub(crate) fn set_missing_reports(&self, vm: VmId, count: u32) -> Result<(), StoreError> {
        self.sql
            .prepare_cached(
                "UPDATE ownership SET missing_reports = ?1 WHERE vm = ?2 AND missing_reports <> ?1",
            )?
            .execute(params![count, Text(&vm)])?;
        Ok(())
    }
}
