//! `godwit-bench`: the same guest, moved by Godwit and by QEMU in turn on the same `/dev/kvm`, and what it noticed.
//!
//! ```text
//!   case     what moves: memory, vCPUs, load
//!   engine   who moves it, on which bed: godwit, qemu (qmp), and the link between the hosts
//!   run      one move:  boot -> settle -> migrate -> aftermath -> check of all memory
//!   watch    the guest's pulse, from its serial console; measure: what it says of a move
//!   row, ratio, foresight, table (stats)    the result
//!   machine  what plain TCP can do here
//!   blackout one VM to and fro many times by Godwit alone: the blackout's parts
//!   evacuate several VMs at once, against one alone
//!   returns  there and back: what the way home costs
//!   goodput  how fast memory moves, without guests, against plain TCP and rustls
//! ```

mod blackout;
mod case;
mod engine;
mod error;
mod evacuate;
mod foresight;
mod godwit;
mod goodput;
mod link;
mod machine;
mod measure;
mod qemu;
mod qmp;
mod ratio;
mod returns;
mod row;
mod run;
mod stats;
mod table;
mod warm;
mod watch;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand, ValueEnum};
use godwit_lab::fabric::require_root_and_kvm;
use godwit_lab::setup::{self, packages, say};
use godwit_lab::{cleanup, emulated};
use godwit_migration::wire::PAGE_STREAMS_MAX;
use godwit_types::Bytes;
use serde::Serialize;

use crate::case::{CASES, Case, Load};
use crate::engine::{Bed, Engine, Terms};
use crate::error::{BenchError, Result};
use crate::evacuate::Evacuate;
use crate::foresight::Foresight;
use crate::row::Row;
use crate::run::NOISY_MS;

/// How long a migration may take until it is given up.
const LIMIT: Duration = Duration::from_secs(30);
/// The same in a quick round.
const QUICK_LIMIT: Duration = Duration::from_secs(10);

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench migrate --quick
  cargo xtask bench migrate --case rewrite-2g --engine godwit --engine qemu-multifd --repeat 5
  cargo xtask bench migrate --json > rows.jsonl

Other work on the machine shows in the guest: look at `gap before`. If the machine cannot be left alone, raise the
priority of the shell's session before: `echo -10 > /proc/self/autogroup`, or `nice -n -10` where there is no such file.";

/// Measures what a guest notices of a migration.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Move the same guest by Godwit and by QEMU in turn.
    #[command(after_help = EXAMPLES)]
    Migrate(Migrate),
    /// Move one VM to and fro by Godwit alone, and split its blackouts into their parts.
    #[command(
        after_help = "Examples:\n  cargo xtask bench blackout\n  cargo xtask bench blackout --load rewrite --post-copy --moves 50 --json"
    )]
    Blackout(MeasureBlackout),
    /// Move random memory over the loopback, and compare with what plain TCP and rustls carry there. No guest, no KVM.
    #[command(
        after_help = "Examples:\n  cargo xtask bench goodput\n  cargo xtask bench goodput --streams 4 --repeat 9 --json"
    )]
    Goodput(MeasureGoodput),
    /// Empty a host of several VMs at once, against one alone: how long it takes, and what each guest notices.
    #[command(
        after_help = "Examples:\n  cargo xtask bench evacuate\n  cargo xtask bench evacuate --vms 1,16 --max-migrations 4 --link 1000 --json"
    )]
    Evacuate(Evacuate),
    /// Move a guest away and back after it has changed a part of its memory, and count the bytes of both ways.
    #[command(
        after_help = "Examples:\n  cargo xtask bench return-trip\n  cargo xtask bench return-trip --memory 2GiB --json"
    )]
    ReturnTrip(ReturnTrip),
}

