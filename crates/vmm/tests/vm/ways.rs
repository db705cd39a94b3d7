//! The oracle is moved in every way: each load by one, two and four page streams, encrypted and in clear, by pre-copy and by
//! post-copy, over a fast and a slow network, 504 moves in all. Before every third move an attempt is cancelled somewhere.

use std::time::Duration;

use godwit_types::control::{Notice, Reply, Request, VmmState};
use godwit_types::migration::{Budget, MigrationOutcome, OnDeadline};

use crate::reference::{Fixture, expect_verified};
use crate::support::{Route, Vmm, grant, grant_everything, migration_id};

const STREAMS: [usize; 3] = [1, 2, 4];
/// Bytes a second: none, and slow enough that pages go packed and as deltas.
const CAPS: [Option<u64>; 2] = [None, Some(48 << 20)];
/// Of every way.
const TIMES: u64 = 3;
/// A cancel comes at a moment that is less than this after the start.
const CANCEL_WITHIN_MS: u64 = 120;

#[test]
fn an_idle_guest_moves_in_every_way() {
    moves(1, "godwit.ws=16MiB godwit.rate=idle godwit.content=random");
}

#[test]
fn a_guest_that_writes_random_pages_steadily_moves_in_every_way() {
    moves(2, "godwit.ws=16MiB godwit.rate=2000 godwit.content=random");
}

#[test]
fn a_guest_that_writes_compressible_pages_steadily_moves_in_every_way() {
    moves(1, "godwit.ws=24MiB godwit.hot=4MiB godwit.rate=4000 godwit.content=compressible");
}

#[test]
fn a_guest_that_writes_zeros_moves_in_every_way() {
    moves(2, "godwit.ws=16MiB godwit.rate=4000 godwit.content=zero");
}

#[test]
fn a_guest_that_rewrites_random_pages_as_fast_as_it_can_moves_in_every_way() {
    moves(1, "godwit.ws=16MiB godwit.rate=0 godwit.content=random");
}

#[test]
fn a_guest_that_rewrites_compressible_pages_as_fast_as_it_can_moves_in_every_way() {
    moves(2, "godwit.ws=16MiB godwit.rate=0 godwit.content=compressible");
}

#[test]
fn a_guest_that_rewrites_a_tenth_of_its_memory_moves_in_every_way() {
    moves(2, "godwit.ws=32MiB godwit.hot=4MiB godwit.rate=0 godwit.content=random");
}

/// One way to move.
#[derive(Debug, Clone, Copy)]
struct Way {
    streams: usize,
    plain: bool,
    post_copy: bool,
    cap: Option<u64>,
}

impl Way {
    fn all() -> impl Iterator<Item = Self> {
        STREAMS.into_iter().flat_map(|streams| {
            CAPS.into_iter().flat_map(move |cap| {
                [(false, false), (true, false), (false, true), (true, true)].map(|(plain, post_copy)| Self {
                    streams,
                    plain,
                    post_copy,
                    cap,
                })
            })
        })
    }

    fn budget(self) -> Budget {
        Budget {
            blackout_ms_max: if self.post_copy { 3 } else { 50 },
            deadline_ms: 500,
            on_deadline: OnDeadline::Switch,
            bandwidth_bytes_per_s_max: self.cap,
            plain: self.plain,
            post_copy: self.post_copy,
            verify: true,
            slowdown_percent_max: 0,
        }
    }

    fn route(self) -> Route {
        Route { streams: self.streams, plain: self.plain }
    }
}

/// How many attempts there have been, and numbers that look random.
struct Attempts {
    number: u64,
    random: u64,
}

impl Attempts {
    fn next(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % limit
    }
}

fn moves(vcpus: u8, load: &str) {
    let Some(fixture) = Fixture::new() else { return };
    let mut here = fixture.boot(vcpus, load);
    fixture.report();
    let mut attempts = Attempts { number: 0, random: 0x9e37_79b9_7f4a_7c15 };
    for (index, way) in (0..TIMES).flat_map(|_| Way::all()).enumerate() {
        if index % 3 == 0 {
            here = cancelled(&fixture, here, way, &mut attempts);
        }
        let number = attempts.next();
        let mut there = fixture.destination_by(&here, number, way.route());
        let connections = here.migrate_by(&there, migration_id(number), way.budget(), way.route());
        let outcome = grant_everything(&mut here, &mut there);
        let MigrationOutcome::Completed { report } = outcome else {
            panic!("{way:?}: {outcome:?}; {}", here.errors())
        };
        drop(connections);
        expect_verified(&report);
        fixture.leave(here);
        here = there;
        if index % 8 == 7 {
            let before = fixture.report();
            fixture.progress(&before);
        }
    }
}

/// Begins a move and cancels it at some moment, unless its commit is asked for by then; where the guest runs afterwards.
fn cancelled(fixture: &Fixture, mut here: Vmm, way: Way, attempts: &mut Attempts) -> Vmm {
    let number = attempts.next();
    let migration = migration_id(number);
    let mut there = fixture.destination_by(&here, number, way.route());
    let connections = here.migrate_by(&there, migration, way.budget(), way.route());
    std::thread::sleep(Duration::from_millis(attempts.below(CANCEL_WITHIN_MS)));
    let reply = here.ask(&Request::CancelMigration { migration });
    let outcome = grant(&mut here, &mut there);
    drop(connections);
    match (reply, outcome) {
        (Reply::Done, Some(MigrationOutcome::Failed { .. })) => {
            assert_eq!(here.status().state, VmmState::Running);
            there.notices.until(|notice| matches!(notice, Notice::IncomingFailed { .. }).then_some(()));
            fixture.leave(there);
            here
        }
        (Reply::Error { .. }, None) => {
            crate::support::ended(&mut here, &mut there);
            fixture.leave(here);
            there
        }
        (reply, outcome) => panic!("{way:?}: {reply:?}, and then {outcome:?}; {}", here.errors()),
    }
}
