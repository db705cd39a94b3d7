//! What machines bear, in rows of numbers side by side that are added and compared several at once.
//!
//! All are whole, but for prices in steps of a power of two, and far below 2^53, so sums of them are exact.

use godwit_scheduler::search::{Pressure, Reach};

use super::instance::{Instance, Machine, Process};
use super::reach::reach;

/// Numbers that are treated at once. What is left of a row is 0 and costs nothing.
const LANES: usize = 4;
type Lanes = [f64; LANES];

/// For a unit of a resource beyond the capacity: no more than is far dearer than any load, and in steps that keep sums exact.
const PRICE_MAX: f64 = 1e5;
const PRICE_STEP: f64 = 1.0 / 64.0;

/// Of some resources, what is used beyond what is safe, and what is held beyond the capacity; less than 0 if there is room.
type Over = [Lanes; 2];

/// What two resources should have free compared with each other.
#[derive(Debug, Clone, Copy)]
struct Balance {
    first: usize,
    second: usize,
    target: f64,
    weight: f64,
}

/// What never changes of an instance.
#[derive(Debug)]
pub(super) struct Frame {
    /// Blocks of lanes that a row has.
    blocks: usize,
    machines: usize,
    weights: Vec<Lanes>,
    balances: Vec<Balance>,
    /// Of each process, what it uses where it is; and what it takes of its first machine when it comes back, which has kept what is
    /// transient for it.
    needs: Vec<Lanes>,
    lasting: Vec<Lanes>,
    mean_needs: Vec<Lanes>,
    pub(super) home: Vec<u32>,
    /// What it costs that a process is away, and that it is on this machine instead of its home (a row of machines for each).
    leaving: Vec<f64>,
    distances: Vec<f64>,
    pub(super) reach: Reach,
}

/// What each machine bears.
#[derive(Debug, Clone)]
pub(super) struct Machines<'a> {
    frame: &'a Frame,
    over: Vec<Over>,
    /// A row for each machine: by how much each balance fails.
    unbalance: Vec<f64>,
    /// A row for each machine: for a unit of each resource beyond the capacity, and how much dearer that is than elsewhere.
    prices: Vec<Lanes>,
    pressure: Pressure,
}

/// What comes to a machine and what goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    pub(super) machine: usize,
    pub(super) comes: Option<usize>,
    pub(super) goes: Option<usize>,
}

impl Frame {
    pub(super) fn new(instance: &Instance) -> Self {
        let lasting = |process: &Process| -> Vec<i64> {
            let kinds = process.needs.iter().zip(&instance.resources);
            kinds.map(|(needs, kind)| if kind.is_transient { 0 } else { *needs }).collect()
        };
        let weights: Vec<i64> = instance.resources.iter().map(|resource| resource.weight).collect();
        let balances = instance.balances.iter().map(|balance| Balance {
            first: balance.first,
            second: balance.second,
            target: balance.target as f64,
            weight: balance.weight as f64,
        });
        let needs: Vec<Lanes> = instance.processes.iter().flat_map(|process| lanes(&process.needs)).collect();
        Self {
            reach: reach(instance),
            mean_needs: means(&needs, lanes(&weights).len()),
            blocks: instance.resources.len().div_ceil(LANES),
            machines: instance.machines.len(),
            weights: lanes(&weights),
            balances: balances.collect(),
            needs,
            lasting: instance.processes.iter().flat_map(|process| lanes(&lasting(process))).collect(),
            home: instance.assignment.iter().map(|machine| *machine as u32).collect(),
            leaving: instance
                .processes
                .iter()
                .map(|process| (process.move_cost * instance.process_move_weight) as f64)
                .collect(),
            distances: instance
                .machines
                .iter()
                .flat_map(|machine| {
                    machine.move_costs.iter().map(|cost| (cost * instance.machine_move_weight) as f64)
                })
                .collect(),
        }
    }

    /// What it costs that a process is there.
    #[inline]
    pub(super) fn moved(&self, process: usize, machine: usize) -> f64 {
        let home = self.home[process] as usize;
        if home == machine {
            0.0
        } else {
            self.leaving[process] + self.distances[home * self.machines + machine]
        }
    }