#[derive(Debug, Args)]
struct MeasureBlackout {
    #[arg(long, default_value_t = 200, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    moves: u32,
    /// The guest's memory.
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    memory: Bytes,
    /// What the guest does to it.
    #[arg(long, value_enum, default_value_t = Load::Hot)]
    load: Load,
    /// Memory may follow the guest.
    #[arg(long)]
    post_copy: bool,
    /// The blackout budget, in ms [default: Godwit's own, 50].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_blackout: Option<u32>,
    /// Print a JSON object on standard output instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ReturnTrip {
    /// The guest's memory, in whole MiB. This much is needed twice.
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    memory: Bytes,
    /// Print one JSON object a line on standard output, as soon as it is known, instead of a table at the end.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct MeasureGoodput {
    /// How much memory moves. This much is needed twice.
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    memory: Bytes,
    /// How many page streams; may be repeated [default: 1 and 2].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=i64::from(PAGE_STREAMS_MAX)))]
    streams: Vec<u32>,
    #[arg(long, default_value_t = 5, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Print one JSON object a line on standard output instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Migrate {
    /// One small round: the small cases, and less patience with migrations that do not converge.
    #[arg(long)]
    quick: bool,
    /// Print one JSON object a line on standard output, as soon as it is known, instead of tables at the end.
    #[arg(long)]
    json: bool,
    /// A case to run; may be repeated [default: all].
    #[arg(long = "case", value_name = "NAME", long_help = format!("A case to run; may be repeated [default: all]: {}", case_names()))]
    cases: Vec<String>,
    /// An engine to run; may be repeated [default: all].
    #[arg(long = "engine", value_name = "NAME", value_enum)]
    engines: Vec<Engine>,
    /// Give every engine this blackout budget, in ms [default: each its own: Godwit 50, QEMU 300].
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_blackout: Option<u32>,
    /// Runs of each case on each engine.
    #[arg(long, default_value_t = 1, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
}

