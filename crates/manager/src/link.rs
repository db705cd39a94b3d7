//! What is known of moving VMs from one host to another, from the migrations that were: a pure function of their reports.

use godwit_migration::planner::observed_bytes_per_s;
use godwit_scheduler::snapshot::MigrationRoom;
use godwit_types::HostName;
use godwit_types::forecast::{Estimate, KnownFrom, Link};
use godwit_types::migration::{Budget, MigrationReport};

/// The newest migrations that count: what a network was before says little.
const MOVES_MAX: usize = 8;
/// How far the next one may be off those that were seen: one alone says less than several.
const SWAY_OF_ONE: f64 = 1.6;
const SWAY: f64 = 1.2;
/// Assumed of a link of which nothing is known: from a busy 1 Gb/s, expecting a free one, to 10 Gb/s. In bytes per second.
const ASSUMED_BYTES_PER_S: Estimate = Estimate { low: 30e6, expected: 115e6, high: 1.2e9 };
/// What an interface carries of memory at best, beside headers, and what is expected of one that is shared.
const CARRIED: f64 = 0.94;
const SHARED: f64 = 0.25;
/// Above this, processors say what is moved and not the interface: encrypted by one core or two, in bytes per second.
const PROCESSORS_BYTES_PER_S: f64 = 1.2e9;
/// Assumed of handing over, in milliseconds.
const ASSUMED_HANDOFF_MS: Estimate = Estimate { low: 5.0, expected: 15.0, high: 50.0 };

/// A migration that succeeded, and what was asked of it.
pub(crate) type Move = (Budget, MigrationReport);

/// What is asked of a move beside from where to where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Encryption has a price, so moves in clear say nothing about those that are not.
    pub(crate) plain: bool,
    /// The destination has kept memory of the VM. Then it is compared first, and little is sent: only other returns say how long that
    /// takes, as long as there are any.
    pub(crate) returns: bool,
}

impl Kind {
    fn of((budget, report): &Move) -> Self {
        Self { plain: budget.plain, returns: report.bytes.reused_pages > 0 }
    }
}

/// What to expect of a move `from` a host `to` another, from earlier ones, newest first. Before the first, the speed of the slower
/// of their interfaces says most.
pub(crate) fn expect(
    (from, to): (&HostName, &HostName),
    interface_bits_per_s: Option<u64>,
    kind: Kind,
    moves: &[Move],
) -> Link {
    let is_pair = |report: &MigrationReport| {
        (&report.from, &report.to) == (from, to) || (&report.from, &report.to) == (to, from)
    };
    let pair: Vec<&Move> = moves.iter().filter(|(_, report)| is_pair(report)).collect();
    let source: Vec<&Move> = moves.iter().filter(|(_, report)| report.from == *from).collect();
    let first_trip = Kind { returns: false, ..kind };
    let seen = |moves: &[&Move]| rates(moves, kind).or_else(|| rates(moves, first_trip));
    let (rates, known_from) = match (seen(&pair), seen(&source)) {
        (Some((rates, migrations)), _) => (rates, KnownFrom::Pair { migrations }),
        (None, Some((rates, migrations))) => (rates, KnownFrom::Source { migrations }),
        (None, None) => match interface_bits_per_s {
            Some(bits_per_s) => ([of_interface(bits_per_s); 2], KnownFrom::Interface { bits_per_s }),
            None => ([ASSUMED_BYTES_PER_S; 2], KnownFrom::Assumption),
        },
    };
    let handoff_ms = handoffs(&pair).or_else(|| handoffs(&source)).unwrap_or(ASSUMED_HANDOFF_MS);
    let [bytes_per_s, later_bytes_per_s] = rates;
    let kept_part = if kind.returns { kept_parts(&pair) } else { None }.unwrap_or_default();
    Link { bytes_per_s, later_bytes_per_s, handoff_ms, kept_part, known_from }
}

