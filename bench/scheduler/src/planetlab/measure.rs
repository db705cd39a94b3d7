//! What the benchmark measures, as the simulator computes it.

/// Of one policy on one day.
#[derive(Debug)]
pub(super) struct Measures {
    pub(super) joules: f64,
    pub(super) migrations: u64,
    pub(super) of_hosts: Vec<Account>,
    pub(super) of_vms: Vec<Account>,
}

impl Measures {
    pub(super) fn new(hosts: usize, vms: usize) -> Self {
        Self {
            joules: 0.0,
            migrations: 0,
            of_hosts: vec![Account::default(); hosts],
            of_vms: vec![Account::default(); vms],
        }
    }

    pub(super) fn energy_kwh(&self) -> f64 {
        self.joules / 3.6e6
    }

    /// SLATAH: the part of the time that hosts work in which they give less than they are asked for, all hosts together.
    pub(super) fn overload(&self) -> f64 {
        ratio(self.sum_hosts(|host| host.short_s), self.sum_hosts(|host| host.marked_s))
    }

    /// PDM: the part of what VMs want that they do not get while they are moved.
    pub(super) fn lost_to_migrations(&self) -> f64 {
        ratio(self.sum_vms(|vm| vm.marked_missed), self.sum_vms(|vm| vm.wanted))
    }

    /// The part of what VMs want that they do not get.
    pub(super) fn lost(&self) -> f64 {
        ratio(self.sum_vms(|vm| vm.wanted - vm.given), self.sum_vms(|vm| vm.wanted))
    }

    /// SLAV.
    pub(super) fn violation(&self) -> f64 {
        self.overload() * self.lost_to_migrations()
    }

    /// How often a host went off. One that never worked counts, since hosts begin as working ones.
    pub(super) fn shutdowns(&self) -> u64 {
        let ends_now = |host: &Account| host.marked_before && host.last.is_some_and(|last| !last.mark);
        self.of_hosts.iter().map(|host| host.ended + u64::from(ends_now(host))).sum()
    }

    fn sum_hosts(&self, value: impl Fn(&Account) -> f64) -> f64 {
        self.of_hosts.iter().map(value).sum()
    }

    fn sum_vms(&self, value: impl Fn(&Account) -> f64) -> f64 {
        self.of_vms.iter().map(value).sum()
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// What somebody wanted and got over time: from each note to the next, what the first one says. The last of several notes
/// of one moment counts.
#[derive(Debug, Clone)]
pub(super) struct Account {
    last: Option<Note>,
    /// The mark before the last one.
    marked_before: bool,
    wanted: f64,
    given: f64,
    /// Time that was marked, and time of it in which less was given than wanted.
    marked_s: f64,
    short_s: f64,
    /// What was wanted and not given while it was marked.
    marked_missed: f64,
    /// How often a mark ended.
    ended: u64,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            last: None,
            marked_before: true,
            wanted: 0.0,
            given: 0.0,
            marked_s: 0.0,
            short_s: 0.0,
            marked_missed: 0.0,
            ended: 0,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Note {
    at_s: f64,
    given: f64,
    wanted: f64,
    mark: bool,
}

impl Account {
    /// A host is marked while it works, a VM while it is moved.
    pub(super) fn note(&mut self, at_s: f64, given: f64, wanted: f64, mark: bool) {
        if let Some(last) = self.last.filter(|last| last.at_s != at_s) {
            self.close(last, at_s);
        }
        self.last = Some(Note { at_s, given, wanted, mark });
    }

    fn close(&mut self, last: Note, at_s: f64) {
        let seconds = at_s - last.at_s;
        self.wanted += last.wanted * seconds;
        self.given += last.given * seconds;
        self.ended += u64::from(self.marked_before && !last.mark);
        self.marked_before = last.mark;
        if last.mark {
            self.marked_s += seconds;
            if last.given < last.wanted {
                self.short_s += seconds;
                self.marked_missed += (last.wanted - last.given) * seconds;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_adds_up_what_held_from_each_note_to_the_next() {
        let mut account = Account::default();
        account.note(0.0, 5.0, 10.0, true);
        account.note(0.0, 8.0, 10.0, true);
        account.note(10.0, 4.0, 4.0, false);
        account.note(20.0, 0.0, 0.0, true);
        assert_eq!((account.wanted, account.given), (140.0, 120.0));
        assert_eq!((account.marked_s, account.short_s, account.marked_missed), (10.0, 10.0, 20.0));
        assert_eq!(account.ended, 1);
    }

    #[test]
    fn violation_is_overload_times_what_migrations_cost() {
        let mut measures = Measures::new(1, 1);
        measures.of_hosts[0].note(0.0, 50.0, 100.0, true);
        measures.of_hosts[0].note(1.0, 100.0, 100.0, true);
        measures.of_hosts[0].note(4.0, 0.0, 0.0, false);
        measures.of_vms[0].note(0.0, 90.0, 100.0, true);
        measures.of_vms[0].note(1.0, 100.0, 100.0, false);
        measures.of_vms[0].note(2.0, 100.0, 100.0, false);
        assert_eq!((measures.overload(), measures.lost_to_migrations()), (0.25, 0.05));
        assert!((measures.violation() - 0.0125).abs() < 1e-12);
    }
}
