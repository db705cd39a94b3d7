//! What is reported of each step, and of all of them.

use serde::Serialize;

/// How content VMs are, in per cent of what they are entitled to: their mean by shares, and the VM that one in twenty, or one in a
/// hundred, is no more content than.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    pub p5: f64,
    pub p1: f64,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// Its beginning, in seconds from the trace's.
    pub at_s: u64,
    pub wanted_mhz: f64,
    pub given_mhz: f64,
    /// What the hosts have that are on when it begins.
    pub capacity_mhz: f64,
    /// Hosts that are on, and VMs that run nowhere, when it ends.
    pub hosts_on: usize,
    pub waiting: usize,
    /// Its mean.
    pub watts: f64,
    /// How the new demand finds the VMs, before anybody is moved.
    pub happiness: Spread,
    /// Moves that end in it, and those that take a VM back to where it was less than an hour ago.
    pub moves: u64,
    pub moves_in_vain: u64,
    pub moved_gib: f64,
    /// Minutes that hosts together are asked for more CPU or memory than they have.
    pub overload_host_min: f64,
    /// CPU that was wanted and not given, in MHz times hours.
    pub unmet_mhz_h: f64,
    /// Rules that are broken when it begins.
    pub broken_rules: usize,
}

/// All steps.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    pub steps: usize,
    pub hours: f64,
    pub energy_kwh: f64,
    pub hosts_on_mean: f64,
    pub hosts_on_min: usize,
    pub hosts_on_max: usize,
    /// Of the hosts that are on, in per cent.
    pub load_mean_percent: f64,
    pub happiness_mean: f64,
    /// The worst step.
    pub happiness_p5_worst: f64,
    pub happiness_p1_worst: f64,
    pub moves: u64,
    pub moves_in_vain: u64,
    /// Of all moves, in per cent.
    pub ping_pong_percent: f64,
    /// Most moves that end in one step.
    pub moves_in_step_max: u64,
    pub moves_per_vm_day: f64,
    /// Hosts that were sent to standby or woken, and those of them within an hour of the last time.
    pub switches: u64,
    pub switches_in_vain: u64,
    pub moved_gib: f64,
    /// Of processors, at both ends together.
    pub migration_cpu_s: f64,
    pub blackout_s: f64,
    pub overload_host_min: f64,
    /// Of the CPU that was wanted.
    pub unmet_percent: f64,
    /// Steps times rules that were broken when they began.
    pub broken_rules: usize,
    /// Steps of plans that could not be carried out when their time had come, or not before the next plan.
    pub refused: u64,
    pub superseded: u64,
    /// VMs that run nowhere in the end.
    pub waiting: usize,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub hosts: usize,
    pub vms: usize,
    pub interval_s: u64,
    pub seed: u64,
    pub policy: godwit_scheduler::policy::Policy,
    pub summary: Summary,
    /// What the scheduler found wrong with the snapshot or the policy, each once.
    pub findings: Vec<String>,
    pub steps: Vec<StepReport>,
}

/// What is only added up.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) refused: u64,
    pub(crate) superseded: u64,
    pub(crate) switches: u64,
    pub(crate) switches_in_vain: u64,
    pub(crate) migration_cpu_ms: u64,
    pub(crate) blackout_us: u64,
}

impl Summary {
    pub(crate) fn of(steps: &[StepReport], tally: &Tally, interval_ms: u64, vms: usize) -> Self {
        let count = steps.len().max(1) as f64;
        let sum = |value: fn(&StepReport) -> f64| steps.iter().map(value).sum::<f64>();
        let least = |value: fn(&StepReport) -> f64| steps.iter().map(value).fold(100.0, f64::min);
        let hours = steps.len() as f64 * interval_ms as f64 / 3_600_000.0;
        let moves: u64 = steps.iter().map(|step| step.moves).sum();
        let in_vain: u64 = steps.iter().map(|step| step.moves_in_vain).sum();
        let part = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let on = || steps.iter().map(|step| step.hosts_on);
        Self {
            steps: steps.len(),
            hours,
            energy_kwh: sum(|step| step.watts) / count * hours / 1000.0,
            hosts_on_mean: sum(|step| step.hosts_on as f64) / count,
            hosts_on_min: on().min().unwrap_or(0),
            hosts_on_max: on().max().unwrap_or(0),
            load_mean_percent: part(sum(|step| step.given_mhz), sum(|step| step.capacity_mhz)) * 100.0,
            happiness_mean: sum(|step| step.happiness.mean) / count,
            happiness_p5_worst: least(|step| step.happiness.p5),
            happiness_p1_worst: least(|step| step.happiness.p1),
            moves,
            moves_in_vain: in_vain,
            ping_pong_percent: part(in_vain as f64, moves as f64) * 100.0,
            moves_in_step_max: steps.iter().map(|step| step.moves).max().unwrap_or(0),
            moves_per_vm_day: part(moves as f64, vms as f64 * hours / 24.0),
            switches: tally.switches,
            switches_in_vain: tally.switches_in_vain,
            moved_gib: sum(|step| step.moved_gib),
            migration_cpu_s: tally.migration_cpu_ms as f64 / 1000.0,
            blackout_s: tally.blackout_us as f64 / 1e6,
            overload_host_min: sum(|step| step.overload_host_min),
            unmet_percent: part(sum(|step| step.wanted_mhz - step.given_mhz), sum(|step| step.wanted_mhz))
                * 100.0,
            broken_rules: steps.iter().map(|step| step.broken_rules).sum(),
            refused: tally.refused,
            superseded: tally.superseded,
            waiting: steps.last().map_or(0, |step| step.waiting),
        }
    }
}