/// What all migrations of a host may send together, before anybody has chosen between which hosts: as much as its interface carries, and
/// no more than its cap. Without either, what is expected of any link.
pub(crate) fn room(interface_bits_per_s: Option<u64>, cap_bytes_per_s: Option<u64>) -> MigrationRoom {
    let carried = interface_bits_per_s.map(|bits| (bits as f64 / 8.0 * CARRIED) as u64);
    let known = carried.into_iter().chain(cap_bytes_per_s).min();
    MigrationRoom {
        moves_max: 0,
        bytes_per_s: known.unwrap_or(ASSUMED_BYTES_PER_S.expected as u64),
        is_assumed: known.is_none(),
    }
}

fn of_interface(bits_per_s: u64) -> Estimate {
    let high = bits_per_s as f64 / 8.0 * CARRIED;
    let expected = high.min(PROCESSORS_BYTES_PER_S);
    Estimate { low: expected * SHARED, expected, high }
}

/// Over the whole of migrations and in their later rounds, and how many there were. One under a cap shows the cap and not the
/// link.
fn rates(moves: &[&Move], kind: Kind) -> Option<([Estimate; 2], u32)> {
    let telling = moves.iter().filter(|&&told| {
        let (budget, report) = told;
        Kind::of(told) == kind && budget.bandwidth_bytes_per_s_max.is_none() && !report.capped
    });
    let seen = telling.filter_map(|(_, report)| {
        let whole = observed_bytes_per_s(report)?;
        Some((whole, report.later_bytes_per_s.unwrap_or(whole)))
    });
    let (whole, later): (Vec<f64>, Vec<f64>) = seen.take(MOVES_MAX).unzip();
    Some(([estimate(&whole)?, estimate(&later)?], whole.len() as u32))
}

/// How much of what returning VMs had was still there.
fn kept_parts(moves: &[&Move]) -> Option<Estimate> {
    let bytes = moves.iter().map(|(_, report)| &report.bytes).filter(|bytes| bytes.reused_pages > 0);
    let parts = bytes.map(|bytes| {
        let sent = bytes.raw_pages + bytes.packed_pages + bytes.delta_pages;
        bytes.reused_pages as f64 / (bytes.reused_pages + sent) as f64
    });
    let Estimate { low, expected, high } = estimate(&parts.take(MOVES_MAX).collect::<Vec<_>>())?;
    Some(Estimate { low, expected, high: high.min(1.0) })
}

fn handoffs(moves: &[&Move]) -> Option<Estimate> {
    let parts = moves.iter().map(|(_, report)| report.blackout.total_ms - report.blackout.last_pages_ms);
    estimate(&parts.take(MOVES_MAX).collect::<Vec<_>>())
}

/// The median, between the extremes and a little more.
fn estimate(seen: &[f64]) -> Option<Estimate> {
    let mut seen = seen.to_vec();
    seen.sort_by(f64::total_cmp);
    let (low, high) = (seen.first()?, seen.last()?);
    let sway = if seen.len() == 1 { SWAY_OF_ONE } else { SWAY };
    Some(Estimate { low: low / sway, expected: seen[seen.len() / 2], high: high * sway })
}

#[cfg(test)]
mod tests {
    use godwit_types::MigrationId;
    use godwit_types::migration::{Blackout, BytesByKind};

    use super::*;

    /// A move that sent 512 MiB at a rate in MiB/s.
    fn moved(from: &str, to: &str, mib_per_s: u64) -> Move {
        let report = MigrationReport {
            migration: MigrationId(uuid::Uuid::nil()),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            total_ms: 9000.0,
            blackout: Blackout { total_ms: 30.0, last_pages_ms: 10.0, ..Blackout::default() },
            predicted_blackout_ms: 25.0,
            rounds: 2,
            bytes: BytesByKind { raw: 512 << 20, ..BytesByKind::default() },
            goodput_bytes_per_s: 0,
            post_copy: None,
            verified: None,
            guest_clock: None,
            slowed: Vec::new(),
            busy_ms: 512_000.0 / mib_per_s as f64,
            later_bytes_per_s: Some((mib_per_s << 21) as f64),
            capped: false,
            predicted: None,
        };
        (Budget::default(), report)
    }

    fn expected(moves: &[Move]) -> Link {
        expect((&"a".parse().unwrap(), &"b".parse().unwrap()), None, Kind::default(), moves)
    }

