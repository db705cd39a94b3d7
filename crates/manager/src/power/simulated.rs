//! A program in place of a power switch: for laboratories, and for switches that nobody else knows.

use std::path::PathBuf;

use godwit_types::HostName;
use godwit_types::power::PowerState;

use super::{Driver, PowerError, command};

/// One host, as a program switches it.
pub(super) struct Simulated {
    pub program: PathBuf,
    pub host: HostName,
}

impl Driver for Simulated {
    async fn wake(&self) -> Result<(), PowerError> {
        self.call("wake").await.map(drop)
    }

    async fn standby(&self) -> Result<(), PowerError> {
        self.call("standby").await.map(drop)
    }

    async fn state(&self) -> Result<PowerState, PowerError> {
        let said = self.call("state").await?;
        match said.as_str() {
            "on" => Ok(PowerState::On),
            "off" => Ok(PowerState::Off),
            _ => Err(PowerError::Unclear { program: self.program.display().to_string(), said }),
        }
    }
}

impl Simulated {
    async fn call(&self, verb: &str) -> Result<String, PowerError> {
        Ok(command::run(&self.program, &[verb, self.host.as_str()]).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::tests::program;
    use super::*;

    #[tokio::test]
    async fn the_program_switches_the_host_that_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("host-a");
        let script = format!(
            "cd {}; case $1 in wake) echo on > $2;; standby) echo off > $2;; state) cat $2;; esac",
            dir.path().display()
        );
        let driver =
            Simulated { program: program(dir.path(), "lab", &script), host: "host-a".parse().unwrap() };
        driver.wake().await.unwrap();
        assert_eq!(driver.state().await.unwrap(), PowerState::On);
        driver.standby().await.unwrap();
        assert_eq!(driver.state().await.unwrap(), PowerState::Off);
        std::fs::write(&state, "perhaps").unwrap();
        assert!(matches!(driver.state().await.unwrap_err(), PowerError::Unclear { .. }));
        std::fs::remove_file(&state).unwrap();
        assert!(matches!(driver.state().await.unwrap_err(), PowerError::Command(_)));
    }
}
