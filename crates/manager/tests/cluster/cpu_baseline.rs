//! The CPU that VMs see which are defined without a profile of their own.

use godwit_types::baseline::{CpuBaselineReport, SetCpuBaseline};
use godwit_types::cpu::CpuFacts;
use godwit_types::task::TaskState;
use godwit_types::vm::{CpuProfile, CreateVm, Vm};
use godwit_types::{ApiError, ErrorCode};

use super::agent::Agent;
use super::{Cluster, spec};

impl Agent {
    fn cpu(&self, change: impl FnOnce(&mut CpuFacts)) {
        change(&mut self.known().facts.vmm.as_mut().unwrap().cpu);
    }

    fn features(&self, features: &[&str]) {
        self.cpu(|cpu| cpu.features = features.iter().map(|name| (*name).to_owned()).collect());
    }
}

impl Cluster {
    async fn set_baseline(&self, asked: SetCpuBaseline) -> Result<CpuBaselineReport, ApiError> {
        self.client.post("/v1/cpu-baseline", &asked).await
    }

    async fn baseline_of_hosts(&self, hosts: &[&str]) -> Result<CpuBaselineReport, ApiError> {
        let hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
        self.set_baseline(SetCpuBaseline::Hosts { hosts }).await
    }

    /// What a host lacks of the baseline.
    async fn lacks(&self, host: &str) -> String {
        let report: CpuBaselineReport = self.get("/v1/cpu-baseline").await;
        let found = report.hosts.into_iter().find(|known| known.host.as_str() == host).unwrap().findings;
        found.into_iter().map(|finding| finding.reason).collect()
    }

    /// Once the manager has heard of what the hosts offer.
    async fn offers(&self, host: &str, feature: &str) {
        let offers = async |c: &Self| {
            let host: godwit_types::host::Host = c.get(&format!("/v1/hosts/{host}")).await;
            host.facts.vmm.unwrap().cpu.features.contains(feature)
        };
        self.until(&format!("{host} offers {feature}"), offers).await;
    }

    async fn with_unlike_hosts() -> Self {
        let cluster = Self::start().await;
        cluster.a.features(&["sse2", "avx2", "avx512f"]);
        cluster.b.features(&["sse2", "avx2", "sha"]);
        cluster.offers("a", "avx512f").await;
        cluster.offers("b", "sha").await;
        cluster
    }
}

#[tokio::test]
async fn new_vms_see_what_all_hosts_have_and_keep_that_whatever_becomes_of_the_baseline() {
    let cluster = Cluster::with_unlike_hosts().await;
    let before: Vm = cluster.create("before").await;
    assert_eq!(before.spec.cpu, CpuProfile::Host, "there is no baseline yet");
    let report = cluster.baseline_of_hosts(&[]).await.unwrap();
    assert!(report.hosts.iter().all(|host| host.findings.is_empty()), "{report:?}");
    let CpuProfile::Baseline(seen) = cluster.create("web1").await.spec.cpu else { panic!("{report:?}") };
    assert_eq!(seen.features, ["avx2", "sse2"].map(str::to_owned).into());
    let own = CreateVm {
        name: "own".parse().unwrap(),
        spec: godwit_types::vm::VmSpec { cpu: CpuProfile::Host, ..spec() },
    };
    assert_eq!(cluster.client.post::<_, Vm>("/v1/vms", &own).await.unwrap().spec.cpu, CpuProfile::Host);
    cluster.client.delete::<serde_json::Value>("/v1/cpu-baseline").await.unwrap();
    assert_eq!(cluster.create("after").await.spec.cpu, CpuProfile::Host);
    assert_eq!(cluster.vm("web1").await.spec.cpu, CpuProfile::Baseline(seen));
    let told = cluster.events().await.into_iter().filter(|event| event.kind == "rulebook.changed").count();
    assert_eq!(told, 2);
    cluster.end().await;
}

#[tokio::test]
async fn a_host_that_lacks_some_of_it_is_named_and_gets_no_vm_that_needs_it() {
    let cluster = Cluster::with_unlike_hosts().await;
    let report = cluster.baseline_of_hosts(&["a"]).await.unwrap();
    assert_eq!(report.baseline.unwrap().of, ["a".parse().unwrap()]);
    assert!(cluster.lacks("b").await.contains("of b lacks avx512f"));
    assert_eq!(cluster.lacks("a").await, "");
    cluster.create("web1").await;
    let error = cluster.try_start("web1", Some("b")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(
        error.message.contains("avx512f") && error.remedy.unwrap().contains("cpu-baseline"),
        "{}",
        error.message
    );
    let started = cluster.try_start("web1", None).await.unwrap();
    assert_eq!(cluster.ended(started.id).await.state, TaskState::Succeeded);
    assert_eq!(cluster.vm("web1").await.owner.unwrap().as_str(), "a", "the scheduler knows it, too");
    cluster.end().await;
}

#[tokio::test]
async fn a_baseline_that_no_host_has_is_refused_and_leaves_the_one_before() {
    let cluster = Cluster::with_unlike_hosts().await;
    let error = cluster.set_baseline(SetCpuBaseline::X86_64V2).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Refused);
    assert!(error.message.contains("of a lacks cmov") && error.message.contains("of b lacks"), "{error}");
    assert!(error.remedy.unwrap().contains("godwit cpu-baseline set hosts"));
    cluster.baseline_of_hosts(&[]).await.unwrap();
    cluster.b.cpu(|cpu| cpu.vendor = "GenuineIntel".into());
    cluster.until("b is of another maker", async |c| c.lacks("b").await.contains("GenuineIntel")).await;
    let error = cluster.baseline_of_hosts(&[]).await.unwrap_err();
    assert!(error.message.contains("no guest moves between them"), "{error}");
    assert_eq!(cluster.baseline_of_hosts(&["nope"]).await.unwrap_err().code, ErrorCode::NotFound);
    assert!(matches!(cluster.create("web1").await.spec.cpu, CpuProfile::Baseline(_)));
    cluster.end().await;
}
