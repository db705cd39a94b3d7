//! Saving power on real VMs: an idle cluster shrinks to one host, and grows back under load.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use godwit_lab::cluster::{Cli, Cluster};
use godwit_lab::fabric::{Fabric, Process};
use godwit_lab::{LabError, Result, exec};
use godwit_tests::{
    VERB_LIMIT, assert_alive, boot, ensure, on_one_fabric_with, owner, small_guest, three_hosts,
};
use godwit_types::HostName;
use godwit_types::host::{Host, StandbyPhase};

/// How long the scheduler may take to see what is to be seen, and hosts to go or to come.
const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn an_idle_cluster_shrinks_to_one_host_and_grows_back_under_load() {
    on_one_fabric_with(three_hosts(), |fabric, place| {
        let switches = Switches::install(fabric)?;
        let cluster: &dyn Cluster = fabric;
        let guests = [small_guest(0, "200"), small_guest(1, "0"), small_guest(2, "0")];
        boot(cluster, place, &guests[0], &fabric.hosts()[0])?;
        let saving = ["policy", "set", "--automation", "full", "--power", "on", "--power-uptime", "0s"];
        cluster.cli().text(&saving, VERB_LIMIT)?;
        switches.until("one host is on", |hosts| on(hosts).len() == 1 && off(hosts) == 2)?;
        assert_alive(cluster, guests[0].address)?;
        let one = on(&hosts(cluster)?)[0].clone();
        ensure(owner(cluster, &guests[0].name)? == one, "the guest is where the host is on")?;

        for guest in &guests[1..] {
            boot(cluster, place, guest, &one)?;
        }
        switches.until("another host is on", |hosts| on(hosts).len() >= 2)?;
        let apart =
            || -> Result<bool> { Ok(owner(cluster, &guests[1].name)? != owner(cluster, &guests[2].name)?) };
        switches.until("busy guests are apart", |_| apart().unwrap_or(false))?;
        guests.iter().try_for_each(|guest| assert_alive(cluster, guest.address))
    });
}

/// The hosts' power switches: a program tells what the manager wants, and the test does it.
struct Switches<'a> {
    fabric: &'a Fabric,
    dir: PathBuf,
    /// Hosts whose agent was ended.
    off: RefCell<Vec<HostName>>,
}

impl<'a> Switches<'a> {
    fn install(fabric: &'a Fabric) -> Result<Self> {
        let dir = fabric.manager_state().join("power");
        let program = dir.join("lab");
        let script = format!(
            "#!/bin/sh\ncd {} || exit 1\ncase $1 in\nstate) cat $2.state 2> /dev/null || echo on ;;\n*) echo $1 > $2.wish ;;\nesac\n",
            dir.display()
        );
        let written = fs::create_dir_all(&dir)
            .and_then(|()| fs::write(&program, script))
            .and_then(|()| fs::set_permissions(&program, fs::Permissions::from_mode(0o700)));
        written.map_err(LabError::io(format!("write {}", program.display())))?;
        for host in fabric.hosts() {
            let set = ["host", "set", host.as_str(), "--power-driver", "simulated", "--power-program", "lab"];
            cli(fabric).text(&set, VERB_LIMIT)?;
            let told: serde_json::Value = cli(fabric).ask(&["host", "power", host.as_str()])?;
            ensure(told.is_object(), format!("`host power --json` prints no document: {told}"))?;
        }
        Ok(Self { fabric, dir, off: RefCell::default() })
    }

    /// Does what the manager wants of the switches until it is so.
    fn until(&self, what: &str, is_so: impl Fn(&[Host]) -> bool) -> Result<()> {
        let seen = exec::poll(LIMIT, exec::POLL_COMMAND, || {
            self.serve()?;
            Ok(is_so(&hosts(self.fabric)?).then_some(()))
        })?;
        seen.ok_or_else(|| {
            let decisions = cli(self.fabric).text(&["scheduler", "status"], VERB_LIMIT);
            LabError::Broken(format!("not within {} s: {what}: {decisions:#?}", LIMIT.as_secs()))
        })
    }

    fn serve(&self) -> Result<()> {
        for host in self.fabric.hosts() {
            let wish = self.dir.join(format!("{host}.wish"));
            let Ok(wanted) = fs::read_to_string(&wish) else { continue };
            let agent = Process::Agent(host.clone());
            let state = match wanted.trim() {
                "standby" => {
                    self.fabric.kill_process(&agent)?;
                    self.off.borrow_mut().push(host.clone());
                    "off"
                }
                "wake" => {
                    // It may be asked more than once.
                    if self.off.borrow().contains(host) {
                        self.fabric.start_process(agent)?;
                        self.off.borrow_mut().retain(|off| off != host);
                    }
                    "on"
                }
                // Not all of it is written yet.
                _ => continue,
            };
            let _ = fs::remove_file(&wish);
            let written = fs::write(self.dir.join(format!("{host}.state")), state);
            written.map_err(LabError::io("write down that a host was switched"))?;
        }
        Ok(())
    }
}

fn hosts(cluster: &dyn Cluster) -> Result<Vec<Host>> {
    cluster.cli().ask(&["host", "ls"])
}

/// Those that take VMs.
fn on(hosts: &[Host]) -> Vec<HostName> {
    hosts.iter().filter(|host| host.standby.is_none()).map(|host| host.name.clone()).collect()
}

fn off(hosts: &[Host]) -> usize {
    hosts.iter().filter_map(|host| host.standby).filter(|standby| standby.phase == StandbyPhase::Off).count()
}

fn cli(cluster: &dyn Cluster) -> Cli<'_> {
    cluster.cli()
}
