//! Debian's packages for the emulated hosts, unpacked beside the machine: nothing is installed on it, and its own
//! package sources stay as they are. The unpacked tree brings its own C library and loader, so that it runs on any
//! distribution that has apt.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::setup::say;
use crate::{LabError, Result, exec};

/// The release that everything is taken from. Its `virtiofsd` is the last that carries locks from one host to another.
const RELEASE: &str = "bookworm";
/// Holds QEMU 10: earlier versions corrupt guests of emulated nested KVM.
const BACKPORTS: &str = "bookworm-backports";
/// Programs with everything they need. The libraries after busybox are those of `virtiofsd`.
const PROGRAMS: [&str; 5] = ["qemu-system-x86", "busybox-static", "libcap-ng0", "libnuma1", "libseccomp2"];
/// The package with `virtiofsd`, of [`RELEASE`]: another version of it comes with [`PROGRAMS`].
const VIRTIOFSD: &str = "qemu-system-common/bookworm";
/// The package whose dependency is the newest kernel.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Releases by whose name Debian's own archive is told from others in the machine's sources.
const DEBIAN: [&str; 7] = ["bookworm", "trixie", "forky", "oldstable", "stable", "testing", "sid"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const QUERY_LIMIT: Duration = Duration::from_secs(60);
const FETCH_LIMIT: Duration = Duration::from_secs(10 * 60);

/// The unpacked packages.
#[derive(Debug, Clone)]
pub(super) struct Packages {
    dir: PathBuf,
}

/// Debian's kernel, unmodified.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// Holds `kernel/` with the modules.
    pub(super) modules: PathBuf,
}

impl Packages {
    /// Fetches and unpacks what is not there yet.
    pub(super) fn ensure(cache: &Path) -> Result<Self> {
        let packages = Self { dir: cache.join(format!("packages-{BACKPORTS}")) };
        if packages.dir.exists() {
            return Ok(packages);
        }
        say("fetching QEMU and a kernel for the emulated hosts (75 MB, once)");
        let work = cache.join("packages.new");
        remove(&work)?;
        Apt::prepare(&work)?.fetch().map_err(explain)?;
        fs::rename(work.join("unpacked"), &packages.dir)
            .map_err(LabError::io(format!("rename to {}", packages.dir.display())))?;
        remove(&work)?;
        Ok(packages)
    }

    /// QEMU.
    pub(super) fn qemu(&self) -> Command {
        let mut command = self.program("programs/usr/bin/qemu-system-x86_64");
        command.env("QEMU_MODULE_DIR", self.dir.join("programs/usr/lib/x86_64-linux-gnu/qemu"));
        for data in ["qemu", "seabios"] {
            command.arg("-L").arg(self.dir.join("programs/usr/share").join(data));
        }
        command
    }

    /// The server of the directory that the hosts share.
    pub(super) fn virtiofsd(&self) -> Command {
        self.program("virtiofsd/usr/lib/qemu/virtiofsd")
    }

    /// A static busybox.
    pub(super) fn busybox(&self) -> PathBuf {
        self.dir.join("programs/bin/busybox")
    }

    /// The kernel of hosts and guests.
    pub(super) fn kernel(&self) -> Result<Kernel> {
        let boot = self.dir.join("kernel/boot");
        let image = only_child(&boot, "vmlinuz-")?;
        let modules = only_child(&self.dir.join("kernel/lib/modules"), "")?;
        Ok(Kernel { image, modules })
    }

    /// A program of the unpacked tree, run by the tree's own loader.
    fn program(&self, path: &str) -> Command {
        loaded(&self.dir.join("programs"), &self.dir.join(path))
    }
}

/// Fetches packages of [`RELEASE`] by name, without what they depend on, and unpacks them below a directory of the cache
/// with this name, unless it is there.
pub(super) fn ensure_tree(cache: &Path, name: &str, packages: &[&str]) -> Result<PathBuf> {
    let tree = cache.join(format!("packages-{name}"));
    if tree.exists() {
        return Ok(tree);
    }
    say(format_args!("fetching {name} for a Linux guest (once)"));
    let work = cache.join("packages.new");
    remove(&work)?;
    let apt = Apt::prepare(&work)?;
    apt.fetch_only(packages, "archives", "tree").map_err(explain)?;
    fs::rename(work.join("unpacked/tree"), &tree)
        .map_err(LabError::io(format!("rename to {}", tree.display())))?;
    remove(&work)?;
    Ok(tree)
}

/// A program, run by the loader and with the libraries of an unpacked tree.
pub(super) fn loaded(tree: &Path, program: &Path) -> Command {
    let libraries = tree.join("lib/x86_64-linux-gnu");
    let more = tree.join("usr/lib/x86_64-linux-gnu");
    let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
    command.args(["--inhibit-cache", "--library-path"]);
    command.arg(format!("{}:{}", libraries.display(), more.display())).arg(program);
    command
}

