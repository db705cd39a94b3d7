use std::path::PathBuf;

use godwit_scheduler::cluster::Move;
use godwit_scheduler::search::{Model, Walk};

use super::evaluate::Violation;
use super::machines::Frame;
use super::model::{RULES, Reassignment};
use super::*;

/// Two resources, the second transient, of weights 100 and 10; four machines in two neighbourhoods and three locations; service 0
/// in at least two locations, service 1 beside service 0, service 2 free; four processes, the first two of service 0; free of
/// resource 1 twice what is free of resource 0, by weight 10; moves weigh 1, 10 and 100.
const MODEL: &str = "
    2  0 100  1 10
    4  0 0  30 400  16 80  0 1 4 5
       0 0  10 240   8 160  1 0 3 4
       1 1  15 100  12 80  4 3 0 2
       1 2  10 100   8 80  5 4 2 0
    3  2 0  1 1 0  1 0
    4  0 12 10 1000  0 10 20 100  1 6 200 1  2 2 15 5
    1  0 1 20 10
    1 10 100";
const ASSIGNMENT: &str = "0 3 0 1";

fn small() -> Instance {
    Instance::parse("small", MODEL, ASSIGNMENT).unwrap()
}

#[test]
fn costs_are_those_worked_out_by_hand() {
    let instance = small();
    // Loads: machine 0 has 18 of a safe 16 and 210 of 80, machine 3 10 of 8 and 20 of 80: 2*100 + 130*10 + 2*100.
    // Balance: 20 * 12 - 190, 20 * 8 - 225, 20 * 15 - 100 and 20 * 0 - 80: (50 + 0 + 200 + 0) * 10.
    let cost = Cost { load: 1700, balance: 2500, ..Cost::default() };
    assert_eq!(evaluate(&instance, &[0, 3, 0, 1]), Ok(cost));
    // Process 3 goes to machine 2: 20 * 10 - 240 and 20 * 13 - 85, and 5 * 1, 1 * 10, 3 * 100 for the move.
    let moved = Cost { process_move: 5, service_move: 10, machine_move: 300, balance: 2250, ..cost };
    assert_eq!(evaluate(&instance, &[0, 3, 0, 2]), Ok(moved));
}

#[test]
fn each_rule_is_kept() {
    let instance = small();
    let violation = |assignment: [usize; 4]| evaluate(&instance, &assignment).unwrap_err();
    assert_eq!(violation([1, 3, 0, 1]), Violation::Capacity { machine: 1, resource: 0 });
    assert_eq!(violation([0, 0, 0, 1]), Violation::Conflict { service: 0, machine: 0 });
    assert_eq!(violation([0, 1, 0, 1]), Violation::Spread { service: 0 });
    let missing = Violation::Dependency { service: 1, needed: 0, neighbourhood: 0 };
    assert_eq!(violation([2, 3, 0, 1]), missing);
    // Two processes of 200 each have left machine 0, or come to it, which has 400.
    let model = MODEL.replace("2 2 15 5", "2 2 201 5");
    let instance = Instance::parse("small", &model, ASSIGNMENT).unwrap();
    let transient = Violation::Transient { machine: 0, resource: 1 };
    assert_eq!(evaluate(&instance, &[0, 3, 1, 0]), Err(transient));
}

#[test]
fn broken_files_are_refused() {
    let refused =
        |model: &str, assignment: &str| Instance::parse("x", model, assignment).unwrap_err().to_string();
    assert!(refused("2 0 100", ASSIGNMENT).contains("too early"));
    assert!(refused(&MODEL.replace("1 6 200", "7 6 200"), ASSIGNMENT).contains("none of 3"));
    assert!(refused(&MODEL.replace("1000", "-4"), ASSIGNMENT).contains("no number"));
    assert!(refused(MODEL, "0 3 0 4").contains("no machine"));
    assert!(refused(MODEL, "0 3 0").contains("as many"));
}

fn assignment(model: &Reassignment<'_>) -> Vec<usize> {
    (0..model.vms()).map(|process| model.host_of(process)).collect()
}

