//! Where each process can be at all: what is transient is held at home for those that are away, and processes that can be nowhere else
//! are always where they are.

use godwit_scheduler::search::Reach;

use super::instance::Instance;

/// The machines that each process can be on, wherever the others are.
pub(super) fn reach(instance: &Instance) -> Reach {
    let (machines, processes) = (instance.machines.len(), instance.processes.len());
    let mut reach = vec![true; machines * processes];
    let mut is_fixed = vec![false; processes];
    loop {
        narrow(instance, &is_fixed, &mut reach);
        let has_choice = |process: usize| {
            (0..machines).filter(|machine| reach[process * machines + machine]).nth(1).is_some()
        };
        let fixed: Vec<usize> =
            (0..processes).filter(|process| !is_fixed[*process] && !has_choice(*process)).collect();
        if fixed.is_empty() {
            return Reach::new(machines, processes, |process, machine| reach[process * machines + machine]);
        }
        fixed.into_iter().for_each(|process| is_fixed[process] = true);
    }
}

/// By what is left beside those that cannot leave.
fn narrow(instance: &Instance, is_fixed: &[bool], reach: &mut [bool]) {
    let (machines, services) = (instance.machines.len(), instance.services.len());
    let mut room: Vec<Vec<i64>> = instance.machines.iter().map(|machine| machine.capacity.clone()).collect();
    let mut is_taken = vec![false; services * machines];
    for (process, home) in instance.assignment.iter().enumerate() {
        let needs = instance.processes[process].needs.iter().zip(&instance.resources);
        for (room, (needs, resource)) in room[*home].iter_mut().zip(needs) {
            *room -= if resource.is_transient || is_fixed[process] { *needs } else { 0 };
        }
        is_taken[instance.processes[process].service * machines + home] |= is_fixed[process];
    }
    for (process, rules) in instance.processes.iter().enumerate() {
        for machine in (0..machines).filter(|machine| *machine != instance.assignment[process]) {
            let has_room = rules.needs.iter().zip(&room[machine]).all(|(needs, room)| needs <= room);
            if !has_room || is_taken[rules.service * machines + machine] {
                reach[process * machines + machine] = false;
            }
        }
    }
}
