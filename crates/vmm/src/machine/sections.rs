//! The sections that make up a machine's state.

use std::collections::BTreeMap;

use godwit_migration::{MachineError, Section};

use super::step;
use crate::device::State;

pub(super) const CLOCK: &str = "clock";
pub(super) const IRQCHIP: &str = "irqchip";
pub(super) const PIT: &str = "pit";

/// The section of a vCPU.
pub(super) fn vcpu_name(index: usize) -> String {
    format!("vcpu-{index}")
}

/// Sections that have arrived, each to be taken once.
pub(super) struct Arrived {
    sections: BTreeMap<String, Section>,
}

impl Arrived {
    /// Refuses sections that are unknown, missing, or there twice.
    pub(super) fn sort(sections: Vec<Section>, expected: Vec<String>) -> Result<Self, MachineError> {
        let refuse = |reason: String| Err(MachineError { step: "loading device state".into(), reason });
        let mut sorted = BTreeMap::new();
        for section in sections {
            let name = section.device.clone();
            if !expected.contains(&name) {
                return refuse(format!("this machine has no device {name}"));
            }
            if sorted.insert(name.clone(), section).is_some() {
                return refuse(format!("the state of {name} has arrived twice"));
            }
        }
        match expected.iter().find(|name| !sorted.contains_key(*name)) {
            Some(name) => refuse(format!("the state of {name} is missing")),
            None => Ok(Self { sections: sorted }),
        }
    }

    /// The section of a device.
    pub(super) fn take_raw(&mut self, name: &str) -> Result<Section, MachineError> {
        let missing =
            || MachineError { step: format!("loading {name}"), reason: "its state is missing".into() };
        self.sections.remove(name).ok_or_else(missing)
    }

    /// The state of a part of the core, decoded and checked.
    pub(super) fn take<T: State>(
        &mut self,
        name: &str,
        check: impl Fn(&T) -> Result<(), String>,
    ) -> Result<T, MachineError> {
        let state = T::from_section(&self.take_raw(name)?).map_err(|error| step("loading", &error))?;
        check(&state).map_err(|reason| MachineError { step: format!("loading {name}"), reason })?;
        Ok(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(device: &str) -> Section {
        Section { device: device.into(), kind: "test".into(), version: 1, payload: vec![] }
    }

    #[test]
    fn unknown_missing_and_repeated_sections_are_refused_by_name() {
        let expected = || vec!["a".to_owned(), "b".to_owned()];
        let sort =
            |names: &[&str]| Arrived::sort(names.iter().map(|name| section(name)).collect(), expected());
        assert!(sort(&["b", "a"]).is_ok());
        for (names, blamed) in
            [(&["a"][..], "of b"), (&["a", "b", "c"][..], "c"), (&["a", "b", "a"][..], "a has arrived twice")]
        {
            let error = sort(names).err().unwrap().to_string();
            assert!(error.contains(blamed), "{error}");
        }
    }
}
