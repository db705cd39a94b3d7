//! What VMs have wanted, slot by slot: how a VM's demand changes with the hours.

use std::collections::BTreeMap;
use std::ops::Range;

use godwit_scheduler::snapshot::SLOT_MS;
use godwit_scheduler::{PerResource, Resource};
use godwit_types::VmId;
use rusqlite::params;

use super::codec::{Doc, Text};
use super::{StoreError, Tx};

/// How far back slots are kept: a day, and the hour that comes after the same hour of the day before.
const KEPT_MS: u64 = 26 * 60 * 60_000;

impl Tx<'_> {
    /// Takes note of what VMs want at a time, as the most in its slot; and forgets what is too old.
    pub(crate) fn note_demand(
        &self,
        unix_ms: u64,
        demand: &BTreeMap<VmId, PerResource<u64>>,
    ) -> Result<(), StoreError> {
        let slot = unix_ms - unix_ms % SLOT_MS;
        let known = self.peak_demand(slot..slot + 1)?;
        let mut put = self
            .sql
            .prepare_cached("INSERT OR REPLACE INTO demand (vm, slot_unix_ms, peak) VALUES (?, ?, ?)")?;
        for (vm, demand) in demand {
            let before = known.get(vm);
            let peak = before.map_or(*demand, |before| larger(before, demand));
            if before != Some(&peak) {
                put.execute(params![Text(vm), slot, Doc(&peak)])?;
            }
        }
        self.sql
            .prepare_cached("DELETE FROM demand WHERE slot_unix_ms < ?")?
            .execute([slot.saturating_sub(KEPT_MS)])?;
        Ok(())
    }

    /// The most that each VM wanted in the slots that begin at these times.
    pub(crate) fn peak_demand(
        &self,
        slots: Range<u64>,
    ) -> Result<BTreeMap<VmId, PerResource<u64>>, StoreError> {
        let mut query = self
            .sql
            .prepare_cached("SELECT vm, peak FROM demand WHERE slot_unix_ms >= ? AND slot_unix_ms < ?")?;
        let rows = query.query_map(params![slots.start, slots.end], |row| {
            Ok((row.get::<_, Text<VmId>>(0)?.0, row.get::<_, Doc<PerResource<u64>>>(1)?.0))
        })?;
        let mut peaks = BTreeMap::<VmId, PerResource<u64>>::new();
        for row in rows {
            let (vm, demand) = row?;
            let peak = peaks.entry(vm).or_default();
            *peak = larger(peak, &demand);
        }
        Ok(peaks)
    }

    /// The CPU that each VM wanted in the slots that begin at these times, in order: as many for all. A slot of which nothing is
    /// known is as the one before, and the first ones are as the first that is known.
    pub(crate) fn cpu_demand(&self, slots: Range<u64>) -> Result<BTreeMap<VmId, Vec<u64>>, StoreError> {
        let mut query = self.sql.prepare_cached(
            "SELECT vm, slot_unix_ms, peak FROM demand WHERE slot_unix_ms >= ? AND slot_unix_ms < ? ORDER BY slot_unix_ms",
        )?;
        let rows = query.query_map(params![slots.start, slots.end], |row| {
            let peak = row.get::<_, Doc<PerResource<u64>>>(2)?.0;
            Ok((row.get::<_, Text<VmId>>(0)?.0, row.get::<_, u64>(1)?, peak.cpu))
        })?;
        let begins = slots.start.next_multiple_of(SLOT_MS);
        let count = slots.end.saturating_sub(begins).div_ceil(SLOT_MS) as usize;
        let mut series = BTreeMap::<VmId, Vec<u64>>::new();
        for row in rows {
            let (vm, slot, mhz) = row?;
            let series = series.entry(vm).or_default();
            let last = series.last().copied().unwrap_or(mhz);
            series.resize((slot.saturating_sub(begins) / SLOT_MS) as usize, last);
            series.push(mhz);
        }
        for series in series.values_mut() {
            let last = series.last().copied().unwrap_or(0);
            series.resize(count, last);
        }
        Ok(series)
    }
}

fn larger(a: &PerResource<u64>, b: &PerResource<u64>) -> PerResource<u64> {
    PerResource::from_fn(|resource: Resource| a[resource].max(b[resource]))
}
