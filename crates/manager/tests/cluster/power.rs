//! Hosts that are switched off and on.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use godwit_types::host::{Host, HostState};
use godwit_types::task::TaskState;
use godwit_types::{ApiError, ErrorCode};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::{Cluster, PATIENCE};

impl Cluster {
    /// Lets `host` be switched by a program that writes down what it is asked.
    async fn simulate(&self, host: &str, script: &str) -> PathBuf {
        let dir = self.config.state_dir.join("power");
        fs::create_dir_all(&dir).unwrap();
        let log = dir.join("log");
        let mut program =
            OpenOptions::new().write(true).create_new(true).mode(0o700).open(dir.join("lab")).unwrap();
        write!(program, "#!/bin/sh\necho $1 $2 >> {}\n{script}\n", log.display()).unwrap();
        drop(program);
        self.drive(host, json!({"kind": "simulated", "program": "lab"})).await;
        log
    }

    async fn drive(&self, host: &str, driver: Value) {
        let path = format!("/v1/hosts/{host}/settings");
        let _: Value = self.client.post(&path, &json!({"driver": driver})).await.unwrap();
    }

    async fn switch(&self, host: &str, verb: &str) -> Result<Value, ApiError> {
        self.client.post(&format!("/v1/hosts/{host}/{verb}"), &json!({})).await
    }
}

#[tokio::test]
async fn an_empty_host_is_switched_by_its_program_and_that_is_told() {
    let cluster = Cluster::start().await;
    let log = cluster.simulate("b", "[ $1 != state ] || echo off").await;
    cluster.switch("b", "standby").await.unwrap();
    let power: Value = cluster.get("/v1/hosts/b/power").await;
    assert_eq!((&power["state"], &power["order"]["deed"]), (&json!("off"), &json!("standby")));
    cluster.switch("b", "wake").await.unwrap();
    assert_eq!(fs::read_to_string(log).unwrap(), "standby b\nstate b\nwake b\n");
    let kinds = cluster.event_kinds().await;
    let kinds: Vec<_> =
        kinds.iter().filter(|kind| ["host.standby", "host.woken"].contains(&&***kind)).collect();
    assert_eq!(kinds, ["host.standby", "host.woken"]);
    cluster.end().await;
}

#[tokio::test]
async fn nothing_is_placed_on_a_host_that_goes_off_although_it_still_reports() {
    let cluster = Cluster::start().await;
    cluster.simulate("b", "").await;
    cluster.create("web1").await;
    cluster.switch("b", "standby").await.unwrap();
    // Whatever its agent says now was said before it was off.
    cluster.heard_from("b").await;
    assert_eq!(cluster.host_state("b").await, Some(HostState::Down));
    assert_eq!(cluster.try_start("web1", Some("b")).await.unwrap_err().code, ErrorCode::Refused);
    assert!(!cluster.event_kinds().await.contains(&"host.up".to_owned()));
    cluster.switch("b", "wake").await.unwrap();
    cluster.until("b is up", async |c| c.host_state("b").await == Some(HostState::Up)).await;
    let task = cluster.try_start("web1", Some("b")).await.unwrap();
    assert_eq!(cluster.ended(task.id).await.state, TaskState::Succeeded);
    cluster.end().await;
}

#[tokio::test]
async fn a_host_that_could_not_be_switched_off_is_up_again() {
    let cluster = Cluster::start().await;
    cluster.simulate("b", "exit 1").await;
    assert_eq!(cluster.switch("b", "standby").await.unwrap_err().code, ErrorCode::Failed);
    cluster.until("b is up", async |c| c.host_state("b").await == Some(HostState::Up)).await;
    assert!(cluster.event_kinds().await.contains(&"host.not-switched".to_owned()));
    cluster.end().await;
}

#[tokio::test]
async fn a_host_is_not_switched_off_while_a_vm_is_on_it_or_on_its_way() {
    let cluster = Cluster::start().await;
    let log = cluster.simulate("b", "").await;
    cluster.running("web1").await;
    cluster.a.script(|script| script.hold_commit = true);
    let task = cluster.migrate("web1", "b").await;
    let error = cluster.switch("b", "standby").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("b is not empty: web1"), "{error}");
    cluster.a.script(|script| script.hold_commit = false);
    cluster.ended(task.id).await;
    assert_eq!(cluster.switch("b", "standby").await.unwrap_err().code, ErrorCode::Refused);
    assert!(!log.exists());
    cluster.end().await;
}

#[tokio::test]
async fn a_switch_that_fails_is_told_with_its_own_words() {
    let cluster = Cluster::start().await;
    for (host, code, remedy) in
        [("a", ErrorCode::Refused, "--power-driver"), ("nope", ErrorCode::NotFound, "godwit host ls")]
    {
        let error = cluster.switch(host, "wake").await.unwrap_err();
        assert_eq!(error.code, code);
        assert!(error.remedy.unwrap().contains(remedy));
    }
    cluster.simulate("b", "echo no such lamp >&2; exit 4").await;
    let error = cluster.switch("b", "wake").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Failed);
    assert!(error.message.contains("no such lamp"), "{error}");
    let bmc = json!({"kind": "ipmi", "address": "127.0.0.1", "user": "root", "password": "b"});
    cluster.drive("b", bmc).await;
    let error = cluster.switch("b", "wake").await.unwrap_err();
    assert!(error.message.contains("power/b cannot be used"), "{error}");
    assert!(!cluster.event_kinds().await.contains(&"host.woken".to_owned()));
    cluster.end().await;
}

#[tokio::test]
async fn a_host_without_a_controller_is_woken_by_a_packet_and_switched_off_by_its_agent() {
    let cluster = Cluster::start().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = socket.local_addr().unwrap();
    cluster.drive("b", json!({"kind": "wake_on_lan", "mac": "52:54:00:00:00:01", "to": to})).await;
    assert_eq!(cluster.get::<Value>("/v1/hosts/b/power").await["state"], json!("on"));
    cluster.switch("b", "standby").await.unwrap();
    assert!(cluster.b.was_asked("POST standby"));
    cluster.b.die();
    cluster
        .until("nobody answers at b", async |c| {
            c.get::<Value>("/v1/hosts/b/power").await["state"] == json!("unknown")
        })
        .await;
    cluster.switch("b", "wake").await.unwrap();
    let mut packet = [0; 200];
    let length = timeout(PATIENCE, socket.recv(&mut packet)).await.unwrap().unwrap();
    assert_eq!((length, packet[5], packet[101]), (102, 0xff, 1));
    cluster.end().await;
}

#[tokio::test]
async fn a_program_that_hangs_holds_up_nobody_else() {
    let cluster = Cluster::start().await;
    cluster.simulate("b", "exec sleep 60").await;
    let hangs = cluster.switch("b", "wake");
    let others = async {
        for _ in 0..20 {
            cluster.get::<Value>("/v1/hosts").await;
            cluster.create_and_remove().await;
        }
    };
    tokio::select! {
        answer = hangs => panic!("it answered: {answer:?}"),
        done = timeout(Duration::from_secs(15), others) => done.expect("others are answered"),
    }
    cluster.end().await;
}

impl Cluster {
    /// Once its agent has reported again.
    async fn heard_from(&self, host: &str) {
        let path = format!("/v1/hosts/{host}");
        let clock = async |c: &Self| c.get::<Host>(&path).await.facts.clock_unix_ms;
        let before = clock(self).await;
        self.until("it reports", async |c| clock(c).await > before).await;
    }

    async fn create_and_remove(&self) {
        self.create("web1").await;
        let _: Value = self.client.delete("/v1/vms/web1").await.unwrap();
    }
}
