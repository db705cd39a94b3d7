//! IPMI, by `ipmitool`: the host's management controller switches it, whatever its software does.

use std::path::PathBuf;

use godwit_types::power::PowerState;

use super::{Driver, PowerError, command, secret};

/// The program, as it is found on the manager's machine.
pub(super) const TOOL: &str = "ipmitool";

/// A host's management controller.
pub(super) struct Ipmi {
    pub tool: PathBuf,
    pub address: String,
    pub user: String,
    /// The file with the password.
    pub password: PathBuf,
}

impl Driver for Ipmi {
    async fn wake(&self) -> Result<(), PowerError> {
        self.chassis("on").await.map(drop)
    }

    /// As by its power button: the host's software shuts down by itself.
    async fn standby(&self) -> Result<(), PowerError> {
        self.chassis("soft").await.map(drop)
    }

    async fn state(&self) -> Result<PowerState, PowerError> {
        let said = self.chassis("status").await?;
        match said.split_whitespace().last() {
            Some("on") => Ok(PowerState::On),
            Some("off") => Ok(PowerState::Off),
            _ => Err(PowerError::Unclear { program: self.tool.display().to_string(), said }),
        }
    }
}

impl Ipmi {
    async fn chassis(&self, verb: &str) -> Result<String, PowerError> {
        secret::require(&self.password).await?;
        let password = self.password.to_string_lossy();
        // The password's file, and not the password: everybody on this machine can read command lines.
        let access = ["-I", "lanplus", "-H", &self.address, "-U", &self.user, "-f", &password];
        Ok(command::run(&self.tool, &[&access[..], &["chassis", "power", verb]].concat()).await?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::super::command::tests::program;
    use super::*;

    const SECRET: &str = "hunter2";

    /// A controller whose `ipmitool` is `script`.
    fn ipmi(dir: &Path, script: &str) -> Ipmi {
        let password = dir.join("password");
        fs::write(&password, SECRET).unwrap();
        fs::set_permissions(&password, Permissions::from_mode(0o600)).unwrap();
        let tool = program(dir, "ipmitool", script);
        Ipmi { tool, address: "10.0.0.7".into(), user: "godwit".into(), password }
    }

    #[tokio::test]
    async fn each_verb_is_asked_of_the_controller_and_the_password_is_on_no_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = format!("echo \"$@\" >> {}; echo Chassis Power is off", log.display());
        let driver = ipmi(dir.path(), &script);
        driver.wake().await.unwrap();
        driver.standby().await.unwrap();
        assert_eq!(driver.state().await.unwrap(), PowerState::Off);
        let asked = fs::read_to_string(&log).unwrap();
        let access = format!("-I lanplus -H 10.0.0.7 -U godwit -f {}", driver.password.display());
        let expected = ["on", "soft", "status"].map(|verb| format!("{access} chassis power {verb}"));
        assert_eq!(asked.lines().collect::<Vec<_>>(), expected);
        assert!(!asked.contains(SECRET));
    }

    #[tokio::test]
    async fn a_password_that_others_may_read_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let ran = dir.path().join("ran");
        let driver = ipmi(dir.path(), &format!("touch {}", ran.display()));
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&driver.password, Permissions::from_mode(mode)).unwrap();
            let error = driver.wake().await.unwrap_err();
            assert!(matches!(error, PowerError::Password { .. }), "{error}");
        }
        fs::remove_file(&driver.password).unwrap();
        assert!(matches!(driver.wake().await.unwrap_err(), PowerError::Password { .. }));
        assert!(!ran.exists());
    }

    #[tokio::test]
    async fn what_the_controller_says_is_understood_or_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ipmi(dir.path(), "echo Chassis Power is on").state().await.unwrap(), PowerState::On);
        let dir = tempfile::tempdir().unwrap();
        let error = ipmi(dir.path(), "echo who are you").state().await.unwrap_err().to_string();
        assert!(error.contains("who are you"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let failing = ipmi(dir.path(), "echo 'Unable to establish IPMI v2 / RMCP+ session' >&2; exit 1");
        let error = failing.wake().await.unwrap_err().to_string();
        assert!(error.contains("RMCP+"), "{error}");
    }
}
