//! The PlanetLab benchmark of dynamic consolidation, by the exact rules of CloudSim 3.0.3: 800 hosts, a day of about a thousand
//! VMs, every five minutes. What policies cost in energy, in service, and in migrations.

mod day;
mod kinds;
mod measure;
mod policy;
#[cfg(test)]
mod tests;
mod world;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use self::day::{Day, END_S, INTERVAL_S, OFFSET_S};
use self::policy::{Overload, Pabfd, Planner, Policy};
use self::world::{Migration, Rules, World};
use crate::error::{BenchError, Result};
use crate::output::{print, table, tell};

/// What is to be simulated.
#[derive(Debug, Args)]
pub(crate) struct PlanetLab {
    /// A day's trace: one VM a line, NAME,s0,...,s287 in per cent of its CPU, packed or not; may be repeated.
    #[arg(long = "instance", value_name = "FILE", required = true)]
    instances: Vec<PathBuf>,
    /// Who decides; may be repeated.
    #[arg(long = "policy", value_enum, default_values = ["lr", "godwit"])]
    policies: Vec<Who>,
    /// VMs stay although they want nothing, memory always has to fit, and migrations take as long as mVM's model says.
    #[arg(long)]
    honest: bool,
    /// Print one JSON object a line on standard output, as soon as it is known, instead of a table at the end.
    #[arg(long)]
    json: bool,
}

/// A policy's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Who {
    Thr,
    Iqr,
    Mad,
    /// LRR gives the same: the released simulator does not use the weights by which it would differ.
    #[value(alias = "lrr")]
    Lr,
    /// Godwit's planner, with power management.
    Godwit,
    All,
}

impl Who {
    fn each(self) -> Vec<Self> {
        match self {
            Self::All => vec![Self::Thr, Self::Iqr, Self::Mad, Self::Lr, Self::Godwit],
            one => vec![one],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Thr => "THR-MMT 0.8",
            Self::Iqr => "IQR-MMT 1.5",
            Self::Mad => "MAD-MMT 2.5",
            Self::Lr => "LR-MMT 1.2",
            Self::Godwit => "Godwit",
            Self::All => "all",
        }
    }

    fn policy(self) -> Box<dyn Policy> {
        match self {
            Self::Thr => Box::new(Pabfd(Overload::Thr)),
            Self::Iqr => Box::new(Pabfd(Overload::Iqr)),
            Self::Mad => Box::new(Pabfd(Overload::Mad)),
            Self::Lr => Box::new(Pabfd(Overload::Lr)),
            Self::Godwit | Self::All => Box::new(Planner::default()),
        }
    }
}

/// One policy on one day. Parts are in per cent.
#[derive(Debug, Clone, Serialize)]
struct Row {
    day: String,
    policy: &'static str,
    rules: &'static str,
    vms: usize,
    energy_kwh: f64,
    /// No policy can use less.
    least_energy_kwh: f64,
    migrations: u64,
    slav_percent: f64,
    slatah_percent: f64,
    pdm_percent: f64,
    /// What VMs wanted and did not get.
    lost_percent: f64,
    shutdowns: u64,
}

pub(crate) fn run(options: &PlanetLab) -> Result<()> {
    let rules = if options.honest { Rules::Honest } else { Rules::CloudSim };
    let mut rows = Vec::new();
    for path in &options.instances {
        let day = Day::read(path)?;
        for who in options.policies.iter().flat_map(|who| who.each()) {
            let row = simulate(&day, rules, who)?;
            tell(options.json, &row)?;
            rows.push(row);
        }
    }
    if !options.json {
        print(&shown(&rows));
    }
    Ok(())
}

fn simulate(day: &Day, rules: Rules, who: Who) -> Result<Row> {
    let mut policy = who.policy();
    let places = policy.place(day);
    let mut world = World::new(day, rules, &places);
    let rounds = (END_S / INTERVAL_S) as usize - 1;
    let mut at_s = OFFSET_S;
    for _ in 0..rounds {
        at_s += INTERVAL_S;
        world.advance(at_s);
        world.remember();
        let migrations = policy.plan(&world);
        let durations = world.begin(&migrations);
        for (seconds, ended) in by_end(&migrations, &durations) {
            world.advance(at_s + seconds);
            world.arrive(&ended);
        }
    }
    if !world.is_whole() {
        return Err(BenchError::Instance(format!("{}: a VM was lost", day.name)));
    }
    let measures = &world.measures;
    Ok(Row {
        day: day.name.clone(),
        policy: who.name(),
        rules: if rules == Rules::Honest { "honest" } else { "CloudSim" },
        vms: day.vms(),
        energy_kwh: measures.energy_kwh(),
        least_energy_kwh: day.least_energy_kwh(rules == Rules::CloudSim),
        migrations: measures.migrations,
        slav_percent: measures.violation() * 100.0,
        slatah_percent: measures.overload() * 100.0,
        pdm_percent: measures.lost_to_migrations() * 100.0,
        lost_percent: measures.lost() * 100.0,
        shutdowns: measures.shutdowns(),
    })
}

/// Migrations that end at once, the first to end first.
fn by_end(migrations: &[Migration], durations: &[f64]) -> Vec<(f64, Vec<Migration>)> {
    let mut ends: Vec<f64> = durations.to_vec();
    ends.sort_by(f64::total_cmp);
    ends.dedup();
    let of = |end: f64| {
        let pairs = migrations.iter().zip(durations);
        pairs.filter(move |(_, duration)| **duration == end).map(|(migration, _)| *migration).collect()
    };
    ends.into_iter().map(|end| (end, of(end))).collect()
}

fn shown(rows: &[Row]) -> String {
    let header =
        ["day", "policy", "kWh", "least", "migrations", "SLAV %", "SLATAH %", "PDM %", "lost %", "shutdowns"];
    let lines = rows.iter().map(|row| {
        vec![
            row.day.clone(),
            row.policy.to_owned(),
            format!("{:.2}", row.energy_kwh),
            format!("{:.1}", row.least_energy_kwh),
            row.migrations.to_string(),
            format!("{:.5}", row.slav_percent),
            format!("{:.2}", row.slatah_percent),
            format!("{:.4}", row.pdm_percent),
            format!("{:.2}", row.lost_percent),
            row.shutdowns.to_string(),
        ]
    });
    table(&header, lines)
}