fn main() -> ExitCode {
    let Cli { verb } = Cli::parse();
    cleanup::on_interrupt();
    let done = match verb {
        Verb::Migrate(options) => migrate(&options),
        Verb::Blackout(options) => measure_blackout(&options),
        Verb::Goodput(options) => measure_goodput(&options),
        Verb::Evacuate(options) => evacuate(&options),
        Verb::ReturnTrip(options) => return_trip(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure_blackout(options: &MeasureBlackout) -> Result<()> {
    prepare(&[])?;
    let bed = Bed::start()?;
    let wanted = blackout::Wanted {
        memory: options.memory,
        load: options.load,
        moves: options.moves,
        post_copy: options.post_copy,
        terms: Terms { limit: LIMIT, blackout_ms_max: options.max_blackout },
    };
    let shuttle = blackout::measure(&bed, &wanted)?;
    if options.json {
        print(&serde_json::to_string(&shuttle).map_err(BenchError::Print)?);
        return Ok(());
    }
    print(&table::shuttle(&shuttle));
    print(&format!("{} moves, {} by post-copy", shuttle.moves, shuttle.post_copies));
    shuttle.longest_wait_ms.iter().for_each(|ms| print(&format!("longest wait for a page: {ms:.1} ms")));
    print(&shuttle.foresight.describe());
    Ok(())
}

fn measure_goodput(options: &MeasureGoodput) -> Result<()> {
    let streams = if options.streams.is_empty() { &[1, 2][..] } else { &options.streams };
    let goodputs = goodput::measure(options.memory, streams, options.repeat)?;
    if !options.json {
        print(&table::goodputs(&goodputs));
        return Ok(());
    }
    let told = goodputs.iter().map(|goodput| serde_json::to_string(goodput).map_err(BenchError::Print));
    told.collect::<Result<Vec<_>>>().map(|rows| print(&rows.join("\n")))
}

fn evacuate(options: &Evacuate) -> Result<()> {
    prepare(&[Engine::Godwit])?;
    let rows = evacuate::measure(options, |row| tell(options.json, row))?;
    if !options.json {
        print(&table::evacuations(&rows));
    }
    Ok(())
}

fn return_trip(options: &ReturnTrip) -> Result<()> {
    prepare(&[Engine::Godwit])?;
    let returns = returns::measure(options.memory.0 >> 20, |found| tell(options.json, found))?;
    if !options.json {
        print(&table::returns(&returns));
    }
    Ok(())
}

fn migrate(options: &Migrate) -> Result<()> {
    let (cases, engines) = (options.cases()?, options.engines());
    prepare(&engines)?;
    let rows = measure_all(&cases, &engines, options)?;
    let (ratios, foresight) = (ratio::ratios(&rows), Foresight::of_rows(&rows));
    if options.json {
        ratios.iter().try_for_each(|ratio| tell(options.json, ratio))?;
        foresight.iter().try_for_each(|foresight| tell(options.json, foresight))?;
    } else {
        print(&format!("{}\n\n{}", table::rows(&rows), table::ratios(&ratios)));
        foresight.iter().for_each(|foresight| print(&foresight.describe()));
    }
    warn_of_noise(&rows);
    let (runs, wrong) =
        rows.iter().fold((0, 0), |(runs, wrong), row| (runs + row.runs, wrong + row.errors.len()));
    if wrong > 0 { Err(BenchError::RunsFailed { count: wrong, runs }) } else { Ok(()) }
}

/// All rows, told as they come.
fn measure_all(cases: &[&Case], engines: &[Engine], options: &Migrate) -> Result<Vec<Row>> {
    let bed = Bed::start()?;
    say("measuring plain TCP");
    let mut rows = machine::rows(&bed)?;
    rows.iter().try_for_each(|row| tell(options.json, row))?;
    for case in cases {
        if let Some(available) = machine::available_bytes().filter(|bytes| *bytes < case.needed_bytes()) {
            let (needed, available) = (Bytes(case.needed_bytes()), Bytes(available));
            say(format_args!("{}: SKIPPED, it needs {needed} of memory and {available} are left", case.name));
            continue;
        }
        let of_case = run_case(&bed, case, engines, options);
        of_case.iter().try_for_each(|row| tell(options.json, row))?;
        rows.extend(of_case);
    }
    Ok(rows)
}

/// Everything that must be there, with what to do if it is not.
fn prepare(engines: &[Engine]) -> Result<()> {
    require_root_and_kvm()?;
    packages::ensure(&packages::NATIVE)?;
    setup::build_released_programs()?;
    setup::build_reference_guest()?;
    if engines.iter().any(|engine| engine.is_qemu()) {
        emulated::qemu()?;
    }
    Ok(())
}

/// The engines in turn, as often as asked for.
fn run_case(bed: &Bed, case: &Case, engines: &[Engine], options: &Migrate) -> Vec<Row> {
    let mut results: Vec<_> = engines.iter().map(|engine| (*engine, Vec::new(), Vec::new())).collect();
    for repetition in 1..=options.repeat {
        for (engine, runs, errors) in &mut results {
            let name = format!("{}-{}-{repetition}", case.name, engine.name());
            let begun = Instant::now();
            match run::run(bed, case, *engine, &name, options.terms()) {
                Ok(run) => {
                    say(format_args!(
                        "{name}: {} {:.0} ms, blackout {:.1} ms{} ({:.1} s)",
                        if run.converged { "moved in" } else { "NOT moved in" },
                        run.total_ms,
                        run.noticed.blackout_ms,
                        foresight::account(&run),
                        begun.elapsed().as_secs_f64()
                    ));
                    runs.push(run);
                }
                Err(error) => {
                    say(format_args!("{name}: WENT WRONG: {error}"));
                    errors.push(error.to_string());
                }
            }
        }
    }
    results.into_iter().map(|(engine, runs, errors)| Row::new(case, engine, &runs, errors)).collect()
}

fn warn_of_noise(rows: &[Row]) {
    let noisy = rows.iter().filter(|row| row.undisturbed_gap_ms.is_some_and(|gap| gap > NOISY_MS)).count();
    if noisy > 0 {
        say(format_args!(
            "{noisy} rows are doubtful: their guests saw gaps of more than {NOISY_MS} ms before anything moved; other work \
             on this machine takes their CPUs (see --help)"
        ));
    }
}

impl Migrate {
    fn cases(&self) -> Result<Vec<&'static Case>> {
        if self.cases.is_empty() {
            return Ok(CASES.iter().filter(|case| case.quick || !self.quick).collect());
        }
        let find = |name: &String| {
            let found = CASES.iter().find(|case| case.name == name);
            found.ok_or_else(|| BenchError::NoSuchCase(name.clone()))
        };
        self.cases.iter().map(find).collect()
    }

    fn engines(&self) -> Vec<Engine> {
        if self.engines.is_empty() { Engine::value_variants().to_vec() } else { self.engines.clone() }
    }

    fn terms(&self) -> Terms {
        Terms { limit: if self.quick { QUICK_LIMIT } else { LIMIT }, blackout_ms_max: self.max_blackout }
    }
}

/// Prints it, if that is how the result is wanted.
fn tell(json: bool, row: &impl Serialize) -> Result<()> {
    if json {
        print(&serde_json::to_string(row).map_err(BenchError::Print)?);
    }
    Ok(())
}

fn case_names() -> String {
    CASES.map(|case| case.name).join(", ")
}

/// A reader that has gone away has seen enough.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
