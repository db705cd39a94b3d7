//! Finds a VM a place, by sending others away from it where it must: ejection chains.

use super::model::Model;

/// VMs that make way for one, and those that make way for them.
const DEPTH: usize = 2;
/// Most hosts and most VMs that are tried at each.
const HOSTS_MAX: usize = 8;
const GUESTS_MAX: usize = 8;
/// Most VMs that leave one host for one VM.
const LEAVE_MAX: usize = 6;
/// Trials for one VM.
const TRIALS_MAX: u32 = 2_000;

/// The best host as things are: the one that the objective likes best, of equals the one that would be used least in bursts, where
/// those are known, or the first.
pub(super) fn best(model: &Model<'_>, unit: usize, not: &[usize]) -> Option<usize> {
    let hosts = (0..model.case.hosts.len()).filter(|host| !not.contains(host));
    let look = |host: usize| Some((model.look(unit, host)?, model.crowded(unit, host), host));
    hosts.filter_map(look).min().map(|(.., host)| host)
}

/// Moves the unit to a host, and others out of its way if they may be moved. The others, or none if there is no way; then nothing
/// was changed.
pub(super) fn make(
    model: &mut Model<'_>,
    unit: usize,
    may_move: &dyn Fn(usize) -> bool,
) -> Option<Vec<usize>> {
    let mut search = Search { model, may_move, trail: Vec::new(), trials: TRIALS_MAX };
    if !search.settle(unit, &[], DEPTH) {
        return None;
    }
    let mut moved: Vec<usize> =
        search.trail.iter().map(|(unit, _)| *unit).filter(|moved| *moved != unit).collect();
    moved.sort_unstable();
    moved.dedup();
    Some(moved)
}

struct Search<'m, 'a> {
    model: &'m mut Model<'a>,
    may_move: &'m dyn Fn(usize) -> bool,
    /// Who was moved from where, in order.
    trail: Vec<(usize, Option<u32>)>,
    trials: u32,
}

impl Search<'_, '_> {
    /// Moves the unit to any host but these.
    fn settle(&mut self, unit: usize, not: &[usize], depth: usize) -> bool {
        if let Some(host) = best(self.model, unit, not) {
            self.go(unit, host);
            return true;
        }
        if depth == 0 || self.trials == 0 {
            return false;
        }
        self.trials -= 1;
        for host in self.nearly(unit, not) {
            let mark = self.trail.len();
            if self.clear(unit, host, not, depth) {
                self.go(unit, host);
                return true;
            }
            self.undo(mark);
        }
        false
    }

    /// Hosts on which it could run if others left, those that lack least first.
    fn nearly(&self, unit: usize, not: &[usize]) -> Vec<usize> {
        let model = &*self.model;
        let here = model.place[unit].map(|host| host as usize);
        let hosts = (0..model.case.hosts.len()).filter(|host| !not.contains(host) && Some(*host) != here);
        let mut hosts: Vec<(u128, usize)> = hosts
            .filter(|host| model.may_run(unit, *host) && model.fits_empty(unit, *host))
            .map(|host| (model.lacks(unit, host), host))
            .collect();
        hosts.sort_unstable();
        hosts.into_iter().take(HOSTS_MAX).map(|(_, host)| host).collect()
    }

    /// Sends guests of the host away until the unit may come.
    fn clear(&mut self, unit: usize, host: usize, not: &[usize], depth: usize) -> bool {
        let not: Vec<usize> = not.iter().copied().chain([host]).collect();
        for _ in 0..LEAVE_MAX {
            if self.model.look(unit, host).is_some() {
                return true;
            }
            let guests = self.leavers(unit, host);
            let left = guests.into_iter().any(|guest| self.settle(guest, &not, depth - 1));
            if !left {
                return false;
            }
        }
        self.model.look(unit, host).is_some()
    }

    /// Guests whose leaving helps: one that is enough by itself and has least, before the largest of the others.
    fn leavers(&self, unit: usize, host: usize) -> Vec<usize> {
        let model = &*self.model;
        let guests = model.guests(host).iter().map(|guest| *guest as usize);
        let may = |guest: &usize| {
            *guest != unit && (self.may_move)(*guest) && !self.trail.iter().any(|(moved, _)| moved == guest)
        };
        let lacks = model.lacks(unit, host);
        let rule = model.has_room(unit, host).then(|| model.breaks(unit, host)).flatten();
        let mut guests: Vec<((bool, i128), usize)> = guests
            .filter(may)
            .filter_map(|guest| {
                let gives = model.gives_way(guest, unit, host);
                let helps = match rule {
                    Some(rule) => model.is_named(guest, rule),
                    None => gives > 0,
                };
                let enough = rule.is_some() || gives >= lacks;
                let size = gives as i128;
                helps.then_some(((!enough, if enough { size } else { -size }), guest))
            })
            .collect();
        guests.sort_unstable();
        guests.into_iter().take(GUESTS_MAX).map(|(_, guest)| guest).collect()
    }

    fn go(&mut self, unit: usize, to: usize) {
        self.trail.push((unit, self.model.place[unit]));
        self.model.go(unit, to);
    }

    fn undo(&mut self, mark: usize) {
        while self.trail.len() > mark
            && let Some((unit, from)) = self.trail.pop()
        {
            // Only the unit that all this is for may have had no host, and it goes last, for good.
            if let Some(from) = from {
                self.model.go(unit, from as usize);
            }
        }
    }
}
