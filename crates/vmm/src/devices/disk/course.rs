//! How far the mirror of a disk is: which changes go to both images, and who may end it.
//!
//! ```text
//!                  all copied             target durable            asked for
//!  copying(cursor) ----------> settling -----------------> in sync ----------> held --switch--> (the target is the disk)
//!        |                        |                           |                 |
//!        '---- failure, cancel ---'------ failure, cancel ----'                 '---cancel---> (the source is the disk)
//! ```
//!
//! Below the cursor both images hold the same, and a change goes to both. From it on, the target is as it was made, empty,
//! and a change goes to the source alone: the cursor comes by. Nothing changes while the cursor moves. So one pass copies a
//! disk, however fast its guest writes.
//!
//! A failure of the target ends the mirror, and the guest hears nothing of it. Not once it is held: the record of where the
//! disk lies may have changed already, and only who holds it knows. Then a guest's request that has failed at the target
//! waits for that word.

use godwit_types::storage::StoragePhase;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Course {
    bytes: u64,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Copying { cursor: u64 },
    Settling,
    InSync,
    Held,
}

/// What follows from a failure of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    /// The source is the disk, as before.
    End,
    /// Ask who holds the mirror.
    Ask,
}

impl Course {
    /// Of a disk of so many bytes, with an empty target.
    pub(super) fn new(bytes: u64) -> Self {
        let mut course = Self { bytes, phase: Phase::Copying { cursor: 0 } };
        course.move_to(0);
        course
    }

    /// From where on the disk is to be copied; none if all of it was.
    pub(super) fn cursor(&self) -> Option<u64> {
        match self.phase {
            Phase::Copying { cursor } => Some(cursor),
            Phase::Settling | Phase::InSync | Phase::Held => None,
        }
    }

    /// Everything up to `end` was copied.
    pub(super) fn copied(&mut self, end: u64) {
        self.move_to(end);
    }

    /// Whether a change that begins at `offset` goes to both images. One that goes across the cursor does as well.
    pub(super) fn reaches(&self, offset: u64) -> bool {
        self.cursor().is_none_or(|cursor| offset < cursor)
    }

    /// What was written to both images up to `end` is the same in both. Not so what was discarded: a part of it may still
    /// hold in the source what it held.
    pub(super) fn written(&mut self, end: u64) {
        self.move_to(end);
    }

    /// Whether a flush of the guest's is one of both images.
    pub(super) fn flushes(&self) -> bool {
        self.cursor().is_none()
    }

    /// Everything that was copied is durable in the target.
    pub(super) fn durable(&mut self) {
        if self.phase == Phase::Settling {
            self.phase = Phase::InSync;
        }
    }

    /// Nobody but who has asked for it may end the mirror from now on. Whether that is so: both images have to be the same.
    pub(super) fn hold(&mut self) -> bool {
        if self.phase == Phase::InSync {
            self.phase = Phase::Held;
        }
        self.phase == Phase::Held
    }

    /// What follows from a failure of the target.
    pub(super) fn failed(&self) -> Failed {
        if self.phase == Phase::Held { Failed::Ask } else { Failed::End }
    }

    /// The word for it in reports.
    pub(super) fn phase(&self) -> StoragePhase {
        match self.phase {
            Phase::Copying { .. } => StoragePhase::Copying,
            Phase::Settling => StoragePhase::Settling,
            Phase::InSync => StoragePhase::InSync,
            Phase::Held => StoragePhase::Held,
        }
    }

