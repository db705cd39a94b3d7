//! What people have laid down for the scheduler. What nobody has laid down is as the documents' defaults say.

use std::collections::BTreeMap;
use std::str::FromStr;

use godwit_scheduler::entitlement::Pool;
use godwit_scheduler::policy::Policy;
use godwit_scheduler::rules::Rule;
use godwit_scheduler::settings::{HostSettings, VmSettings};
use godwit_types::baseline::CpuBaseline;
use godwit_types::{HostName, Name, VmId};
use rusqlite::{OptionalExtension, ToSql, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{Doc, Text};
use super::{StoreError, Tx};

impl Tx<'_> {
    /// All rules, by name.
    pub(crate) fn rules(&self) -> Result<Vec<Rule>, StoreError> {
        self.documents("SELECT rule FROM rules ORDER BY name")
    }

    pub(crate) fn rule(&self, name: &Name) -> Result<Option<Rule>, StoreError> {
        self.document("SELECT rule FROM rules WHERE name = ?", &Text(name))
    }

    pub(crate) fn put_rule(&self, rule: &Rule) -> Result<(), StoreError> {
        self.put("INSERT OR REPLACE INTO rules (name, rule) VALUES (?, ?)", &Text(&rule.name), rule)
    }

    pub(crate) fn remove_rule(&self, name: &Name) -> Result<(), StoreError> {
        self.sql.prepare_cached("DELETE FROM rules WHERE name = ?")?.execute([Text(name)])?;
        Ok(())
    }

    /// All pools, by name.
    pub(crate) fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        self.documents("SELECT pool FROM pools ORDER BY name")
    }

    pub(crate) fn pool(&self, name: &Name) -> Result<Option<Pool>, StoreError> {
        self.document("SELECT pool FROM pools WHERE name = ?", &Text(name))
    }

    pub(crate) fn put_pool(&self, pool: &Pool) -> Result<(), StoreError> {
        self.put("INSERT OR REPLACE INTO pools (name, pool) VALUES (?, ?)", &Text(&pool.name), pool)
    }

    pub(crate) fn remove_pool(&self, name: &Name) -> Result<(), StoreError> {
        self.sql.prepare_cached("DELETE FROM pools WHERE name = ?")?.execute([Text(name)])?;
        Ok(())
    }

    pub(crate) fn policy(&self) -> Result<Policy, StoreError> {
        Ok(self.document("SELECT policy FROM policy WHERE one = ?", &1)?.unwrap_or_default())
    }

    pub(crate) fn put_policy(&self, policy: &Policy) -> Result<(), StoreError> {
        self.put("INSERT OR REPLACE INTO policy (one, policy) VALUES (?, ?)", &1, policy)
    }

    pub(crate) fn cpu_baseline(&self) -> Result<Option<CpuBaseline>, StoreError> {
        self.document("SELECT baseline FROM cpu_baseline WHERE one = ?", &1)
    }

    pub(crate) fn put_cpu_baseline(&self, baseline: &CpuBaseline) -> Result<(), StoreError> {
        self.put("INSERT OR REPLACE INTO cpu_baseline (one, baseline) VALUES (?, ?)", &1, baseline)
    }

    pub(crate) fn remove_cpu_baseline(&self) -> Result<(), StoreError> {
        self.sql.prepare_cached("DELETE FROM cpu_baseline")?.execute([])?;
        Ok(())
    }

    pub(crate) fn vm_settings(&self, vm: VmId) -> Result<VmSettings, StoreError> {
        let query = "SELECT settings FROM vm_settings WHERE vm = ?";
        Ok(self.document(query, &Text(&vm))?.unwrap_or_default())
    }

    /// Of all VMs about which people have laid something down.
    pub(crate) fn all_vm_settings(&self) -> Result<BTreeMap<VmId, VmSettings>, StoreError> {
        self.by_key("SELECT vm, settings FROM vm_settings")
    }

    pub(crate) fn put_vm_settings(&self, vm: VmId, settings: &VmSettings) -> Result<(), StoreError> {
        self.put("INSERT OR REPLACE INTO vm_settings (vm, settings) VALUES (?, ?)", &Text(&vm), settings)
    }

    pub(crate) fn host_settings(&self, host: &HostName) -> Result<HostSettings, StoreError> {
        let query = "SELECT settings FROM host_settings WHERE host = ?";
        Ok(self.document(query, &Text(host))?.unwrap_or_default())
    }

    /// Of all hosts about which people have laid something down.
    pub(crate) fn all_host_settings(&self) -> Result<BTreeMap<HostName, HostSettings>, StoreError> {
        self.by_key("SELECT host, settings FROM host_settings")
    }

    pub(crate) fn put_host_settings(
        &self,
        host: &HostName,
        settings: &HostSettings,
    ) -> Result<(), StoreError> {
        self.put("INSERT OR REPLACE INTO host_settings (host, settings) VALUES (?, ?)", &Text(host), settings)
    }

    fn documents<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>, StoreError> {
        let mut query = self.sql.prepare_cached(query)?;
        let documents = query.query_map([], |row| Ok(row.get::<_, Doc<T>>(0)?.0))?;
        Ok(documents.collect::<Result<_, _>>()?)
    }

    fn by_key<K, T>(&self, query: &str) -> Result<BTreeMap<K, T>, StoreError>
    where
        K: FromStr<Err: std::error::Error + Send + Sync + 'static> + Ord,
        T: DeserializeOwned,
    {
        let mut query = self.sql.prepare_cached(query)?;
        let rows =
            query.query_map([], |row| Ok((row.get::<_, Text<K>>(0)?.0, row.get::<_, Doc<T>>(1)?.0)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn document<T: DeserializeOwned>(&self, query: &str, key: &dyn ToSql) -> Result<Option<T>, StoreError> {
        let mut query = self.sql.prepare_cached(query)?;
        Ok(query.query_row([key], |row| Ok(row.get::<_, Doc<T>>(0)?.0)).optional()?)
    }

    fn put<T: Serialize>(&self, statement: &str, key: &dyn ToSql, document: &T) -> Result<(), StoreError> {
        self.sql.prepare_cached(statement)?.execute(params![key, Doc(document)])?;
        Ok(())
    }
}