/// An apt of our own, with its own lists and an empty idea of what is installed.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn prepare(dir: &Path) -> Result<Self> {
        for sub in ["sources", "lists/partial", "archives/partial", "unpacked"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(LabError::io(format!("create {}", path.display())))?;
        }
        let mirror = mirror()?;
        let mut sources = String::new();
        for suite in [RELEASE, BACKPORTS] {
            let signed =
                if Path::new(KEYRING).exists() { format!(" signed-by={KEYRING}") } else { String::new() };
            let _infallible = writeln!(sources, "deb [arch=amd64{signed}] {mirror} {suite} main");
        }
        let dir = fs::canonicalize(dir).map_err(LabError::io(format!("resolve {}", dir.display())))?;
        let shown = dir.display();
        let configuration = format!(
            "Dir::Etc::SourceList \"/dev/null\";\nDir::Etc::SourceParts \"{shown}/sources\";\n\
             Dir::Etc::PreferencesParts \"/dev/null\";\nDir::State::Lists \"{shown}/lists\";\n\
             Dir::State::status \"{shown}/status\";\nDir::Cache \"{shown}\";\nDir::Cache::Archives \"{shown}/archives\";\n\
             APT::Default-Release \"{BACKPORTS}\";\nAPT::Install-Recommends \"false\";\nAPT::Architecture \"amd64\";\n\
             APT::Sandbox::User \"root\";\nAcquire::Retries \"3\";\nAcquire::Languages \"none\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n"
        );
        for (name, text) in
            [("sources/lab.list", sources.as_str()), ("status", ""), ("apt.conf", &configuration)]
        {
            let path = dir.join(name);
            fs::write(&path, text).map_err(LabError::io(format!("write {}", path.display())))?;
        }
        Ok(Self { dir })
    }

    /// Downloads everything and unpacks it below `unpacked`.
    fn fetch(&self) -> Result<()> {
        self.run("apt-get", &["--quiet", "update"])?;
        self.run("apt-get", &[&["--quiet", "--yes", "--download-only", "install"], &PROGRAMS[..]].concat())?;
        self.unpack("archives", "programs")?;
        let kernel = self.kernel_package()?;
        for (package, into) in [(VIRTIOFSD, "virtiofsd"), (kernel.as_str(), "kernel")] {
            fs::create_dir_all(self.dir.join(into)).map_err(LabError::io(format!("create {into}")))?;
            let mut command = self.command("apt-get", &["--quiet", "download", package]);
            exec::run(command.current_dir(self.dir.join(into)), FETCH_LIMIT)?;
            self.unpack(into, into)?;
        }
        Ok(())
    }

    /// Downloads packages of [`RELEASE`] alone into `from`, and unpacks them into `into`.
    fn fetch_only(&self, packages: &[&str], from: &str, into: &str) -> Result<()> {
        self.run("apt-get", &["--quiet", "update"])?;
        let names: Vec<String> = packages.iter().map(|package| format!("{package}/{RELEASE}")).collect();
        let mut command = self.command("apt-get", &["--quiet", "download"]);
        exec::run(command.args(names).current_dir(self.dir.join(from)), FETCH_LIMIT)?;
        self.unpack(from, into)
    }

    /// The package that the kernel's metapackage depends on.
    fn kernel_package(&self) -> Result<String> {
        let shown = self.run("apt-cache", &["show", "--no-all-versions", KERNEL])?;
        let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
        let name = depends
            .and_then(|text| text.split_ascii_whitespace().find(|word| word.starts_with("linux-image-")));
        name.map(|name| name.trim_end_matches(',').to_owned()).ok_or_else(|| {
            LabError::Unsupported(format!("the package {KERNEL} names no kernel in {BACKPORTS}"))
        })
    }

    fn unpack(&self, from: &str, into: &str) -> Result<()> {
        let (from, into) = (self.dir.join(from), self.dir.join("unpacked").join(into));
        for package in
            children(&from)?.into_iter().filter(|path| path.extension().is_some_and(|end| end == "deb"))
        {
            exec::run(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&into), FETCH_LIMIT)?;
        }
        Ok(())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        exec::run(&mut self.command(program, arguments), FETCH_LIMIT)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.env("DEBIAN_FRONTEND", "noninteractive").env_remove("APT_CONFIG");
        command.arg("--config-file").arg(self.dir.join("apt.conf")).args(arguments);
        command
    }
}

/// Where the machine's own apt gets Debian from.
fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"]);
    let targets = exec::run(&mut command, QUERY_LIMIT).map_err(explain)?;
    let mirror = targets.lines().find_map(|line| {
        let (release, mirror) = line.split_once(' ')?;
        DEBIAN.contains(&release).then(|| mirror.to_owned())
    });
    mirror.ok_or_else(|| {
        LabError::Unsupported(
            "apt knows no Debian mirror: the emulated hosts need one in /etc/apt/sources.list".into(),
        )
    })
}

fn explain(error: LabError) -> LabError {
    LabError::Unsupported(format!(
        "the packages of the emulated hosts cannot be fetched: {}; check the machine's apt sources and network, and that \
         the mirror has {BACKPORTS}",
        error.chain()
    ))
}

fn only_child(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let found = children(dir)?
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    found.ok_or_else(|| {
        LabError::Broken(format!("{} holds no {prefix}*: remove it to fetch it again", dir.display()))
    })
}

fn children(dir: &Path) -> Result<Vec<PathBuf>> {
    let reading = || LabError::io(format!("read {}", dir.display()));
    let entries = fs::read_dir(dir).map_err(reading())?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(reading())?;
    paths.sort();
    Ok(paths)
}

/// Removes a directory, if it is there.
pub(super) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(LabError::io(format!("remove {}", dir.display()))(error))
        }
        _ => Ok(()),
    }
}
