//! What VMs and the host use, measured from outside: the processor time of each thread, as the kernel accounts it, and counters
//! that only grow. The means are of the last minute.
//!
//! ```text
//!   kernel    the counters, as /proc has them
//!   window    counters of the last minute -> means
//! ```

mod kernel;
mod window;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_types::VmId;
use godwit_types::usage::{HostUsage, VmUsage};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::kernel::{HostCounters, Threads};
use self::window::Window;
use crate::agent::Agent;
use crate::facts;
use crate::vm::Machine;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often it is looked at what each disk holds: with one of so many looks.
const LOOKS_PER_DISKS: u32 = 8;
/// How long a VM's process may take to say what its disks do.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

/// What a VM's process has used since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct VmCounters {
    run_ns: u64,
    wait_ns: u64,
    network_bytes: u64,
    storage_ops: u64,
}

/// One VM's process, as long as it lives.
#[derive(Debug)]
struct Watched {
    machine: Arc<Machine>,
    threads: Threads,
    window: Window<VmCounters>,
}

/// Looks now and then until it is aborted.
pub(crate) async fn measure_forever(agent: Arc<Agent>) {
    let mut host = Window::default();
    let mut vms = BTreeMap::<VmId, Watched>::new();
    let mut looked_at_disks = JoinSet::new();
    let mut looks: u32 = 0;
    loop {
        // Beside all else, and not again before it has ended: a datastore may hang.
        while looked_at_disks.try_join_next().is_some() {}
        if looks.is_multiple_of(LOOKS_PER_DISKS) && looked_at_disks.is_empty() {
            let machines = agent.vms.all_live();
            looked_at_disks
                .spawn_blocking(move || machines.iter().for_each(|machine| machine.look_at_disks()));
        }
        looks = looks.wrapping_add(1);
        host.add(Instant::now(), HostCounters::read());
        agent.set_usage(host_usage(&host));
        let live = agent.vms.all_live();
        vms.retain(|_, watched| live.iter().any(|machine| Arc::ptr_eq(machine, &watched.machine)));
        let operations = storage_ops(&live).await;
        let received = kernel::network_bytes();
        for machine in live {
            let watched = vms.entry(machine.id()).or_insert_with(|| Watched {
                threads: Threads::default(),
                window: Window::default(),
                machine: Arc::clone(&machine),
            });
            let (run_ns, wait_ns) = watched.threads.look(machine.process.pid());
            let counters = VmCounters {
                run_ns,
                wait_ns,
                network_bytes: machine.ports.iter().filter_map(|port| received.get(&port.tap)).sum(),
                // Whoever does not answer has done nothing more, as far as is known.
                storage_ops: operations
                    .get(&machine.id())
                    .copied()
                    .or_else(|| Some(watched.window.newest()?.storage_ops))
                    .unwrap_or(0),
            };
            watched.window.add(Instant::now(), counters);
            machine.set_usage(vm_usage(&watched.window, machine.process.pid()));
        }
        sleep(INTERVAL).await;
    }
}

/// Reads and writes of their disks since they began, of those that answer. They are asked side by side.
async fn storage_ops(machines: &[Arc<Machine>]) -> BTreeMap<VmId, u64> {
    let mut asked = JoinSet::new();
    for machine in machines {
        let (vm, control) = (machine.id(), machine.control.clone());
        asked.spawn(async move {
            let answer = timeout(STATUS_TIMEOUT, control.status()).await;
            Some((vm, answer.ok()?.ok()?.disk_operations))
        });
    }
    asked.join_all().await.into_iter().flatten().collect()
}

fn vm_usage(window: &Window<VmCounters>, pid: u32) -> Option<VmUsage> {
    let (over, first, last) = window.ends()?;
    let rate = |counter: fn(&VmCounters) -> u64, each: u64| {
        window::rate(counter(last).saturating_sub(counter(first)), each, over)
    };
    Some(VmUsage {
        over_ms: window::milliseconds(over),
        cpu_run_permille: window::narrow(rate(|counters| counters.run_ns, 1_000_000)),
        cpu_wait_permille: window::narrow(rate(|counters| counters.wait_ns, 1_000_000)),
        memory: facts::memory_resident(pid),
        network_bytes_per_s: rate(|counters| counters.network_bytes, 1),
        storage_ops_per_s: rate(|counters| counters.storage_ops, 1),
    })
}

fn host_usage(window: &Window<HostCounters>) -> Option<HostUsage> {
    let (over, first, last) = window.ends()?;
    let permille = |counter: fn(&HostCounters) -> u64| {
        window::narrow(window::rate(counter(last).saturating_sub(counter(first)), 1_000, over))
    };
    Some(HostUsage {
        over_ms: window::milliseconds(over),
        cpu_permille: permille(|counters| counters.busy_us),
        cpu_pressure_permille: permille(|counters| counters.cpu_stalled_us),
        memory_pressure_permille: permille(|counters| counters.memory_stalled_us),
        cpu_mhz: kernel::cpu_mhz(),
    })
}
