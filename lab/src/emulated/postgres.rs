//! PostgreSQL, Debian's: a disk with the server and a cluster of databases for a Linux guest, made once, and the clients
//! for this machine.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Cache;
use super::packages::{self, Packages};
use crate::cluster::CLIENT_ADDRESS;
use crate::namespace::Namespace;
use crate::setup::say;
use crate::{LabError, Result, exec, setup};

/// The server, its clients, and the libraries of both. LLVM is left out, which only just-in-time compiling needs.
const PACKAGES: [&str; 40] = [
    "postgresql-15",
    "postgresql-client-15",
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcom-err2",
    "libffi8",
    "libgcc-s1",
    "libgcrypt20",
    "libgmp10",
    "libgnutls30",
    "libgpg-error0",
    "libgssapi-krb5-2",
    "libhogweed6",
    "libicu72",
    "libidn2-0",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libldap-2.5-0",
    "liblz4-1",
    "liblzma5",
    "libnettle8",
    "libp11-kit0",
    "libpam0g",
    "libpq5",
    "libreadline8",
    "libsasl2-2",
    "libssl3",
    "libstdc++6",
    "libsystemd0",
    "libtasn1-6",
    "libtinfo6",
    "libunistring2",
    "libxml2",
    "libzstd1",
    "tzdata",
    "zlib1g",
];
/// Where the server and its clients lie.
const PROGRAMS: &str = "usr/lib/postgresql/15/bin";
/// Parts of the packages that no guest needs.
const LEFT_OUT: [&str; 4] =
    ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/postgresql/15/lib/bitcode"];
/// What makes and mends file systems, and separates processes.
const TOOLS: [&str; 2] = ["e2fsprogs", "util-linux"];
/// Whom the server runs as, on the disk and while it is made.
const USER: u32 = 999;
/// The server wants a name for it.
const USERS: &str = "postgres:x:999:999::/pgdata:/bin/sh\n";
/// What the guest runs.
const SERVICE: &str = "#!/bin/sh\nexec /usr/lib/postgresql/15/bin/postgres -D /pgdata >>/pgdata/log 2>&1\n";
/// Makes the databases, as [`USER`]: the bench's own tables, one for what it is told was committed, and amcheck.
const RECIPE: &str = r#"
set -e
PATH=/usr/lib/postgresql/15/bin:/bin
cd /pgdata
initdb --pgdata /pgdata --username postgres --auth trust --encoding UTF8 --locale C --data-checksums
echo "
listen_addresses = '*'
unix_socket_directories = '/pgdata'
dynamic_shared_memory_type = mmap
shared_buffers = 16MB
max_connections = 10
max_wal_size = 64MB
jit = off
" >>/pgdata/postgresql.conf
echo "host all all $CLIENT/32 trust" >>/pgdata/pg_hba.conf
pg_ctl --pgdata /pgdata --log /pgdata/log --wait --options "-c listen_addresses= -c fsync=off" start
pgbench --host /pgdata --username postgres --initialize --quiet --scale 1 postgres
psql --host /pgdata --username postgres --quiet --set ON_ERROR_STOP=1 --command "
CREATE EXTENSION amcheck;
CREATE TABLE committed (client int, number int, PRIMARY KEY (client, number));
" postgres
pg_ctl --pgdata /pgdata --wait --mode fast stop
"#;
/// Size of the disk, half of which is free.
const DISK: &str = "320M";
const MAKE_LIMIT: Duration = Duration::from_secs(5 * 60);

/// The disk, and the unpacked packages.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// The disk's raw image, to be copied for each guest.
    pub disk: PathBuf,
    tree: PathBuf,
}

