//! What the running guest does to its memory: the dirty log is on for a moment, and some pages are looked at.
//!
//! ```text
//!            survey begins                        migration begins
//!  nobody ------------------> a survey ----------------------------------> a migration
//!    ^  ^                        | its time is over, or it is told to end        |
//!    |  +------------------------+                                               |
//!    +----------------- the migration ends here, and the log with it ------------+
//! ```
//!
//! It costs the guest a fault for each page that it writes for the first time since a reading, 1 to 8 us, and where KVM
//! has mapped its memory in huge pages it splits those that are written and joins them again afterwards. It costs the
//! host a few milliseconds for each reading and GiB of memory. The guest is never stopped.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use godwit_migration::bitmap::PageBitmap;
use godwit_migration::{GuestMemory, MachineError, PageRange, Source};
use godwit_types::Gfn;
use godwit_types::forecast::{Reading, Survey};

use super::{Machine, step};

/// When the log is read, since its start: the shorter times tell of few pages written often, the longer of the working set.
const READ_AT: [Duration; 6] = [
    Duration::from_millis(10),
    Duration::from_millis(30),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(1_000),
    Duration::from_millis(3_000),
];
/// Pages that are looked at for zeros, spread evenly: 8 MiB to read.
const SAMPLED_PAGES: u64 = 2048;

impl Machine {
    /// Watches the guest for `time`, or until a migration away needs the dirty log. Fails if one has it already.
    pub fn survey(&self, time: Duration) -> Result<Survey, MachineError> {
        let user = self.log_user.survey_begins()?;
        let (sampled_pages, zero_pages) = self.sample()?;
        self.start_log()?;
        let readings = self.read_log(time, &user);
        self.dirty_log.stop();
        let vcpu_pages = self.dirty_log.written();
        drop(user);
        let memory = self.config.spec.memory;
        Ok(Survey { memory, sampled_pages, zero_pages, readings: readings?, vcpu_pages })
    }

    pub(super) fn start_log(&self) -> Result<(), MachineError> {
        // From here on; what was written before goes with the first round.
        self.ram.forget_own_writes();
        self.dirty_log.start().map_err(|error| step("starting the dirty log", &error))
    }

    fn read_log(&self, time: Duration, user: &SurveyUse<'_>) -> Result<Vec<Reading>, MachineError> {
        let (ranges, began) = (self.ram.ranges(), Instant::now());
        let (mut all, mut fresh) = (PageBitmap::covering(ranges), PageBitmap::covering(ranges));
        let mut readings = Vec::new();
        for at in READ_AT.into_iter().filter(|at| *at < time).chain([time]) {
            // A reading that took long has gone past the next.
            if began.elapsed() > at && at != time {
                continue;
            }
            if !user.wait_until(began + at) {
                break;
            }
            let read = Instant::now();
            fresh.clear();
            self.harvest_dirty(&mut fresh)?;
            let took = read.elapsed();
            for range in ranges {
                fresh.runs(*range).for_each(|run| all.insert_range(run));
            }
            let pages = |set: &PageBitmap| ranges.iter().map(|range| set.len_within(*range)).sum();
            readings.push(Reading {
                at_ms: ms(read - began),
                written_pages: pages(&fresh),
                distinct_pages: pages(&all),
                took_ms: ms(took),
            });
        }
        Ok(readings)
    }

    /// How many pages were looked at, and how many of them are all zeros.
    fn sample(&self) -> Result<(u64, u64), MachineError> {
        let ranges = self.ram.ranges();
        let total: u64 = ranges.iter().map(|range| range.pages).sum();
        let (mut sampled, mut zero) = (0, 0);
        for index in 0..SAMPLED_PAGES.min(total) {
            // The middle of its part of RAM, so that no power of two decides.
            let nth = (2 * index + 1) * total / (2 * SAMPLED_PAGES.min(total));
            let Some(page) = nth_page(ranges, nth) else { continue };
            let bytes = self.ram.bytes(page)?;
            sampled += 1;
            zero += u64::from(bytes.iter().all(|byte| *byte == 0));
        }
        Ok((sampled, zero))
    }
}

