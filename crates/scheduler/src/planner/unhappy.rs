//! Why VMs stay that get less than they are entitled to.

use godwit_types::HostName;

use super::WhyNot;
use super::standing;
use super::work::Work;
use crate::entitlement::Happiness;

/// Who has less than this is asked about.
const CONTENT: Happiness = Happiness(950_000);
/// Most VMs of one plan: the unhappiest.
const VMS_MAX: usize = 20;

/// Notes why they stay, whom no step concerns.
pub(super) fn explain(work: &mut Work<'_>) {
    let mut unhappy: Vec<(Happiness, usize)> = (0..work.case.hosts.len())
        .filter(|host| work.case.gives(*host))
        .flat_map(|host| standing::happiness(&work.model, host))
        .filter(|(vm, happiness)| *happiness < CONTENT && !is_known(work, *vm))
        .map(|(vm, happiness)| (happiness, vm))
        .collect();
    unhappy.sort_unstable();
    unhappy.truncate(VMS_MAX);
    for (happiness, vm) in unhappy {
        let unit = work.model.unit_of[vm] as usize;
        let reasons = match work.rests(unit) {
            Some(rests) => vec![(None, rests.to_owned())],
            None => reasons(work, unit),
        };
        let wrong = format!("it receives {happiness} of what it is entitled to");
        work.unmoved.push(WhyNot { vm: work.case.vms[vm].name.clone(), wrong, reasons });
    }
}

/// Whether it goes, or it was said already why it does not.
fn is_known(work: &Work<'_>, vm: usize) -> bool {
    let name = &work.case.vms[vm].name;
    work.why.contains_key(&(work.model.unit_of[vm] as usize))
        || work.unmoved.iter().any(|why| why.vm == *name)
}

fn reasons(work: &Work<'_>, unit: usize) -> Vec<(Option<HostName>, String)> {
    let here = work.model.place[unit].map(|host| host as usize);
    let mut reasons = Vec::new();
    for host in (0..work.case.hosts.len()).filter(|host| Some(*host) != here) {
        let name = Some(work.case.hosts[host].name.clone());
        let against = work.model.against(unit, host);
        if against.is_empty() {
            reasons.push((name, worth(work, unit, host).into()));
        } else {
            reasons.extend(against.into_iter().map(|why| (name.clone(), why)));
        }
    }
    if reasons.is_empty() { vec![(None, "there is no other host".into())] } else { reasons }
}

fn worth(work: &Work<'_>, unit: usize, host: usize) -> &'static str {
    match work.model.look(unit, host) {
        Some(dearer) if dearer < 0 => {
            "it would be better there, but the policy allows no more or no lesser moves now"
        }
        _ => "it would gain less there than the move and the VMs there would lose",
    }
}
