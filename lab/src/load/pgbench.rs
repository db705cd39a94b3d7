//! PostgreSQL in a guest under `pgbench`, and whether it has kept what it promised.
//!
//! Each transaction is that of TPC-B, and adds its client's name and number to a table. pgbench logs each once its commit
//! was acknowledged: what is in the log and not in the table is lost.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::emulated::Postgres;
use crate::namespace::Namespace;
use crate::{LabError, Result, exec};

const SCRIPT: &str = r"
\set number :number + 1
\set aid random(1, 100000)
\set tid random(1, 10)
\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP);
INSERT INTO committed VALUES (:client_id, :number);
END;
";
const CLIENTS: &str = "2";
/// Longer than any test. The bench is ended before by the signal that this would be its own.
const TIME_S: &str = "86400";
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long a client may take to connect and ask.
const QUERY_LIMIT: Duration = Duration::from_secs(60);
/// How long reading all tables and indexes may take.
const CHECK_LIMIT: Duration = Duration::from_secs(180);
/// How long the last transactions may take.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Five sums that are equal after any number of whole transactions, and how many there were.
const SUMS: &str = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers), \
    (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history), \
    (SELECT count(*) FROM pgbench_history)";

/// A transaction by its client and its number.
type Name = (u32, u64);

/// A server in a guest, as its clients reach it.
#[derive(Debug, Clone)]
pub struct Server {
    postgres: Postgres,
    client: Namespace,
    guest: Ipv4Addr,
}

/// The bench, running. Dropping it ends it.
#[derive(Debug)]
pub struct Pgbench {
    child: Child,
    dir: TempDir,
}

/// What was committed, by those who were told so.
#[derive(Debug)]
pub struct Committed(BTreeSet<Name>);

impl Server {
    /// The server in a guest, once it answers.
    pub fn await_answer(postgres: &Postgres, client: &Namespace, guest: Ipv4Addr) -> Result<Self> {
        let server = Self { postgres: postgres.clone(), client: client.clone(), guest };
        let mut last = String::new();
        let answers = exec::poll(BOOT_LIMIT, exec::POLL_COMMAND, || match server.query("SELECT 1") {
            Ok(_) => Ok(Some(())),
            Err(error) => {
                last = error.chain();
                Ok(None)
            }
        })?;
        answers.map(|()| server).ok_or(LabError::Silent { guest, limit: BOOT_LIMIT, last })
    }

    /// Starts the bench.
    pub fn bench(&self) -> Result<Pgbench> {
        let dir = tempfile::tempdir().map_err(LabError::io("make a temporary directory"))?;
        let script = dir.path().join("script.sql");
        fs::write(&script, SCRIPT).map_err(LabError::io(format!("write {}", script.display())))?;
        let said = dir.path().join("said");
        let open = || fs::File::options().create(true).append(true).open(&said);
        let open = || open().map_err(LabError::io(format!("write {}", said.display())));
        let mut command = self.command("pgbench");
        command.args(["--no-vacuum", "--client", CLIENTS, "--time", TIME_S, "--define", "number=0", "--log"]);
        command.arg("--log-prefix").arg(dir.path().join("log")).arg("--file").arg(&script).arg("postgres");
        let child = command.stdin(Stdio::null()).stdout(open()?).stderr(open()?).spawn();
        Ok(Pgbench { child: child.map_err(LabError::io("run pgbench"))?, dir })
    }

    /// Fails if anything that was acknowledged is not there, or any other promise is broken: sums, tables, indexes.
    pub fn check(&self, committed: &Committed) -> Result<()> {
        let rows = self.query("SELECT client, number FROM committed")?;
        let there: BTreeSet<Name> = rows.lines().filter_map(|line| name(&mut line.split('|'))).collect();
        let lost: Vec<&Name> = committed.0.difference(&there).collect();
        let unknown: Vec<&Name> = there.difference(&committed.0).collect();
        if !lost.is_empty() || !unknown.is_empty() {
            let text = format!("of the transactions {lost:?} are lost, and nobody was told of {unknown:?}");
            return Err(LabError::Broken(text));
        }
        let sums = self.query(SUMS)?;
        let numbers: Vec<&str> = sums.trim().split('|').collect();
        let [accounts, tellers, branches, history, count] = numbers[..] else {
            return Err(LabError::Broken(format!("no sums but {sums:?}")));
        };
        let equal = [tellers, branches, history].iter().all(|sum| *sum == accounts);
        if !equal || count != committed.0.len().to_string() {
            return Err(LabError::Broken(format!(
                "{} transactions, and the sums {sums:?}",
                committed.0.len()
            )));
        }
        // It ends with an error if it finds any.
        let mut check = self.command("pg_amcheck");
        check.args(["--heapallindexed", "postgres"]);
        exec::run(&mut check, CHECK_LIMIT).map(drop)
    }

    fn query(&self, query: &str) -> Result<String> {
        let mut command = self.command("psql");
        command.env("PGCONNECT_TIMEOUT", "10");
        command.args(["--no-psqlrc", "--tuples-only", "--no-align", "--command", query, "postgres"]);
        exec::run(&mut command, QUERY_LIMIT)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.postgres.client(&self.client, program);
        command.args(["--host", &self.guest.to_string(), "--username", "postgres"]);
        command
    }
}

impl Pgbench {
    /// How many transactions were acknowledged so far, as far as they are in the log. Fails if the bench has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait().map_err(LabError::io("look at pgbench"))? {
            None => Ok(()),
            Some(status) => Err(self.broken(&format!("ended with {status}"))),
        }
    }

    /// Ends it after the transactions that are under way. Fails if any has failed, or a connection was lost.
    pub fn finish(mut self) -> Result<Committed> {
        self.check_running()?;
        // What its own timer would do.
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGALRM)
            .map_err(LabError::system("end pgbench"))?;
        match exec::wait(&mut self.child, END_LIMIT)? {
            Some(status) if status.success() => {}
            outcome => return Err(self.broken(&format!("did not end well: {outcome:?}"))),
        }
        if !self.said().contains("number of failed transactions: 0 ") {
            return Err(self.broken("had failed transactions"));
        }
        self.logged()
    }

    fn logged(&self) -> Result<Committed> {
        let reading = || LabError::io(format!("read {}", self.dir.path().display()));
        let mut committed = BTreeSet::new();
        for file in fs::read_dir(self.dir.path()).map_err(reading())? {
            let path = file.map_err(reading())?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log.")) {
                let text = fs::read_to_string(&path).map_err(reading())?;
                committed.extend(text.lines().filter_map(|line| name(&mut line.split(' '))));
            }
        }
        Ok(Committed(committed))
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("said")).unwrap_or_default()
    }

    fn broken(&self, what: &str) -> LabError {
        LabError::Broken(format!("pgbench {what}; it said:\n{}", self.said()))
    }
}

impl Drop for Pgbench {
    fn drop(&mut self) {
        // What has ended already needs no killing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Committed {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The first two fields of a line.
fn name<'a>(fields: &mut impl Iterator<Item = &'a str>) -> Option<Name> {
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
