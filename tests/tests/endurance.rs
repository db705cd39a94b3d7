//! Many moves in a row, with all that may befall them in between.

use std::time::Duration;

use godwit_faults::Step;
use godwit_lab::cluster::{Cluster, GuestOptions};
use godwit_lab::fabric::{Fabric, Process};
use godwit_lab::load::Load;
use godwit_lab::{LabError, Result};
use godwit_tests::footprint::Footprint;
use godwit_tests::{VERB_LIMIT, assert_alive, assert_unnoticed, boot, ensure, hosts, load, on_one_fabric};
use godwit_types::task::TaskState;
use godwit_types::{Bytes, HostName};

const MOVES: u32 = 200;
/// Moves after which pools and caches hold what they ever will.
const WARM_UP: u32 = 20;
/// Steps at which a destination is killed.
const FATAL: [Step; 5] = [
    Step::DestinationAdmit,
    Step::SourceSendRound,
    Step::SourcePause,
    Step::DestinationLoad,
    Step::DestinationSendPrepared,
];
/// Chosen by a dice; the same every time.
const SEED: u64 = 0x90d1_7000;

/// What befalls a move.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Undisturbed,
    CancelledAfter(Duration),
    /// Before the commit.
    DestinationKilledAt(Step),
    DeviceFails(Step),
}

#[test]
fn two_hundred_moves_with_cancels_and_failures_in_between_harm_nothing_and_leak_nothing() {
    on_one_fabric(|fabric, place| {
        let cluster: &dyn Cluster = fabric;
        let [mut at, mut other] = hosts(cluster);
        let guest = GuestOptions {
            vcpus: 2,
            working_set: Bytes::mib(32),
            rate: "2000".into(),
            content: "random".into(),
            ..GuestOptions::named("wanderer")
        };
        boot(cluster, place, &guest, &at)?;
        let load = load(cluster, &guest)?;
        let (mut dice, mut before, mut moved) = (Dice(SEED), None, 0);
        for number in 0..MOVES {
            if number == WARM_UP {
                before = Some(footprints(fabric)?);
            }
            let fate = dice.fate();
            let mark = load.mark()?;
            let succeeded = one_move(fabric, &guest, &other, fate)?;
            assert_unnoticed(&load, &mark, &format!("move {number} to {other}, {fate:?}"))?;
            cluster.assert_runs_on(&guest.name, if succeeded { &other } else { &at })?;
            if succeeded {
                std::mem::swap(&mut at, &mut other);
                moved += 1;
            }
        }
        ensure(
            moved > MOVES / 4 && moved < MOVES,
            format!("{moved} of {MOVES} moves went through: the dice is loaded"),
        )?;
        assert_alive(cluster, guest.address)?;
        Load::stop(load);
        for ((who, before), (_, now)) in before.iter().flatten().zip(footprints(fabric)?) {
            eprintln!("{who}: {before:?}, then {now:?}");
            now.assert_no_leak(before, who)?;
        }
        Ok(())
    });
}

/// Whether the VM has moved.
fn one_move(fabric: &Fabric, guest: &GuestOptions, to: &HostName, fate: Fate) -> Result<bool> {
    let cluster: &dyn Cluster = fabric;
    let begin = || cluster.migrate_detached(&guest.name, to, &[]);
    let task = match fate {
        Fate::Undisturbed => begin()?,
        Fate::DeviceFails(step) => {
            cluster.fail(step, 1)?;
            begin()?
        }
        Fate::CancelledAfter(pause) => {
            let task = begin()?;
            std::thread::sleep(pause);
            // Refused when it is too late, which is an end like any other.
            let _ = cluster.cli().text(&["task", "cancel", &task.id.to_string()], VERB_LIMIT);
            task
        }
        Fate::DestinationKilledAt(step) => {
            let hold = cluster.hold(step)?;
            let task = begin()?;
            hold.await_reached()?;
            fabric.kill_vmms(to)?;
            task
        }
    };
    let ended = cluster.await_task(&task, "an end", VERB_LIMIT, |task| task.state.is_final())?;
    match (ended.state, ended.error) {
        (TaskState::Succeeded, _) => Ok(true),
        (_, Some(_)) => Ok(false),
        (state, None) => Err(LabError::Broken(format!("the move ended as {state:?} and does not say why"))),
    }
}

fn footprints(fabric: &Fabric) -> Result<Vec<(String, Footprint)>> {
    let agents = fabric.hosts().iter().cloned().map(Process::Agent);
    let processes = std::iter::once(Process::Manager).chain(agents);
    processes.map(|process| Ok((process.to_string(), Footprint::of(fabric.pid(&process)?)?))).collect()
}

/// A small generator (xorshift), so that every run throws the same.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn fate(&mut self) -> Fate {
        let pause = Duration::from_millis(self.throw(400));
        let step = FATAL[self.throw(FATAL.len() as u64) as usize];
        match self.throw(8) {
            0..4 => Fate::Undisturbed,
            4 | 5 => Fate::CancelledAfter(pause),
            6 => Fate::DestinationKilledAt(step),
            _ => Fate::DeviceFails(if self.throw(2) == 0 { Step::SourceSave } else { Step::DestinationLoad }),
        }
    }
}
