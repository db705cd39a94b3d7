//! Tables, and how a store of an older version is brought up to date.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, TransactionBehavior};

use super::{STATEMENTS_MAX, StoreError};

/// How long another manager on the same file may take to end.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Each brings the store from the version of its index to the next. Never edit one that was released: append.
const STEPS: [&str; 11] = ["
CREATE TABLE hosts (
    name              TEXT PRIMARY KEY,
    agent             TEXT NOT NULL,
    facts             TEXT NOT NULL,                -- HostFacts
    vms               TEXT NOT NULL,                -- Vec<LocalVm>: its last report
    strays            TEXT NOT NULL,                -- VmId -> consecutive reports of a VM that it does not own
    up                INTEGER NOT NULL CHECK (up IN (0, 1)),
    clock_skew_ms     INTEGER NOT NULL,
    last_seen_unix_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE vms (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    spec       TEXT NOT NULL,                       -- VmSpec
    power      TEXT NOT NULL CHECK (power IN ('stopped', 'running', 'crashed')),
    last_event TEXT
) STRICT;

CREATE TABLE ownership (
    vm              TEXT PRIMARY KEY REFERENCES vms ON DELETE CASCADE,
    owner           TEXT NOT NULL REFERENCES hosts,
    epoch           INTEGER NOT NULL CHECK (epoch >= 1),
    claimed         INTEGER NOT NULL CHECK (claimed IN (0, 1)),
    missing_reports INTEGER NOT NULL DEFAULT 0 CHECK (missing_reports >= 0)
) STRICT;

-- An epoch never goes back, and within an epoch the owner never changes.
CREATE TRIGGER ownership_moves_forward BEFORE UPDATE ON ownership
WHEN new.epoch < old.epoch OR (new.epoch = old.epoch AND new.owner <> old.owner)
BEGIN SELECT RAISE(ABORT, 'an epoch has one owner'); END;

CREATE TABLE tasks (
    id               TEXT PRIMARY KEY,
    vm               TEXT NOT NULL,                 -- outlives the VM
    vm_name          TEXT NOT NULL,
    kind             TEXT NOT NULL,                 -- TaskKind
    request          TEXT NOT NULL,                 -- what more was asked for, as its kind needs it
    state            TEXT NOT NULL CHECK (state IN ('running', 'cancelling', 'succeeded', 'failed', 'cancelled')),
    message          TEXT NOT NULL,
    started_unix_ms  INTEGER NOT NULL,
    finished_unix_ms INTEGER,
    progress         TEXT,                          -- MigrationProgress
    report           TEXT,                          -- MigrationReport
    error            TEXT,                          -- ApiError
    CHECK ((state IN ('running', 'cancelling')) = (finished_unix_ms IS NULL)),
    CHECK ((state IN ('failed', 'cancelled')) = (error IS NOT NULL)),
    CHECK (report IS NULL OR state = 'succeeded')
) STRICT;
CREATE UNIQUE INDEX one_open_task_for_each_vm ON tasks (vm) WHERE finished_unix_ms IS NULL;
CREATE INDEX tasks_by_age ON tasks (started_unix_ms);

CREATE TABLE migrations (
    id          TEXT PRIMARY KEY,
    task        TEXT NOT NULL UNIQUE,
    vm          TEXT NOT NULL REFERENCES vms ON DELETE CASCADE,
    source      TEXT NOT NULL REFERENCES hosts,
    destination TEXT NOT NULL REFERENCES hosts CHECK (destination <> source),
    epoch       INTEGER NOT NULL CHECK (epoch >= 1),
    state       TEXT NOT NULL CHECK (state IN ('preparing', 'running', 'committed', 'claimed', 'aborted')),
    reason      TEXT,                               -- ApiError: why it was aborted
    CHECK ((state = 'aborted') = (reason IS NOT NULL))
) STRICT;
CREATE UNIQUE INDEX one_open_migration_for_each_vm ON migrations (vm) WHERE state IN ('preparing', 'running');

-- A commit cannot be undone, and an abort neither.
CREATE TRIGGER migration_moves_forward BEFORE UPDATE OF state ON migrations
WHEN old.state IN ('aborted', 'claimed') AND new.state <> old.state
  OR old.state = 'committed' AND new.state NOT IN ('committed', 'claimed')
BEGIN SELECT RAISE(ABORT, 'a migration ends once'); END;

CREATE TABLE events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    unix_ms  INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    message  TEXT NOT NULL,
    vm       TEXT,
    host     TEXT,
    task     TEXT
) STRICT;
", "
ALTER TABLE migrations ADD COLUMN taken_over INTEGER NOT NULL DEFAULT 0 CHECK (taken_over IN (0, 1));
", "
ALTER TABLE tasks ADD COLUMN forecast TEXT;         -- Forecast: what a migration was expected to cost
", "
CREATE TABLE tasks_4 (
    id               TEXT PRIMARY KEY,
    vm               TEXT NOT NULL,                 -- outlives the VM
    vm_name          TEXT NOT NULL,
    kind             TEXT NOT NULL,                 -- TaskKind
    request          TEXT NOT NULL,                 -- what more was asked for, as its kind needs it
    state            TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')),
    message          TEXT NOT NULL,
    started_unix_ms  INTEGER NOT NULL,
    finished_unix_ms INTEGER,
    turn             TEXT,                          -- Turn: what it waits for
    progress         TEXT,                          -- MigrationProgress
    report           TEXT,                          -- MigrationReport
    error            TEXT,                          -- ApiError
    forecast         TEXT,                          -- Forecast: what a migration was expected to cost
    CHECK ((state IN ('waiting', 'running', 'cancelling')) = (finished_unix_ms IS NULL)),
    CHECK ((state IN ('failed', 'cancelled')) = (error IS NOT NULL)),
    CHECK (report IS NULL OR state = 'succeeded'),
    CHECK (turn IS NULL OR state = 'waiting')
) STRICT;
INSERT INTO tasks_4 (id, vm, vm_name, kind, request, state, message, started_unix_ms, finished_unix_ms, progress, report, error, forecast)
SELECT id, vm, vm_name, kind, request, state, message, started_unix_ms, finished_unix_ms, progress, report, error, forecast
FROM tasks ORDER BY rowid;
DROP TABLE tasks;
ALTER TABLE tasks_4 RENAME TO tasks;
CREATE UNIQUE INDEX one_open_task_for_each_vm ON tasks (vm) WHERE finished_unix_ms IS NULL;
CREATE INDEX tasks_by_age ON tasks (started_unix_ms);
", "
CREATE TABLE moved_disks (
    migration   TEXT PRIMARY KEY REFERENCES migrations ON DELETE CASCADE,
    moving      TEXT NOT NULL,                      -- Moving: which disks, and what follows from the commit
    left_behind TEXT                                -- Vec<DatastorePath>: what is still at the source
) STRICT;
", "
ALTER TABLE tasks ADD COLUMN storage TEXT;          -- StorageProgress: of disks that move to another datastore

CREATE TABLE storage_moves (
    id          TEXT PRIMARY KEY,                   -- a MigrationId
    task        TEXT NOT NULL UNIQUE,
    vm          TEXT NOT NULL REFERENCES vms ON DELETE CASCADE,
    host        TEXT NOT NULL REFERENCES hosts,
    epoch       INTEGER NOT NULL CHECK (epoch >= 1),
    moving      TEXT NOT NULL,                      -- Moving: which disks, and what follows from the switch
    state       TEXT NOT NULL CHECK (state IN ('copying', 'switched', 'aborted')),
    left_behind TEXT                                -- Vec<DatastorePath>: what is still where the disks were
) STRICT;

-- Where disks lie is decided once.
CREATE TRIGGER storage_move_ends_once BEFORE UPDATE OF state ON storage_moves
WHEN old.state <> 'copying' AND new.state <> old.state
BEGIN SELECT RAISE(ABORT, 'a move of storage ends once'); END;
", "
CREATE TABLE rules (
    name TEXT PRIMARY KEY,
    rule TEXT NOT NULL                              -- Rule
) STRICT;

CREATE TABLE pools (
    name TEXT PRIMARY KEY,
    pool TEXT NOT NULL                              -- Pool
) STRICT;

CREATE TABLE policy (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    policy TEXT NOT NULL                            -- Policy
) STRICT;

CREATE TABLE vm_settings (
    vm       TEXT PRIMARY KEY REFERENCES vms ON DELETE CASCADE,
    settings TEXT NOT NULL                          -- VmSettings
) STRICT;

CREATE TABLE host_settings (
    host     TEXT PRIMARY KEY REFERENCES hosts ON DELETE CASCADE,
    settings TEXT NOT NULL                          -- HostSettings
) STRICT;
", "
CREATE TABLE tasks_8 (
    id               TEXT PRIMARY KEY,
    vm               TEXT,                          -- outlives the VM; none if it is about a host
    vm_name          TEXT,
    kind             TEXT NOT NULL,                 -- TaskKind
    request          TEXT NOT NULL,                 -- what more was asked for, as its kind needs it
    state            TEXT NOT NULL CHECK (state IN ('waiting', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled')),
    message          TEXT NOT NULL,
    started_unix_ms  INTEGER NOT NULL,
    finished_unix_ms INTEGER,
    turn             TEXT,                          -- Turn: what it waits for
    progress         TEXT,                          -- MigrationProgress
    report           TEXT,                          -- MigrationReport
    error            TEXT,                          -- ApiError
    forecast         TEXT,                          -- Forecast: what a migration was expected to cost
    storage          TEXT,                          -- StorageProgress: of disks that move to another datastore
    CHECK ((vm IS NULL) = (vm_name IS NULL)),
    CHECK ((state IN ('waiting', 'running', 'cancelling')) = (finished_unix_ms IS NULL)),
    CHECK ((state IN ('failed', 'cancelled')) = (error IS NOT NULL)),
    CHECK (report IS NULL OR state = 'succeeded'),
    CHECK (turn IS NULL OR state = 'waiting')
) STRICT;
INSERT INTO tasks_8 (id, vm, vm_name, kind, request, state, message, started_unix_ms, finished_unix_ms, turn, progress, report, error, forecast, storage)
SELECT id, vm, vm_name, kind, request, state, message, started_unix_ms, finished_unix_ms, turn, progress, report, error, forecast, storage
FROM tasks ORDER BY rowid;
DROP TABLE tasks;
ALTER TABLE tasks_8 RENAME TO tasks;
CREATE UNIQUE INDEX one_open_task_for_each_vm ON tasks (vm) WHERE finished_unix_ms IS NULL;
CREATE INDEX tasks_by_age ON tasks (started_unix_ms);

CREATE TABLE maintenance (
    host          TEXT PRIMARY KEY REFERENCES hosts ON DELETE CASCADE,
    since_unix_ms INTEGER NOT NULL,
    task          TEXT NOT NULL
) STRICT;

CREATE TABLE decisions (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    unix_ms  INTEGER NOT NULL,
    cause    TEXT NOT NULL,                         -- in plain words
    goal     TEXT NOT NULL,                         -- Goal
    outline  TEXT NOT NULL,                         -- Outline: what else is asked of it often
    decision BLOB NOT NULL                          -- Decision: JSON, packed with zstd
) STRICT;

CREATE TABLE decision_steps (
    decision        INTEGER NOT NULL REFERENCES decisions ON DELETE CASCADE,
    step            INTEGER NOT NULL,
    step_doc        TEXT NOT NULL,                  -- Step
    state           TEXT NOT NULL CHECK (state IN ('recommended', 'approved', 'running', 'done', 'failed', 'rejected', 'dropped')),
    applied         INTEGER NOT NULL CHECK (applied IN (0, 1)), -- by people, and not by the scheduler itself
    changed_unix_ms INTEGER NOT NULL,
    task            TEXT,
    detail          TEXT,
    PRIMARY KEY (decision, step)
) STRICT;
CREATE INDEX steps_to_be_done ON decision_steps (decision, step) WHERE state IN ('approved', 'running');

-- The most that a VM wanted in each slot of time.
CREATE TABLE demand (
    vm           TEXT NOT NULL REFERENCES vms ON DELETE CASCADE,
    slot_unix_ms INTEGER NOT NULL,
    peak         TEXT NOT NULL,                     -- PerResource
    PRIMARY KEY (vm, slot_unix_ms)
) STRICT, WITHOUT ROWID;
", "
CREATE TABLE standby (
    host    TEXT PRIMARY KEY REFERENCES hosts ON DELETE CASCADE,
    standby TEXT NOT NULL                           -- Standby
) STRICT;
", "
ALTER TABLE maintenance ADD COLUMN move_disks INTEGER NOT NULL DEFAULT 0 CHECK (move_disks IN (0, 1));

-- By time first: what is asked for is what all VMs wanted then.
CREATE TABLE demand_10 (
    vm           TEXT NOT NULL REFERENCES vms ON DELETE CASCADE,
    slot_unix_ms INTEGER NOT NULL,
    peak         TEXT NOT NULL,                     -- PerResource
    PRIMARY KEY (slot_unix_ms, vm)
) STRICT, WITHOUT ROWID;
INSERT INTO demand_10 (vm, slot_unix_ms, peak) SELECT vm, slot_unix_ms, peak FROM demand;
DROP TABLE demand;
ALTER TABLE demand_10 RENAME TO demand;
CREATE INDEX demand_of_a_vm ON demand (vm);        -- so that a VM is forgotten quickly

CREATE TABLE cpu_baseline (
    one      INTEGER PRIMARY KEY CHECK (one = 1),
    baseline TEXT NOT NULL                          -- CpuBaseline
) STRICT;
", "
ALTER TABLE storage_moves ADD COLUMN at_rest INTEGER NOT NULL DEFAULT 0 CHECK (at_rest IN (0, 1)); -- the VM does not run
"];

/// Opens the file, alone, at the newest version.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_owned(), source };
    let mut sql = Connection::open(path).map_err(failed)?;
    // Exclusive: a second manager on the same file is refused, and no shared memory is needed.
    sql.busy_timeout(LOCK_PATIENCE).map_err(failed)?;
    sql.pragma_update(None, "locking_mode", "EXCLUSIVE").map_err(failed)?;
    sql.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    sql.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    sql.pragma_update(None, "foreign_keys", true).map_err(failed)?;
    sql.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    migrate(&mut sql).map_err(|error| match error {
        StoreError::Sql(source) => failed(source),
        other => other,
    })?;
    Ok(sql)
}

fn migrate(sql: &mut Connection) -> Result<(), StoreError> {
    let tx = sql.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found: usize = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > STEPS.len() {
        return Err(StoreError::Newer { found, known: STEPS.len() });
    }
    for step in &STEPS[found..] {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "user_version", STEPS.len())?;
    Ok(tx.commit()?)
}
