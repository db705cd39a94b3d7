//! What the guest tells over HTTP, and its heartbeat.

use core::sync::atomic::Ordering;

use godwit_guest_contract::pulse::{GAPS, Pulse};
use godwit_guest_contract::report::{DiskReport, MemoryReport, Report};

use crate::clock::{self, Micros};
use crate::cpu::{self, CPUS_MAX};
use crate::fault;
use crate::http::{Request, Response};
use crate::records::Records;
use crate::vmclock;

const BEAT_INTERVAL: Micros = 1_000;

/// The main loop's pulse, by the guest's own clock.
#[derive(Default)]
pub struct Heart {
    beats: u64,
    last: Micros,
    next: Micros,
    max_gap: Micros,
    /// Largest gaps since the last pulse, and between those before.
    gaps: [Micros; GAPS],
    pulses: u64,
}

impl Heart {
    pub fn step(&mut self, now: Micros) {
        if now < self.next {
            return;
        }
        // On a grid, so that a tick that comes a moment early is not waited out.
        let behind = now - self.next > BEAT_INTERVAL;
        self.next = if behind { now } else { self.next } + BEAT_INTERVAL;
        self.beats += 1;
        let gap = now - self.last;
        self.max_gap = self.max_gap.max(gap);
        self.gaps[0] = self.gaps[0].max(gap);
        self.last = now;
    }

    /// The next pulse.
    pub fn pulse(&mut self, now: Micros) -> Pulse {
        let pulse = Pulse {
            number: self.pulses,
            now_us: now,
            beats: self.beats,
            written: cpu::all().map(|cpu| cpu.tally.written()).sum(),
            sweeps: cpu::all().map(|cpu| cpu.tally.sweeps()).min().unwrap_or_default(),
            errors: fault::MEMORY.count(),
            gaps_us: self.gaps,
        };
        self.pulses += 1;
        self.gaps.rotate_right(1);
        self.gaps[0] = 0;
        pulse
    }
}

/// What the services change.
#[derive(Default)]
pub struct Served {
    requests: u64,
    pub power_off: bool,
}

/// The guest, for a moment, as its HTTP service sees it.
pub struct View<'a> {
    pub now: Micros,
    pub working_set_bytes: u64,
    pub heart: &'a mut Heart,
    pub served: &'a mut Served,
    pub records: Option<&'a Records>,
}

impl View<'_> {
    /// Answers a request.
    pub fn answer(&mut self, request: Request<'_>) -> Response {
        match (request.method, request.path) {
            ("GET", "/") => {
                self.served.requests += 1;
                Response::new("200 OK", "text/plain", &self.served.requests)
            }
            ("GET", "/report") => self.report(),
            ("POST", "/gap/reset") => {
                self.heart.max_gap = 0;
                Response::empty("204 No Content")
            }
            ("POST", "/poweroff") => {
                self.served.power_off = true;
                Response::empty("204 No Content")
            }
            (_, "/" | "/report" | "/gap/reset" | "/poweroff") => Response::empty("405 Method Not Allowed"),
            _ => Response::empty("404 Not Found"),
        }
    }

    fn report(&self) -> Response {
        let vcpus = cpu::count();
        let mut ticks = [0; CPUS_MAX];
        let mut ipis = [0; CPUS_MAX];
        let (mut written, mut checked) = (0, 0);
        for (i, cpu) in cpu::all().enumerate() {
            ticks[i] = cpu.counters.ticks.load(Ordering::Relaxed);
            ipis[i] = cpu.counters.ipis.load(Ordering::Relaxed);
            written += cpu.tally.written();
            checked += cpu.tally.checked();
        }
        let report = Report {
            guest: "reference",
            uptime_us: self.now,
            beats: self.heart.beats,
            max_gap_us: self.heart.max_gap,
            vcpus: vcpus as u64,
            memory: MemoryReport {
                working_set_bytes: self.working_set_bytes,
                passes: written / (self.working_set_bytes / 4096).max(1),
                pages_checked: checked,
                errors: fault::MEMORY.count(),
                first_error: fault::MEMORY.first(),
            },
            disk: DiskReport {
                acked: self.records.map_or(0, Records::acknowledged),
                read_back: self.records.map_or(0, Records::read_back),
                errors: fault::DISK.count(),
                first_error: fault::DISK.first(),
            },
            ticks: &ticks[..vcpus],
            ipis: &ipis[..vcpus],
            clock_steps_back: clock::steps_back(),
            disruptions: vmclock::disruptions(),
        };
        Response::new("200 OK", "application/json", &report)
    }
}