impl Postgres {
    /// Fetches, unpacks and makes what is not there yet, or was made in another way.
    pub(super) fn ensure(cache: &Cache, base: &Packages) -> Result<Self> {
        let tree = packages::ensure_tree(&cache.dir, "postgresql-15", &PACKAGES)?;
        let postgres = Self { disk: cache.dir.join("postgresql-15.img"), tree };
        let made_by = cache.dir.join("postgresql-15.recipe");
        let recipe = [USERS, SERVICE, RECIPE, DISK, &PACKAGES.concat()].concat();
        if !postgres.disk.exists() || fs::read_to_string(&made_by).ok().as_ref() != Some(&recipe) {
            say("making a disk with PostgreSQL (once)");
            setup::packages::ensure(&TOOLS)?;
            postgres.make(&cache.dir, &base.busybox())?;
            fs::write(&made_by, recipe).map_err(failed("write", &made_by))?;
        }
        Ok(postgres)
    }

    /// One of PostgreSQL's clients, such as `psql`, in a namespace of this machine.
    pub fn client(&self, namespace: &Namespace, program: &str) -> Command {
        let loaded = packages::loaded(&self.tree, &self.tree.join(PROGRAMS).join(program));
        let mut command = namespace.command(loaded.get_program());
        command.args(loaded.get_args());
        command
    }

    fn make(&self, cache: &Path, busybox: &Path) -> Result<()> {
        let root = cache.join("postgresql-15.root");
        packages::remove(&root)?;
        self.furnish(&root, busybox)?;
        // All processes end with the first of a namespace of their own, and that with the command: none is left, whatever
        // happens. The first is a shell that stays root, since the kernel forgets whom a process ends with once its user changes.
        let mut recipe = Command::new("unshare");
        recipe.args(["--pid", "--fork", "--kill-child", "sh", "-c", "chroot \"$@\"; exit $?", "sh"]);
        recipe.arg(format!("--userspec={USER}:{USER}")).arg(&root).args(["/bin/sh", "-c", RECIPE]);
        recipe.env("CLIENT", CLIENT_ADDRESS);
        exec::run(&mut recipe, MAKE_LIMIT)?;
        let new = cache.join("postgresql-15.new");
        File::create(&new).map_err(failed("create", &new))?;
        let mut file_system = Command::new("mke2fs");
        file_system.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&root).arg(&new).arg(DISK);
        exec::run(&mut file_system, MAKE_LIMIT)?;
        packages::remove(&root)?;
        fs::rename(&new, &self.disk).map_err(failed("rename to", &self.disk))
    }

    /// The tree of packages, with a shell, a place for the databases, and what the guest is to run.
    fn furnish(&self, root: &Path, busybox: &Path) -> Result<()> {
        fs::create_dir(root).map_err(failed("create", root))?;
        exec::run(Command::new("cp").arg("--archive").arg(self.tree.join(".")).arg(root), MAKE_LIMIT)?;
        for part in LEFT_OUT {
            let _absent = fs::remove_dir_all(root.join(part));
        }
        for directory in ["bin", "dev", "etc", "pgdata"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(failed("create", &path))?;
        }
        fs::copy(busybox, root.join("bin/sh")).map_err(failed("copy", busybox))?;
        // A file does, where the guest will have the device.
        let null = root.join("dev/null");
        fs::write(&null, "").map_err(failed("write", &null))?;
        let users = root.join("etc/passwd");
        fs::write(&users, USERS).map_err(failed("write", &users))?;
        let service = root.join("service");
        fs::write(&service, SERVICE).map_err(failed("write", &service))?;
        for (path, mode) in [
            (root.to_path_buf(), 0o755),
            (null, 0o666),
            (service.clone(), 0o755),
            (root.join("pgdata"), 0o700),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(failed("change", &path))?;
        }
        for path in [service, root.join("pgdata")] {
            chown(&path, Some(USER), Some(USER)).map_err(failed("change the owner of", &path))?;
        }
        Ok(())
    }
}

fn failed(doing: &str, path: &Path) -> impl FnOnce(std::io::Error) -> LabError + use<> {
    LabError::io(format!("{doing} {}", path.display()))
}