fn nth_page(ranges: &[PageRange], mut nth: u64) -> Option<PageRange> {
    for range in ranges {
        if nth < range.pages {
            return Some(PageRange { start: Gfn(range.start.0 + nth), pages: 1 });
        }
        nth -= range.pages;
    }
    None
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Who uses the dirty log; a migration comes first.
#[derive(Default)]
pub(super) struct LogUser {
    user: Mutex<User>,
    changed: Condvar,
}

#[derive(Default, PartialEq, Eq)]
enum User {
    #[default]
    Nobody,
    Survey,
    /// A survey that is to end, since a migration waits for it.
    EndingSurvey,
    Migration,
}

/// A survey's turn, which ends with it.
struct SurveyUse<'a>(&'a LogUser);

impl LogUser {
    /// Ends a survey that is under way, which takes at most one reading of the log, and takes its place.
    pub(super) fn migration_begins(&self) {
        let mut user = self.user();
        if *user == User::Survey {
            *user = User::EndingSurvey;
            self.changed.notify_all();
            drop(self.changed.wait_while(user, |user| *user != User::Migration).expect(NO_PANIC));
        } else {
            *user = User::Migration;
        }
    }

    /// The migration has ended here.
    pub(super) fn migration_ends(&self) {
        *self.user() = User::Nobody;
    }

    fn survey_begins(&self) -> Result<SurveyUse<'_>, MachineError> {
        let mut user = self.user();
        let reason = match *user {
            User::Nobody => {
                *user = User::Survey;
                return Ok(SurveyUse(self));
            }
            User::Survey | User::EndingSurvey => "another survey is under way",
            User::Migration => "the VM is being migrated",
        };
        Err(MachineError { step: "surveying the guest".into(), reason: reason.into() })
    }

    fn user(&self) -> MutexGuard<'_, User> {
        self.user.lock().expect(NO_PANIC)
    }
}

const NO_PANIC: &str = "nobody panics who looks at the log's user";

impl SurveyUse<'_> {
    /// Waits; false if a migration needs the log sooner.
    fn wait_until(&self, time: Instant) -> bool {
        let left = time.saturating_duration_since(Instant::now());
        let waits = |user: &mut User| *user == User::Survey;
        let (user, _) = self.0.changed.wait_timeout_while(self.0.user(), left, waits).expect(NO_PANIC);
        *user == User::Survey
    }
}

impl Drop for SurveyUse<'_> {
    fn drop(&mut self) {
        let mut user = self.0.user();
        // Handed on in one step, so that no other survey comes in between.
        *user = if *user == User::EndingSurvey { User::Migration } else { User::Nobody };
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_ends_a_survey_and_none_begins_beside_it() {
        let log = LogUser::default();
        let survey = log.survey_begins().unwrap();
        assert!(log.survey_begins().is_err_and(|error| error.reason.contains("another survey")));
        std::thread::scope(|scope| {
            let migration = scope.spawn(|| log.migration_begins());
            // Returns only because the migration asks for it.
            assert!(!survey.wait_until(Instant::now() + Duration::from_secs(3600)));
            assert!(!migration.is_finished());
            drop(survey);
        });
        assert!(log.survey_begins().is_err_and(|error| error.reason.contains("migrated")));
        log.migration_ends();
        assert!(log.survey_begins().unwrap().wait_until(Instant::now()));
    }

    #[test]
    fn sampled_pages_lie_in_ram_whatever_its_holes() {
        let ranges = [PageRange { start: Gfn(0), pages: 10 }, PageRange { start: Gfn(100), pages: 5 }];
        let found: Vec<_> = (0..16).map(|nth| nth_page(&ranges, nth).map(|page| page.start.0)).collect();
        assert_eq!((found[9], found[10], found[14], found[15]), (Some(9), Some(100), Some(104), None));
    }
}