    fn mib(bytes_per_s: f64) -> f64 {
        (bytes_per_s / f64::from(1 << 20)).round()
    }

    #[test]
    fn the_pair_of_hosts_counts_either_way_before_the_source_and_nothing_is_an_assumption() {
        let link = expected(&[
            moved("b", "a", 300),
            moved("a", "b", 100),
            moved("a", "b", 200),
            moved("a", "c", 900),
        ]);
        assert_eq!(
            (link.known_from, mib(link.bytes_per_s.expected)),
            (KnownFrom::Pair { migrations: 3 }, 200.0)
        );
        assert_eq!((mib(link.bytes_per_s.low), mib(link.bytes_per_s.high)), (83.0, 360.0));
        assert_eq!(mib(link.later_bytes_per_s.expected), 400.0);
        let link = expected(&[moved("a", "c", 900), moved("c", "a", 100)]);
        assert_eq!(
            (link.known_from, mib(link.bytes_per_s.expected)),
            (KnownFrom::Source { migrations: 1 }, 900.0)
        );
        assert_eq!(link.handoff_ms.expected, 20.0);
        assert_eq!(expected(&[moved("c", "d", 900)]).known_from, KnownFrom::Assumption);
    }

    #[test]
    fn moves_under_a_cap_in_clear_or_of_next_to_nothing_say_nothing_about_the_link() {
        let mut capped = moved("a", "b", 10);
        capped.1.capped = true;
        let mut clear = moved("a", "b", 2000);
        clear.0.plain = true;
        let mut tiny = moved("a", "b", 1);
        tiny.1.bytes.raw = 1 << 20;
        let moves = [capped, clear, tiny];
        assert_eq!(expected(&moves).known_from, KnownFrom::Assumption);
        let plain = Kind { plain: true, ..Kind::default() };
        let clear = expect((&"a".parse().unwrap(), &"b".parse().unwrap()), None, plain, &moves);
        assert_eq!(mib(clear.bytes_per_s.expected), 2000.0);
    }

    #[test]
    fn before_the_first_move_the_interface_counts_and_above_some_speed_the_processors_do() {
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let of = |gigabits: u64, moves: &[Move]| {
            let known = expect((&a, &b), Some(gigabits * 1_000_000_000), Kind::default(), moves);
            known.bytes_per_s.expected / 1e6
        };
        assert_eq!([of(1, &[]).round(), of(10, &[]).round(), of(100, &[]).round()], [118.0, 1175.0, 1200.0]);
        assert_eq!(of(1, &[moved("a", "c", 300)]), f64::from(300 << 20) / 1e6);
    }

    #[test]
    fn a_return_is_expected_to_go_as_returns_did_and_other_moves_as_others_did() {
        let mut returned = moved("b", "a", 1000);
        returned.1.bytes =
            BytesByKind { raw: 32 << 20, raw_pages: 8192, reused_pages: 24 * 8192, ..returned.1.bytes };
        // 25 times 32 MiB in 512 ms.
        let seen = 25.0 * 32.0 / 0.512;
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let back = |moves: &[Move]| expect((&a, &b), None, Kind { returns: true, ..Kind::default() }, moves);
        let moves = [returned, moved("a", "b", 300)];
        let link = back(&moves);
        assert_eq!(mib(link.bytes_per_s.expected), f64::round(seen));
        assert_eq!(((link.kept_part.expected * 100.0).round(), link.kept_part.high), (96.0, 1.0));
        let (first, unseen) = (expected(&moves), back(&moves[1..]));
        assert_eq!((mib(first.bytes_per_s.expected), first.kept_part), (300.0, Estimate::default()));
        assert_eq!((mib(unseen.bytes_per_s.expected), unseen.kept_part), (300.0, Estimate::default()));
    }

    #[test]
    fn only_the_newest_moves_count() {
        let mut moves: Vec<_> = (0..MOVES_MAX).map(|_| moved("a", "b", 500)).collect();
        moves.push(moved("a", "b", 10));
        assert_eq!(mib(expected(&moves).bytes_per_s.low), 417.0);
    }
}
