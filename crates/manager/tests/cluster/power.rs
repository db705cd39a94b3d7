//! Hosts that are switched off and on.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use godwit_api::Token;
use godwit_types::host::{Host, StandbyPhase};
use godwit_types::task::{Task, TaskState};
use godwit_types::{ApiError, ErrorCode};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::agent::Agent;
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

    async fn switch(&self, host: &str, verb: &str) -> Result<Task, ApiError> {
        self.client.post(&format!("/v1/hosts/{host}/{verb}"), &json!({})).await
    }

    /// The host `b` is on again.
    async fn restart_b(&mut self) {
        let token = Token::read_or_create(&self.config.token_file).unwrap();
        self.b = Agent::start("b", self.client.clone(), token).await;
        self.a.meet(&self.b);
        self.b.meet(&self.a);
    }

    /// Why the host does not go to standby.
    async fn not_switched_off(&self, host: &str) -> String {
        let task = self.switch(host, "standby").await.unwrap();
        self.ended(task.id).await.error.expect("it is not switched off").message
    }

    async fn standby(&self, host: &str) -> Option<StandbyPhase> {
        let host: Host = self.get(&format!("/v1/hosts/{host}")).await;
        host.standby.map(|standby| standby.phase)
    }
}

#[tokio::test]
async fn an_empty_host_is_switched_off_and_on_and_gets_no_vm_meanwhile() {
    let mut cluster = Cluster::start().await;
    let log = cluster.simulate("b", "[ $1 != state ] || echo off").await;
    let going = cluster.switch("b", "standby").await.unwrap();
    assert_eq!(cluster.standby("b").await, Some(StandbyPhase::Going));
    assert_eq!(cluster.switch("b", "wake").await.unwrap_err().code, ErrorCode::Conflict);
    cluster.b.die();
    let done = cluster.ended(going.id).await;
    assert_eq!((done.state, cluster.standby("b").await), (TaskState::Succeeded, Some(StandbyPhase::Off)));
    cluster.running("web1").await;
    let error = cluster.try_migrate("web1", "b").await.unwrap_err();
    assert!(error.message.contains("b is in standby"), "{error}");
    assert!(error.remedy.unwrap().contains("godwit host wake b"));

    let waking = cluster.switch("b", "wake").await.unwrap();
    cluster.until("b is asked", async |_| fs::read_to_string(&log).unwrap().contains("wake b")).await;
    assert_eq!(cluster.standby("b").await, Some(StandbyPhase::Waking));
    cluster.restart_b().await;
    assert_eq!(cluster.ended(waking.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.standby("b").await, None);
    let moved = cluster.migrate("web1", "b").await;
    assert_eq!(cluster.ended(moved.id).await.state, TaskState::Succeeded);
    let kinds = cluster.event_kinds().await;
    let told: Vec<&str> = kinds.iter().map(String::as_str).filter(|kind| kind.contains("standby")).collect();
    assert_eq!(told, ["host.going_to_standby", "host.in_standby", "host.left_standby"]);
    assert!(!kinds.iter().any(|kind| kind == "host.down"), "nobody is alarmed: {kinds:?}");
    cluster.end().await;
}

#[tokio::test]
async fn a_host_in_standby_that_somebody_else_switches_on_takes_vms_again() {
    let mut cluster = Cluster::start().await;
    cluster.simulate("b", "[ $1 != state ] || echo off").await;
    let going = cluster.switch("b", "standby").await.unwrap();
    cluster.b.die();
    cluster.ended(going.id).await;
    cluster.restart_b().await;
    cluster.until("b takes VMs", async |c| c.standby("b").await.is_none()).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_host_that_does_not_go_can_be_let_off_and_takes_vms_again() {
    let cluster = Cluster::start().await;
    cluster.simulate("b", "[ $1 != state ] || echo on").await;
    let going = cluster.switch("b", "standby").await.unwrap();
    cluster.client.post::<_, Task>(&format!("/v1/tasks/{}/cancel", going.id), &json!({})).await.unwrap();
    assert_eq!(cluster.ended(going.id).await.state, TaskState::Cancelled);
    assert_eq!(cluster.standby("b").await, None);
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
    assert!(cluster.not_switched_off("b").await.contains("no such lamp"));
    let bmc = json!({"kind": "ipmi", "address": "127.0.0.1", "user": "root", "password": "b"});
    cluster.drive("b", bmc).await;
    assert!(cluster.not_switched_off("b").await.contains("power/b cannot be used"));
    assert_eq!(cluster.standby("b").await, None, "it takes VMs");
    cluster.end().await;
}

#[tokio::test]
async fn a_host_without_a_controller_is_woken_by_a_packet_and_switched_off_by_its_agent() {
    let cluster = Cluster::start().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = socket.local_addr().unwrap();
    cluster.drive("b", json!({"kind": "wake_on_lan", "mac": "52:54:00:00:00:01", "to": to})).await;
    assert_eq!(cluster.get::<Value>("/v1/hosts/b/power").await, json!({"state": "on"}));
    let going = cluster.switch("b", "standby").await.unwrap();
    cluster.until("its agent is asked", async |c| c.b.was_asked("POST standby")).await;
    cluster.b.die();
    assert_eq!(cluster.ended(going.id).await.state, TaskState::Succeeded);
    cluster
        .until("nobody answers at b", async |c| {
            c.get::<Value>("/v1/hosts/b/power").await == json!({"state": "unknown"})
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
    let hangs = cluster.switch("b", "standby").await.unwrap();
    let others = async {
        for _ in 0..20 {
            cluster.get::<Value>("/v1/hosts").await;
            cluster.create_and_remove().await;
        }
    };
    timeout(Duration::from_secs(15), others).await.expect("others are answered");
    assert!(cluster.task(hangs.id).await.error.is_none_or(|error| error.message.contains("lab")));
    cluster.end().await;
}

impl Cluster {
    async fn create_and_remove(&self) {
        self.create("web1").await;
        let _: Value = self.client.delete("/v1/vms/web1").await.unwrap();
    }
}