    /// What a process uses, and what it takes of this machine when it comes, and gives back when it goes.
    fn row(&self, process: usize, machine: usize) -> (&[Lanes], &[Lanes]) {
        let row = process * self.blocks..(process + 1) * self.blocks;
        let takes = if self.home[process] as usize == machine { &self.lasting } else { &self.needs };
        (&self.needs[row.clone()], &takes[row])
    }
}

impl<'a> Machines<'a> {
    /// Everybody at home.
    pub(super) fn new(instance: &Instance, frame: &'a Frame) -> Self {
        let over = |machine: &Machine| {
            let below = |row: &[i64]| lanes(&row.iter().map(|number| -number).collect::<Vec<_>>());
            let (safety, capacity) = (below(&machine.safety), below(&machine.capacity));
            safety.into_iter().zip(capacity).map(|(safety, capacity)| [safety, capacity]).collect::<Vec<_>>()
        };
        let unbalance = instance.machines.iter().flat_map(|machine| {
            let capacity = &machine.capacity;
            instance.balances.iter().map(|b| (b.target * capacity[b.first] - capacity[b.second]) as f64)
        });
        let mut machines = Self {
            frame,
            over: instance.machines.iter().flat_map(over).collect(),
            unbalance: unbalance.collect(),
            prices: vec![[0.0; LANES]; frame.blocks * frame.machines],
            pressure: Pressure::new(frame.blocks * frame.machines * LANES),
        };
        for (process, machine) in instance.assignment.iter().enumerate() {
            machines.exchange(Exchange { machine: *machine, comes: Some(process), goes: None });
            // It holds at home what it uses there.
            for block in 0..frame.blocks {
                let at = process * frame.blocks + block;
                let over = &mut machines.over[machine * frame.blocks + block][1];
                add(over, &frame.needs[at], 1.0);
                add(over, &frame.lasting[at], -1.0);
            }
        }
        machines
    }

    /// What a process needs of a resource on average costs so much where it is beyond the capacity, and more where it has been for
    /// long; 0 if it may not be.
    pub(super) fn price(&mut self, price: f64) {
        let means = self.frame.mean_needs.iter().cycle();
        let pressure = self.pressure.of_places().chunks(LANES);
        for ((prices, means), pressure) in self.prices.iter_mut().zip(means).zip(pressure) {
            let of = |lane: usize| in_steps(price * pressure[lane] / means[lane]);
            *prices = std::array::from_fn(|lane| if means[lane] > 0.0 { of(lane) } else { 0.0 });
        }
    }

    /// Makes it dearer to exceed a capacity where it is exceeded now, from the next [`price`](Self::price) on.
    pub(super) fn press(&mut self) {
        let exceeded = self.over.iter().flat_map(|[_, over]| over.iter().map(|over| *over > 0.0));
        self.pressure.adjust(exceeded);
    }

    /// Load, balance, and what is held beyond the capacity.
    pub(super) fn cost(&self, machine: usize) -> f64 {
        self.sum(machine, |_| ([0.0; LANES], [0.0; LANES])) + self.balance(machine, |_| 0.0)
    }

    /// The same after the exchange.
    pub(super) fn cost_after(&self, change: Exchange) -> f64 {
        let frame = self.frame;
        match (change.comes, change.goes) {
            (Some(comes), Some(goes)) => {
                let (comes, goes) = (frame.row(comes, change.machine), frame.row(goes, change.machine));
                let sum = self.sum(change.machine, |block| {
                    (less(comes.0[block], goes.0[block]), less(comes.1[block], goes.1[block]))
                });
                let more = |r: usize| comes.0[r / LANES][r % LANES] - goes.0[r / LANES][r % LANES];
                sum + self.balance(change.machine, more)
            }
            (Some(comes), None) => {
                let comes = frame.row(comes, change.machine);
                let sum = self.sum(change.machine, |block| (comes.0[block], comes.1[block]));
                sum + self.balance(change.machine, |r| comes.0[r / LANES][r % LANES])
            }
            (None, Some(goes)) => {
                let goes = frame.row(goes, change.machine);
                let none = [0.0; LANES];
                let sum =
                    self.sum(change.machine, |block| (less(none, goes.0[block]), less(none, goes.1[block])));
                sum + self.balance(change.machine, |r| -goes.0[r / LANES][r % LANES])
            }
            (None, None) => self.cost(change.machine),
        }
    }

