//! Instances of the Google machine reassignment problem (ROADEF/EURO challenge 2012), in the contest's text format.
//!
//! All of it is whole numbers between blanks. The model: resources (transient, weight); machines (neighbourhood, location, capacities,
//! safety capacities, costs of a move to each machine); services (least spread, services that it depends on); processes (service,
//! requirements, cost of a move); balances (two resources and target, weight); weights of moves of processes, services, machines.
//! The assignment: each process's machine.

use std::path::{Path, PathBuf};
use std::str::SplitAsciiWhitespace;

use crate::error::{BenchError, Result};
use crate::system::read;

/// See the module. Machines are hosts and processes are VMs; here they are called what the contest calls them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) name: String,
    pub(super) resources: Vec<Resource>,
    pub(super) machines: Vec<Machine>,
    pub(super) services: Vec<Service>,
    pub(super) processes: Vec<Process>,
    pub(super) balances: Vec<Balance>,
    pub(super) process_move_weight: i64,
    pub(super) service_move_weight: i64,
    pub(super) machine_move_weight: i64,
    /// Each process's machine at the beginning.
    pub(super) assignment: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resource {
    /// A process that moves uses it on both machines at once.
    pub(super) is_transient: bool,
    pub(super) weight: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) neighbourhood: usize,
    pub(super) location: usize,
    pub(super) capacity: Vec<i64>,
    /// Use above it costs.
    pub(super) safety: Vec<i64>,
    pub(super) move_costs: Vec<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    /// Locations that it must be in, at least.
    pub(super) spread_min: usize,
    /// Where one of its processes is, there must be one of each of these in the same neighbourhood.
    pub(super) depends_on: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) service: usize,
    pub(super) needs: Vec<i64>,
    pub(super) move_cost: i64,
}

/// What is free of `second` should be `target` times what is free of `first`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Balance {
    pub(super) first: usize,
    pub(super) second: usize,
    pub(super) target: i64,
    pub(super) weight: i64,
}

impl Instance {
    /// `model_NAME.txt`, and `assignment_NAME.txt` beside it.
    pub(super) fn read(model: &Path) -> Result<Self> {
        let name = model.file_stem().unwrap_or_default().to_string_lossy();
        let name = name.strip_prefix("model_").unwrap_or(&name).to_owned();
        let assignment = sibling(model, "assignment")
            .ok_or_else(|| BenchError::Instance(format!("{}: give a file model_*.txt", model.display())))?;
        Self::parse(&name, &read(model)?, &read(&assignment)?)
    }

    /// From the texts of both files.
    pub(super) fn parse(name: &str, model: &str, assignment: &str) -> Result<Self> {
        let wrong = |what: String| BenchError::Instance(format!("{name}: {what}"));
        let mut numbers = Numbers(model.split_ascii_whitespace());
        let mut instance = numbers.instance(name).map_err(wrong)?;
        let places = assignment.split_ascii_whitespace().map(|place| {
            let place = place.parse().ok().filter(|place| *place < instance.machines.len());
            place.ok_or_else(|| wrong("a place in the assignment is no machine".to_owned()))
        });
        instance.assignment = places.collect::<Result<_>>()?;
        if instance.assignment.len() != instance.processes.len() {
            return Err(wrong("the assignment is not of as many processes".to_owned()));
        }
        Ok(instance)
    }
}

/// The file of another kind for the same model: `lb_a1_1.txt` beside `model_a1_1.txt`.
pub(super) fn sibling(model: &Path, kind: &str) -> Option<PathBuf> {
    let rest = model.file_name()?.to_str()?.strip_prefix("model")?;
    Some(model.with_file_name(format!("{kind}{rest}")))
}

struct Numbers<'a>(SplitAsciiWhitespace<'a>);

impl Numbers<'_> {
    fn instance(&mut self, name: &str) -> Result<Instance, String> {
        let resources = self
            .list(|numbers| Ok(Resource { is_transient: numbers.next()? != 0, weight: numbers.next()? }))?;
        let kinds = resources.len();
        let count = self.index(usize::MAX)?;
        let machines = (0..count).map(|_| self.machine(kinds, count)).collect::<Result<Vec<_>, _>>()?;
        let count = self.index(usize::MAX)?;
        let services = (0..count).map(|_| self.service(count)).collect::<Result<Vec<_>, _>>()?;
        let processes = self.list(|numbers| {
            Ok(Process {
                service: numbers.index(count)?,
                needs: numbers.row(kinds)?,
                move_cost: numbers.next()?,
            })
        })?;
        let balances = self.list(|numbers| {
            Ok(Balance {
                first: numbers.index(kinds)?,
                second: numbers.index(kinds)?,
                target: numbers.next()?,
                weight: numbers.next()?,
            })
        })?;
        Ok(Instance {
            name: name.to_owned(),
            resources,
            machines,
            services,
            processes,
            balances,
            process_move_weight: self.next()?,
            service_move_weight: self.next()?,
            machine_move_weight: self.next()?,
            assignment: Vec::new(),
        })
    }

    fn machine(&mut self, kinds: usize, machines: usize) -> Result<Machine, String> {
        Ok(Machine {
            neighbourhood: self.index(usize::MAX)?,
            location: self.index(usize::MAX)?,
            capacity: self.row(kinds)?,
            safety: self.row(kinds)?,
            move_costs: self.row(machines)?,
        })
    }

    fn service(&mut self, services: usize) -> Result<Service, String> {
        let spread_min = self.index(usize::MAX)?;
        let depends_on = self.list(|numbers| numbers.index(services))?;
        Ok(Service { spread_min, depends_on })
    }

    /// A count, and so many of them.
    fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Result<T, String>) -> Result<Vec<T>, String> {
        let count = self.index(usize::MAX)?;
        (0..count).map(|_| one(self)).collect()
    }

    fn row(&mut self, count: usize) -> Result<Vec<i64>, String> {
        (0..count).map(|_| self.next()).collect()
    }

    fn index(&mut self, bound: usize) -> Result<usize, String> {
        let number = self.next()?;
        let index = usize::try_from(number).ok().filter(|index| *index < bound);
        index.ok_or_else(|| format!("{number} is none of {bound}"))
    }

    /// Amounts are 32 bits wide in the contest, so their products are numbers too.
    fn next(&mut self) -> Result<i64, String> {
        let word = self.0.next().ok_or("the model ends too early")?;
        word.parse::<u32>().map(i64::from).map_err(|_| format!("'{word}' is no number of 32 bits"))
    }
}