/// Every move from everywhere that the walk comes to: what the model says of it is what the evaluator says.
fn agrees(instance: &Instance, steps: u64, every: usize) {
    let frame = Frame::new(instance);
    let mut walk = Walk::new(Reassignment::new(instance, &frame), usize::MAX, 7);
    let (mut allowed, mut refused) = (0, 0);
    for _ in 0..steps {
        walk.anneal(1e4, 50);
        let model = walk.model();
        let cost = evaluate(instance, &assignment(model)).map(Cost::total);
        assert_eq!(cost.map(|cost| cost as f64), Ok(model.cost()));
        let relocations =
            (0..model.vms()).flat_map(|vm| (0..model.hosts()).map(move |to| Move::Relocate { vm, to }));
        let swaps = (0..model.vms()).flat_map(|one| (0..one).map(move |other| Move::Swap { one, other }));
        for change in relocations.chain(swaps).step_by(every) {
            let mut moved = model.clone();
            moved.apply(change);
            let is_move = assignment(&moved) != assignment(model);
            let expected = evaluate(instance, &assignment(&moved)).ok().filter(|_| is_move);
            assert_eq!(model.look(change), expected.map(|cost| cost.total() as f64), "{change:?}");
            *(if expected.is_some() { &mut allowed } else { &mut refused }) += 1;
        }
    }
    assert!(allowed > 0 && refused > 0, "{allowed} {refused}");
}

#[test]
fn the_model_agrees_with_the_evaluator_move_by_move() {
    agrees(&small(), 40, 1);
}

#[test]
fn what_is_held_beyond_the_capacity_has_its_price_and_is_counted() {
    let instance = small();
    let frame = Frame::new(&instance);
    let mut model = Reassignment::new(&instance, &frame);
    let change = Move::Relocate { vm: 0, to: 1 };
    assert_eq!(model.look(change), None);
    // Processes need 7.5 of resource 0 on average, and machine 1 will hold 14 of 10.
    model.price(Some([52.5, 0.0, 0.0, 0.0]));
    let cost = model.look(change).unwrap();
    assert_eq!((model.look_below(change, cost), model.look_below(change, cost - 1.0)), (Some(cost), None));
    model.apply(change);
    assert_eq!((model.cost(), model.broken(), model.is_allowed()), (cost, [1, 0, 0, 0], false));
    model.price(Some([60.0, 0.0, 0.0, 0.0]));
    assert_eq!(model.cost(), cost + 4.0);
    model.price(None);
    assert_eq!(model.cost(), cost - 28.0);
}

#[test]
fn each_rule_of_services_has_its_price_and_is_counted() {
    let instance = small();
    let frame = Frame::new(&instance);
    let broken = |change: Move| {
        let mut model = Reassignment::new(&instance, &frame);
        assert_eq!(model.look(change), None, "{change:?}");
        model.price(Some([1.0, 10_000.0, 200_000.0, 3_000_000.0]));
        let (cost, looked) = (model.cost(), model.look(change).unwrap());
        model.apply(change);
        assert_eq!((model.cost(), model.is_allowed()), (looked, false));
        (model.broken(), ((looked - cost) / 10_000.0).round())
    };
    // Beside the other one of its service, whose only location that is.
    assert_eq!(broken(Move::Relocate { vm: 1, to: 0 }), ([0, 1, 1, 0], 21.0));
    // To another machine there, which is too small.
    assert_eq!(broken(Move::Relocate { vm: 1, to: 1 }), ([1, 0, 1, 0], 20.0));
    // Without the service that it depends on, or away from the one that depends on it.
    assert_eq!(broken(Move::Relocate { vm: 0, to: 2 }), ([0, 0, 0, 1], 300.0));
}

#[test]
fn a_capacity_costs_more_where_it_has_been_exceeded() {
    let instance = small();
    let frame = Frame::new(&instance);
    let mut model = Reassignment::new(&instance, &frame);
    // Machine 1 will hold 14 of 10, of which processes need 7.5 on average.
    model.apply(Move::Relocate { vm: 0, to: 1 });
    let costs_at = |model: &mut Reassignment<'_>, price: f64| {
        model.price(None);
        let free = model.cost();
        model.price(Some([price, 0.0, 0.0, 0.0]));
        model.cost() - free
    };
    assert_eq!(costs_at(&mut model, 60.0), 32.0);
    model.press();
    assert_eq!(costs_at(&mut model, 60.0), 4.0 * 10.40625, "1.3 times 8, in steps of a 64th");
    model.apply(Move::Relocate { vm: 0, to: 0 });
    (0..20).for_each(|_| model.press());
    model.apply(Move::Relocate { vm: 0, to: 1 });
    assert_eq!(costs_at(&mut model, 60.0), 32.0);
}