    /// Whether the machine has the room.
    pub(super) fn fits(&self, change: Exchange) -> bool {
        let row = |process: Option<usize>| process.map(|process| self.frame.row(process, change.machine).1);
        let (comes, goes) = (row(change.comes), row(change.goes));
        let over = &self.over[change.machine * self.frame.blocks..][..self.frame.blocks];
        over.iter().enumerate().all(|(block, [_, over])| {
            let mut after = *over;
            comes.into_iter().for_each(|row| add(&mut after, &row[block], 1.0));
            goes.into_iter().for_each(|row| add(&mut after, &row[block], -1.0));
            after.iter().all(|over| *over <= 0.0)
        })
    }

    /// Whether it holds more than its capacity.
    pub(super) fn is_over_full(&self, machine: usize) -> bool {
        let over = &self.over[machine * self.frame.blocks..][..self.frame.blocks];
        over.iter().any(|[_, over]| over.iter().any(|over| *over > 0.0))
    }

    pub(super) fn exchange(&mut self, change: Exchange) {
        let frame = self.frame;
        for (process, sign) in [(change.comes, 1.0), (change.goes, -1.0)] {
            let Some(process) = process else { continue };
            let (needs, takes) = frame.row(process, change.machine);
            for (block, over) in
                self.over[change.machine * frame.blocks..][..frame.blocks].iter_mut().enumerate()
            {
                add(&mut over[0], &needs[block], sign);
                add(&mut over[1], &takes[block], sign);
            }
            for (index, b) in frame.balances.iter().enumerate() {
                let need = |r: usize| needs[r / LANES][r % LANES] * sign;
                self.unbalance[change.machine * frame.balances.len() + index] +=
                    need(b.second) - b.target * need(b.first);
            }
        }
    }

    /// Over the resources, with more used and held by so much.
    #[inline]
    fn sum(&self, machine: usize, more: impl Fn(usize) -> (Lanes, Lanes)) -> f64 {
        let blocks = self.frame.blocks;
        let (over, prices) = (&self.over[machine * blocks..][..blocks], &self.prices[machine * blocks..]);
        let rows = over.iter().zip(&self.frame.weights).zip(prices);
        let mut sums = [0.0; LANES];
        for (block, ((over, weights), prices)) in rows.enumerate() {
            let (used, held) = more(block);
            for lane in 0..LANES {
                sums[lane] += weights[lane] * positive(over[0][lane] + used[lane])
                    + prices[lane] * positive(over[1][lane] + held[lane]);
            }
        }
        (sums[0] + sums[1]) + (sums[2] + sums[3])
    }

    #[inline]
    fn balance(&self, machine: usize, more: impl Fn(usize) -> f64) -> f64 {
        let balances = &self.frame.balances;
        let rows = balances.iter().zip(&self.unbalance[machine * balances.len()..]);
        rows.map(|(b, fails)| b.weight * positive(fails + more(b.second) - b.target * more(b.first))).sum()
    }
}

fn in_steps(price: f64) -> f64 {
    if price > 0.0 { ((price / PRICE_STEP).ceil() * PRICE_STEP).min(PRICE_MAX) } else { 0.0 }
}

/// One instruction, which `f64::max` is not.
#[inline]
fn positive(number: f64) -> f64 {
    if number > 0.0 { number } else { 0.0 }
}

#[inline]
fn less(one: Lanes, other: Lanes) -> Lanes {
    std::array::from_fn(|lane| one[lane] - other[lane])
}

fn add(sums: &mut Lanes, row: &Lanes, sign: f64) {
    sums.iter_mut().zip(row).for_each(|(sum, number)| *sum += number * sign);
}

/// Of rows of so many blocks.
fn means(rows: &[Lanes], blocks: usize) -> Vec<Lanes> {
    let mut sums = vec![[0.0; LANES]; blocks];
    for row in rows.chunks(blocks) {
        sums.iter_mut().zip(row).for_each(|(sum, row)| add(sum, row, 1.0));
    }
    let count = (rows.len() / blocks).max(1) as f64;
    sums.into_iter().map(|sum| sum.map(|sum| sum / count)).collect()
}

/// A row in blocks.
fn lanes(row: &[i64]) -> Vec<Lanes> {
    let block =
        |numbers: &[i64]| std::array::from_fn(|lane| numbers.get(lane).map_or(0.0, |number| *number as f64));
    row.chunks(LANES).map(block).collect()
}