    fn move_to(&mut self, end: u64) {
        if let Phase::Copying { cursor } = &mut self.phase {
            *cursor = end.max(*cursor);
            if *cursor >= self.bytes {
                self.phase = Phase::Settling;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: u64 = 64;
    const CHUNK: u64 = 4;

    /// Numbers that look random and are the same in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % end
        }
    }

    /// What an image holds, and what of it outlasts a loss of power.
    #[derive(Clone)]
    struct Model {
        now: Vec<u8>,
        durable: Vec<u8>,
    }

    impl Model {
        fn of(contents: Vec<u8>) -> Self {
            Self { durable: contents.clone(), now: contents }
        }

        fn flush(&mut self) {
            self.durable.clone_from(&self.now);
        }
    }

    struct World {
        course: Course,
        source: Model,
        target: Model,
        /// What may be found after a loss of power, a bit for each value: what the guest was told is durable, and what it has
        /// written since.
        allowed: Vec<u8>,
    }

    impl World {
        fn new(random: &mut Random) -> Self {
            let contents: Vec<u8> = (0..BYTES).map(|_| random.below(3) as u8).collect();
            Self {
                course: Course::new(BYTES),
                source: Model::of(contents.clone()),
                target: Model::of(vec![0; BYTES as usize]),
                allowed: contents.iter().map(|value| 1 << value).collect(),
            }
        }

        /// One step, as `Disk` takes it.
        fn step(&mut self, random: &mut Random) {
            match random.below(8) {
                0..3 => self.copy(),
                3 => {
                    self.target.flush();
                    self.course.durable();
                }
                4 => {
                    self.source.flush();
                    if self.course.flushes() {
                        self.target.flush();
                    }
                    self.allowed = self.source.now.iter().map(|value| 1 << value).collect();
                }
                // A discard changes whole clusters alone, and those of one image need not be those of the other.
                5 => self.discard(random),
                _ => self.write(random),
            }
        }

        fn copy(&mut self) {
            let Some(from) = self.course.cursor() else { return };
            let end = (from + CHUNK).min(BYTES);
            for at in from as usize..end as usize {
                // Zeros are left out, as holes are.
                if self.source.now[at] != 0 {
                    self.target.now[at] = self.source.now[at];
                }
            }
            self.course.copied(end);
        }

        fn write(&mut self, random: &mut Random) {
            let (start, value) = (random.below(BYTES), random.below(3) as u8);
            let end = (start + 1 + random.below(9)).min(BYTES);
            if self.fill(start, end, value) {
                self.course.written(end);
            }
        }

        /// Whether it went to both.
        fn fill(&mut self, start: u64, end: u64, value: u8) -> bool {
            let range = start as usize..end as usize;
            self.source.now[range.clone()].fill(value);
            self.allowed[range.clone()].iter_mut().for_each(|allowed| *allowed |= 1 << value);
            let both = self.course.reaches(start);
            if both {
                self.target.now[range].fill(value);
            }
            both
        }

        fn discard(&mut self, random: &mut Random) {
            let start = random.below(BYTES / CHUNK) * CHUNK;
            self.fill(start, start + CHUNK, 0);
        }
    }

    #[test]
    fn whatever_the_guest_does_meanwhile_both_images_are_the_same_once_they_are_in_sync_and_stay_so() {
        let mut in_sync = 0;
        for seed in 0..2000 {
            let mut random = Random(seed);
            let mut world = World::new(&mut random);
            for _ in 0..120 {
                world.step(&mut random);
                if let Some(cursor) = world.course.cursor() {
                    let (done, rest) = (..cursor as usize, cursor as usize..);
                    assert_eq!(world.source.now[done], world.target.now[done], "seed {seed}");
                    assert!(world.target.now[rest].iter().all(|byte| *byte == 0), "seed {seed}");
                    continue;
                }
                assert_eq!(world.source.now, world.target.now, "seed {seed}");
                if matches!(world.course.phase(), StoragePhase::InSync | StoragePhase::Held) {
                    in_sync += 1;
                    // Whichever of the two is the truth when everything stops, it keeps what was promised.
                    let keeps = |model: &Model| {
                        model
                            .durable
                            .iter()
                            .zip(&world.allowed)
                            .all(|(value, allowed)| allowed >> value & 1 == 1)
                    };
                    assert!(keeps(&world.target) && keeps(&world.source), "seed {seed}");
                }
                world.course.hold();
            }
        }
        assert!(in_sync > 10_000, "{in_sync}: it has to come that far");
    }

    #[test]
    fn a_write_across_the_cursor_pushes_it_and_one_behind_it_waits_for_it() {
        let mut course = Course::new(BYTES);
        assert!(!course.reaches(0), "nothing was copied");
        course.copied(8);
        assert!(course.reaches(7) && !course.reaches(8));
        course.written(12);
        assert_eq!(course.cursor(), Some(12));
        course.copied(BYTES);
        assert!(course.cursor().is_none() && course.reaches(BYTES - 1));
    }

    #[test]
    fn a_mirror_is_held_only_in_sync_and_then_a_failure_does_not_end_it() {
        let mut course = Course::new(BYTES);
        assert!(!course.hold() && !course.flushes());
        course.durable();
        course.copied(BYTES);
        assert!(!course.hold() && course.flushes(), "what was copied is not durable yet");
        course.durable();
        assert_eq!(course.failed(), Failed::End);
        assert!(course.hold() && course.hold());
        assert_eq!(course.failed(), Failed::Ask);
        assert_eq!(Course::new(0).phase(), StoragePhase::Settling, "there is nothing to copy");
    }
}