/// Of all there are, no assignment that is allowed has a process where it cannot be; and there are places where one cannot be.
#[test]
fn processes_are_found_only_where_they_can_be() {
    for needs in ["6 200", "6 230", "10 300"] {
        let model = MODEL.replace("6 200", needs);
        let instance = Instance::parse("small", &model, ASSIGNMENT).unwrap();
        let reach = reach::reach(&instance);
        let mut seen = [[false; 4]; 4];
        for places in (0..4usize.pow(4)).map(|at| [at % 4, at / 4 % 4, at / 16 % 4, at / 64]) {
            if evaluate(&instance, &places).is_ok() {
                places.into_iter().enumerate().for_each(|(process, machine)| seen[process][machine] = true);
            }
        }
        let all = || (0..4).flat_map(|process| (0..4).map(move |machine| (process, machine)));
        assert!(all().all(|(process, machine)| !seen[process][machine] || reach.can_be(process, machine)));
        assert!(all().any(|(process, machine)| !reach.can_be(process, machine)), "{needs}");
    }
}

/// Wherever a walk that may break rules has come to, what is broken is what the rules say, and moves cost what they did when looked at.
#[test]
fn a_model_that_breaks_rules_keeps_its_accounts() {
    for instance in
        [small()].into_iter().chain(instances().iter().take(10).map(|path| Instance::read(path).unwrap()))
    {
        let frame = Frame::new(&instance);
        let mut start = Reassignment::new(&instance, &frame);
        start.price(Some([1e4; RULES]));
        let mut walk = Walk::new(start, usize::MAX, 7);
        let mut lawless = 0;
        for round in 0..60 {
            walk.anneal(1e6 * f64::from(round), 20);
            let model = walk.model();
            let is_allowed = evaluate(&instance, &assignment(model)).is_ok();
            assert_eq!(model.is_allowed(), is_allowed, "{} {:?}", instance.name, model.broken());
            lawless += u32::from(!is_allowed);
            let cost = walk.cost();
            assert!((cost - model.cost()).abs() <= cost * 1e-9, "{} {cost} {}", instance.name, model.cost());
            let best: Vec<usize> = walk.best_hosts().iter().map(|host| *host as usize).collect();
            assert_eq!(evaluate(&instance, &best).unwrap().total() as f64, walk.best_cost());
        }
        assert!(lawless > 0, "{}", instance.name);
    }
}

#[test]
fn a_small_instance_is_solved_to_the_optimum_by_either_clock() {
    let instance = small();
    let cost = |clock: Clock| {
        let solution = solve(&instance, Limit { clock, time: Duration::from_millis(200) }, 1);
        evaluate(&instance, &solution.assignment).unwrap().total()
    };
    let places =
        |count: usize| (0..4usize.pow(4)).map(move |at| [at % 4, at / 4 % 4, at / 16 % 4, at / 64 % count]);
    let least = places(4).filter_map(|places| evaluate(&instance, &places).ok()).map(Cost::total).min();
    assert_eq!([Clock::Wall, Clock::Processor].map(|clock| Some(cost(clock))), [least, least]);
}

/// The contest's instances are not part of the project; `GODWIT_TRACES` names a folder in which `roadef2012` has them.
fn instances() -> Vec<PathBuf> {
    let Some(traces) = std::env::var_os("GODWIT_TRACES") else {
        eprintln!("SKIPPED: set GODWIT_TRACES to a folder with roadef2012/A/model_*.txt and so on");
        return Vec::new();
    };
    let folders = ["A", "B"].map(|set| PathBuf::from(&traces).join("roadef2012").join(set));
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let mut models: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    models.retain(|path| path.file_name().unwrap().to_string_lossy().starts_with("model_"));
    models.sort();
    assert!(!models.is_empty(), "no instances in {}", traces.display());
    models
}

#[test]
fn the_original_costs_are_reproduced() {
    for path in instances() {
        let instance = Instance::read(&path).unwrap();
        let cost = evaluate(&instance, &instance.assignment).unwrap().total();
        assert_eq!(Some(cost), number(&path, "original_cost").unwrap(), "{}", instance.name);
    }
}

#[test]
fn the_model_agrees_with_the_evaluator_on_the_contests_instances() {
    for path in instances().into_iter().take(10) {
        let instance = Instance::read(&path).unwrap();
        let moves = instance.processes.len() * (instance.processes.len() / 2 + instance.machines.len());
        agrees(&instance, 3, moves / 40);
    }
}
