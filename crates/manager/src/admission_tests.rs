//! What admission promises, for any moves, limits and order of ends.

use proptest::prelude::*;

use super::*;

fn host(number: u8) -> HostName {
    format!("h{number}").parse().unwrap()
}

fn wants(from: u8, to: u8) -> Move {
    Move::between(&host(from), &host(to), false)
}

fn under_way(from: u8, to: u8) -> Move {
    Move::between(&host(from), &host(to), true)
}

fn may_start(moves: &[Move], slots: u32) -> Vec<bool> {
    turns(moves, |_| slots).into_iter().map(|turn| turn == Turn::Now).collect()
}

#[test]
fn two_hosts_that_exchange_vms_do_not_wait_for_each_other() {
    assert_eq!(may_start(&[wants(0, 1), wants(1, 0)], 1), [true, true]);
    let moves = [under_way(0, 1), wants(1, 0), wants(0, 1)];
    assert_eq!(may_start(&moves, 1), [true, true, false]);
}

#[test]
fn one_that_waits_says_for_what_and_at_which_position() {
    let moves = [under_way(0, 1), wants(2, 1), wants(3, 4), wants(2, 1), wants(0, 3)];
    let (to_1, from_0) = (Place::In(host(1)), Place::Out(host(0)));
    let wait = |position, full: &[&Place]| Turn::Wait {
        position,
        full: full.iter().map(|place| (*place).clone()).collect(),
    };
    let turns = turns(&moves, |_| 1);
    // The oldest has the way out of h2 kept for it, so that is full for the other one as well.
    let third = wait(2, &[&Place::Out(host(2)), &to_1]);
    assert_eq!(turns, [Turn::Now, wait(1, &[&to_1]), Turn::Now, third, wait(1, &[&from_0])]);
}

#[test]
fn a_full_host_holds_up_nobody_who_does_not_need_it() {
    // h1 is full; the second that waits for it leaves the way out of h2 to others.
    let moves = [under_way(0, 1), wants(3, 1), wants(2, 1), wants(2, 4)];
    assert_eq!(may_start(&moves, 1), [true, false, false, true]);
}

#[test]
fn the_oldest_gets_its_two_slots_even_if_they_never_get_free_at_the_same_time() {
    // h0's way out and h1's way in are in use by turns; without the kept slot a younger one took each.
    let moves = [wants(0, 1), under_way(2, 1), wants(0, 3)];
    assert_eq!(may_start(&moves, 1), [false, true, false]);
    let moves = [wants(0, 1), under_way(0, 3), wants(2, 1)];
    assert_eq!(may_start(&moves, 1), [false, true, false]);
}

#[derive(Debug, Clone)]
enum Happens {
    Asked(u8, u8),
    /// One under way ends.
    Ended(prop::sample::Index),
    /// One that waits is cancelled.
    Cancelled(prop::sample::Index),
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0..4u8, 1..4u8).prop_map(|(from, by)| Happens::Asked(from, (from + by) % 4)),
        2 => any::<prop::sample::Index>().prop_map(Happens::Ended),
        1 => any::<prop::sample::Index>().prop_map(Happens::Cancelled),
    ]
}

/// The open moves, oldest first, each with its number.
struct Queue {
    open: Vec<(usize, Move)>,
    slots: u32,
    /// In the order of their starts.
    started: Vec<(usize, Move)>,
}

impl Queue {
    fn admit(&mut self) -> Result<(), TestCaseError> {
        let moves: Vec<Move> = self.open.iter().map(|(_, one)| one.clone()).collect();
        for ((number, one), turn) in self.open.iter_mut().zip(turns(&moves, |_| self.slots)) {
            if turn == Turn::Now && !one.under_way {
                one.under_way = true;
                self.started.push((*number, one.clone()));
            }
        }
        let busy = self.open.iter().filter(|(_, one)| one.under_way);
        let busy: Vec<&Place> = busy.flat_map(|(_, one)| &one.places).collect();
        for place in &busy {
            let used = busy.iter().filter(|other| *other == place).count();
            prop_assert!(used <= self.slots as usize, "{place:?} is used {used} times");
        }
        prop_assert!(self.open.is_empty() || !busy.is_empty(), "all wait for each other: {:?}", self.open);
        Ok(())
    }

    fn remove(&mut self, under_way: bool, index: prop::sample::Index) {
        let found: Vec<usize> =
            (0..self.open.len()).filter(|at| self.open[*at].1.under_way == under_way).collect();
        if !found.is_empty() {
            self.open.remove(found[index.index(found.len())]);
        }
    }
}

proptest! {
    #[test]
    fn limits_hold_pairs_go_in_order_and_everyone_starts_in_the_end(
        slots in 1..4u32,
        story in prop::collection::vec(happens(), 1..80),
    ) {
        let mut queue = Queue { open: Vec::new(), slots, started: Vec::new() };
        let mut asked = 0;
        for happens in story {
            match happens {
                Happens::Asked(from, to) => {
                    queue.open.push((asked, wants(from, to)));
                    asked += 1;
                }
                Happens::Ended(index) => queue.remove(true, index),
                Happens::Cancelled(index) => queue.remove(false, index),
            }
            queue.admit()?;
        }
        // The oldest that waits starts as soon as those that are under way now have ended, whoever is behind it.
        while let Some(oldest) = queue.open.iter().find(|(_, one)| !one.under_way).map(|(number, _)| *number) {
            let before: Vec<usize> = queue.open.iter().filter(|(_, one)| one.under_way).map(|(number, _)| *number).collect();
            for ended in before {
                queue.open.retain(|(number, _)| *number != ended);
                queue.admit()?;
            }
            prop_assert!(queue.started.iter().any(|(number, _)| *number == oldest), "{oldest} starves");
        }
        for (at, (number, one)) in queue.started.iter().enumerate() {
            let same = queue.started[..at].iter().filter(|(_, other)| other.places == one.places);
            for (earlier, _) in same {
                prop_assert!(earlier < number, "{number} started after {earlier}");
            }
        }
    }
}
