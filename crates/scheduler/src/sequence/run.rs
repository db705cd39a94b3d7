//! Steps as they would be executed, from the first to the last, or to where nothing can begin.
//!
//! Whenever a move begins or ends, the others go faster or slower: what a host may send is divided among those that leave it, and what
//! it takes in among those that come (`flow`).

use std::collections::BTreeMap;

use super::flow::Traffic;
use super::ground::Ground;
use super::{Going, Timed, cost};
use crate::planner::Cost;
use crate::planner::case::Case;

/// How often the length of the way behind a step is passed on: chains are short.
const PASSES: usize = 8;

/// Where nothing can begin any more.
pub(super) struct Stuck<'a> {
    /// Places in the list of those that have not begun.
    pub(super) pending: Vec<usize>,
    /// What hosts hold then.
    pub(super) ground: Ground<'a>,
}

struct Run<'c, 'g> {
    case: &'c Case<'c>,
    going: &'g [Going],
    /// For each, the step that brings the VM to where it begins.
    before: Vec<Option<usize>>,
    now_ms: u64,
    ground: Ground<'c>,
    /// As if nobody ever left: who may begin even so waits for nobody.
    crowded: Ground<'c>,
    pending: Vec<usize>,
    /// Moves under way, each by its place in `steps`.
    running: Traffic,
    steps: Vec<Timed>,
    step_of: Vec<Option<usize>>,
}

/// Runs through them. VMs that are there twice go by way of another host, in the order of the list.
pub(super) fn run<'c>(case: &'c Case<'c>, going: &[Going]) -> Result<Vec<Timed>, Stuck<'c>> {
    let costs = estimates(case, going);
    let ground = Ground::new(case);
    let mut run = Run {
        case,
        going,
        now_ms: 0,
        crowded: ground.clone(),
        ground,
        pending: ranked(case, going, &costs),
        before: before(going),
        running: Traffic::new(case.hosts.iter().map(|host| host.migration.bytes_per_s).collect()),
        steps: Vec::new(),
        step_of: vec![None; going.len()],
    };
    loop {
        run.begin();
        if run.pending.is_empty() {
            while run.wait() {}
            return Ok(run.steps);
        }
        if !run.wait() {
            return Err(Stuck { pending: run.pending, ground: run.ground });
        }
    }
}

impl Run<'_, '_> {
    /// Begins everything that can begin now.
    fn begin(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        for at in pending {
            if self.can_begin(at) {
                self.start(at);
            } else {
                self.pending.push(at);
            }
        }
    }

    fn can_begin(&self, at: usize) -> bool {
        let Going { vm, from, to, .. } = self.going[at];
        let slots = |host: usize| self.case.hosts[host].migration.moves_max;
        let free = from.is_none_or(|from| {
            let (leave, come) = self.running.at(from, to);
            leave < slots(from) && come < slots(to)
        });
        let came = self.before[at].is_none_or(|first| {
            self.step_of[first].is_some_and(|step| self.steps[step].ends_ms <= self.now_ms)
        });
        free && came && self.ground.admits(vm, from, to)
    }

    fn start(&mut self, at: usize) {
        let going = self.going[at].clone();
        let Going { vm, from, to, .. } = going;
        let after = self.after(at);
        self.ground.arrive(vm, to);
        self.crowded.arrive(vm, to);
        if let Some(from) = from {
            self.running.begin(self.steps.len(), (from, to), self.case.writes(vm, to), self.now_ms);
        }
        self.step_of[at] = Some(self.steps.len());
        // Of a move it is known when it ends once it has.
        let ends_ms = if from.is_some() { u64::MAX } else { self.now_ms };
        let (begins_ms, cost) = (self.now_ms, Cost::default());
        self.steps.push(Timed { going, cost, begins_ms, ends_ms, after });
    }

    /// Those that must have ended: the one that brought the VM to where it leaves; and, unless there is room for all that ever come,
    /// all that have left its destination, or the failure domain of it.
    fn after(&self, at: usize) -> Vec<usize> {
        let Going { vm, from, to, .. } = self.going[at];
        let first = self.before[at].and_then(|first| self.step_of[first]);
        let waits = !self.crowded.admits(vm, from, to);
        let domains = &self.case.table.domains;
        let leaves = |step: &Timed| {
            let from = step.going.from;
            from.is_some_and(|from| domains[from] == domains[to]) && step.ends_ms <= self.now_ms
        };
        let left = (0..self.steps.len()).filter(|step| waits && leaves(&self.steps[*step]));
        let mut after: Vec<usize> = left.chain(first).collect();
        after.sort_unstable();
        after.dedup();
        after
    }

    /// Until the next end. Whether there is anything to wait for.
    fn wait(&mut self) -> bool {
        let Some(next) = self.running.next_end_ms() else { return false };
        self.now_ms = next;
        while let Some((step, cost)) = self.running.end(next) {
            (self.steps[step].ends_ms, self.steps[step].cost) = (next, cost);
            let Going { vm, from, .. } = self.steps[step].going;
            from.into_iter().for_each(|from| self.ground.leave(vm, from));
        }
        true
    }
}

/// For each the place of the one before it that moves the same VM.
fn before(going: &[Going]) -> Vec<Option<usize>> {
    let mut last = BTreeMap::new();
    going.iter().enumerate().map(|(at, going)| last.insert(going.vm, at)).collect()
}

/// What each would cost, if as many as can went beside it all the time: by this they are ranked before any begins.
fn estimates(case: &Case<'_>, going: &[Going]) -> Vec<Cost> {
    let hosts = case.hosts.len();
    let (mut out, mut into) = (vec![0u64; hosts], vec![0u64; hosts]);
    for Going { from, to, .. } in going {
        if let Some(from) = from {
            out[*from] += 1;
            into[*to] += 1;
        }
    }
    let part = |host: usize, moves: u64| {
        let room = case.hosts[host].migration;
        room.bytes_per_s / moves.clamp(1, u64::from(room.moves_max.max(1)))
    };
    let each = going.iter().map(|Going { vm, from, to, .. }| {
        from.map_or(Cost::default(), |from| {
            let bytes_per_s = part(from, out[from]).min(part(*to, into[*to]));
            cost::of(&case.writes(*vm, *to), bytes_per_s)
        })
    });
    each.collect()
}

/// By priority, then those first on which the longest way hangs: a step frees its source for those that come there.
fn ranked(case: &Case<'_>, going: &[Going], costs: &[Cost]) -> Vec<usize> {
    let mut ways: Vec<u64> = costs.iter().map(|cost| cost.duration_ms).collect();
    for _ in 0..PASSES {
        let mut longest = vec![0; case.hosts.len()];
        for (going, way) in going.iter().zip(&ways) {
            longest[going.to] = way.max(&longest[going.to]).to_owned();
        }
        for (at, going) in going.iter().enumerate() {
            ways[at] = costs[at].duration_ms.saturating_add(going.from.map_or(0, |from| longest[from]));
        }
    }
    let mut ranked: Vec<usize> = (0..going.len()).collect();
    ranked.sort_by_key(|at| (going[*at].priority, std::cmp::Reverse(ways[*at]), *at));
    ranked
}
