//! The CPU that a guest sees, the CPU that a host offers, and whether the one is found in the other.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::check::{Check, Finding};
use crate::ids::HostName;

/// How far a TSC that cannot be scaled may be off, in parts per million of the frequency that the guest knows.
const TSC_DRIFT_PPM_MAX: u64 = 10_000;

/// What x86-64-v2 promises, by name (x86-64 psABI, table of micro-architecture levels).
const X86_64_V2: &str =
    "sse3 ssse3 cx16 sse4.1 sse4.2 popcnt fpu cx8 cmov mmx fxsr sse sse2 lahf-lm syscall nx lm";

/// The widest physical address that x86-64-v2 shows, in bits; enough for the most memory that a VM can have.
pub const X86_64_V2_PHYSICAL_BITS_MAX: u32 = 41;

/// A CPU as a guest sees it, or the most that a host gives to a guest that migrates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuFacts {
    /// The maker as CPUID spells it, such as `GenuineIntel`.
    pub vendor: String,
    /// Feature bits of CPUID that are set, by name, such as `avx512f`; by place where they have no name.
    pub features: BTreeSet<String>,
    /// Feature bits of MSRs that are set, by name, such as `rdcl-no`.
    #[serde(default)]
    pub msr_features: BTreeSet<String>,
    /// Width of a physical address, in bits.
    pub physical_bits: u32,
    /// Room for the extended registers, in bytes.
    pub xsave_bytes: u32,
    /// None where KVM does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsc: Option<TscFacts>,
}

/// The time stamp counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TscFacts {
    pub khz: u32,
    /// Whether the host can make it run at another frequency. Says nothing of a guest's.
    pub scalable: bool,
}

impl CpuFacts {
    /// What a guest with this CPU would miss on `host`, which offers `offer`: everything, and nothing if it fits.
    ///
    /// Every feature that the guest has seen must be there. Beyond features, the maker must be the same (the makers'
    /// system-call and virtualisation instructions differ), and addresses and saved registers must fit.
    pub fn missing_on(&self, offer: &Self, host: &str) -> Vec<Finding> {
        let name_richer = "name a host with at least these features, or have new VMs see no more than all hosts have: godwit cpu-baseline set";
        let cpu = |reason| Finding::blocked(Check::Cpu, reason, name_richer);
        let mut found = Vec::new();
        if self.vendor != offer.vendor {
            let (theirs, ours) = (&self.vendor, &offer.vendor);
            let reason = format!("the guest runs on a {theirs} CPU and {host} has a {ours} CPU");
            found.push(Finding::blocked(Check::Cpu, reason, format!("name a host with a {theirs} CPU")));
        }
        if let Some(names) = lacking(&self.features, &offer.features) {
            found.push(cpu(format!("the CPU or KVM of {host} lacks {names}")));
        }
        if self.physical_bits > offer.physical_bits {
            let (seen, there) = (self.physical_bits, offer.physical_bits);
            found.push(cpu(format!(
                "the guest was promised {seen} bits of physical address and {host} has {there}"
            )));
        }
        if self.xsave_bytes > offer.xsave_bytes {
            let (seen, there) = (self.xsave_bytes, offer.xsave_bytes);
            found.push(cpu(format!(
                "the guest's extended registers take {seen} bytes and {host} has room for {there}"
            )));
        }
        if let Some(names) = lacking(&self.msr_features, &offer.msr_features) {
            let reason =
                format!("the CPU, microcode or KVM of {host} lacks {names}, which the guest sees in MSRs");
            let remedy = format!("bring microcode and kernel of {host} to the level of the VM's host");
            found.push(Finding::blocked(Check::FeatureMsrs, reason, remedy));
        }
        found.extend(self.tsc_finding(offer, host));
        found
    }

    /// What a CPU that offers this lacks of x86-64-v2, if anything.
    pub fn below_x86_64_v2(&self, host: &str) -> Option<Finding> {
        let promised = X86_64_V2.split_whitespace().map(str::to_owned).collect();
        let names = lacking(&promised, &self.features)?;
        let reason =
            format!("the CPU or KVM of {host} lacks {names}, which the CPU profile x86-64-v2 promises");
        Some(Finding::blocked(Check::Cpu, reason, "name another host, or define the VM with --cpu host"))
    }

    /// What x86-64-v2 promises, on a host that offers this.
    pub fn x86_64_v2(&self) -> Self {
        Self {
            features: X86_64_V2.split_whitespace().map(str::to_owned).collect(),
            msr_features: BTreeSet::new(),
            physical_bits: self.physical_bits.min(X86_64_V2_PHYSICAL_BITS_MAX),
            xsave_bytes: 0,
            ..self.clone()
        }
    }

    /// What all of these have, each an offer and the name of its host: what a guest sees that moves between any two of them.
    /// Of the time stamp counter nothing is said, since it is that of the host on which a guest starts.
    ///
    /// # Errors
    /// If there are none, or if their makers differ.
    pub fn common<'a>(
        offers: impl IntoIterator<Item = (&'a HostName, &'a Self)>,
    ) -> Result<Self, NoCommonCpu> {
        let mut offers = offers.into_iter();
        let (first, offer) = offers.next().ok_or(NoCommonCpu::NoHost)?;
        let mut common = Self { tsc: None, ..offer.clone() };
        for (host, offer) in offers {
            if offer.vendor != common.vendor {
                let (first, host) = (first.clone(), host.clone());
                return Err(NoCommonCpu::Makers {
                    first,
                    host,
                    makers: [common.vendor, offer.vendor.clone()],
                });
            }
            common.features.retain(|feature| offer.features.contains(feature));
            common.msr_features.retain(|feature| offer.msr_features.contains(feature));
            common.physical_bits = common.physical_bits.min(offer.physical_bits);
            common.xsave_bytes = common.xsave_bytes.min(offer.xsave_bytes);
        }
        Ok(common)
    }

    fn tsc_finding(&self, offer: &Self, host: &str) -> Option<Finding> {
        let (Some(guest), Some(there)) = (self.tsc, offer.tsc) else { return None };
        let fits = there.scalable || tsc_near_enough(guest.khz, there.khz);
        (!fits).then(|| {
            let reason = format!(
                "the guest's TSC runs at {} kHz and that of {host} at {} kHz, which it cannot scale",
                guest.khz, there.khz
            );
            Finding::blocked(
                Check::Tsc,
                reason,
                "name a host of the same TSC frequency, or one that scales it",
            )
        })
    }
}

/// Why hosts have no CPU in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCommonCpu {
    #[error("there is no host whose CPU is known")]
    NoHost,
    #[error("{first} has a {} CPU and {host} a {} one, and no guest moves between them", .makers[0], .makers[1])]
    Makers { first: HostName, host: HostName, makers: [String; 2] },
}

/// The names that are seen and not there, in one text.
fn lacking(seen: &BTreeSet<String>, there: &BTreeSet<String>) -> Option<String> {
    let names: Vec<&str> = seen.difference(there).map(String::as_str).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Whether a host whose TSC runs at `host_khz`, and cannot be scaled, is near enough for a guest that knows `guest_khz`.
pub fn tsc_near_enough(guest_khz: u32, host_khz: u32) -> bool {
    tsc_drift_ppm(guest_khz, host_khz) <= TSC_DRIFT_PPM_MAX
}

/// How far `host_khz` is off, in parts per million of `guest_khz`.
pub fn tsc_drift_ppm(guest_khz: u32, host_khz: u32) -> u64 {
    u64::from(host_khz.abs_diff(guest_khz)) * 1_000_000 / u64::from(guest_khz.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(vendor: &str, features: &[&str], physical_bits: u32) -> CpuFacts {
        let features = features.iter().map(|name| (*name).to_owned()).collect();
        CpuFacts {
            vendor: vendor.to_owned(),
            features,
            physical_bits,
            xsave_bytes: 832,
            ..CpuFacts::default()
        }
    }

    #[test]
    fn a_host_with_more_takes_the_guest_and_a_host_with_less_is_told_all_that_it_lacks() {
        let small = cpu("GenuineIntel", &["popcnt"], 40);
        let large = cpu("GenuineIntel", &["popcnt", "avx2", "avx512f"], 46);
        assert_eq!(small.missing_on(&large, "b"), []);
        assert_eq!(large.missing_on(&large, "b"), []);
        let found = large.missing_on(&small, "b");
        assert!(found[0].reason.ends_with("of b lacks avx2, avx512f"), "{found:?}");
        assert!(found[1].reason.contains("46 bits"), "{found:?}");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_guest_never_moves_between_makers() {
        assert_eq!(cpu("GenuineIntel", &[], 40).missing_on(&cpu("AuthenticAMD", &[], 40), "b").len(), 1);
    }

    #[test]
    fn a_feature_of_an_msr_and_room_for_registers_must_be_there_too() {
        let mut guest = cpu("GenuineIntel", &[], 40);
        let host = guest.clone();
        guest.msr_features.insert("rdcl-no".to_owned());
        guest.xsave_bytes += 1;
        let checks: Vec<Check> = guest.missing_on(&host, "b").iter().map(|finding| finding.check).collect();
        assert_eq!(checks, [Check::Cpu, Check::FeatureMsrs]);
    }

    #[test]
    fn what_all_have_is_found_on_each_of_them_and_is_as_much_as_can_be() {
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut old = cpu("GenuineIntel", &["popcnt", "avx2", "old"], 39);
        let mut new = cpu("GenuineIntel", &["popcnt", "avx2", "avx512f"], 46);
        (old.xsave_bytes, new.xsave_bytes) = (832, 2696);
        old.msr_features = ["rdcl-no".to_owned()].into();
        new.msr_features = ["rdcl-no", "taa-no"].map(str::to_owned).into();
        let common = CpuFacts::common([(&a, &old), (&b, &new)]).unwrap();
        assert_eq!(common.features, ["avx2", "popcnt"].map(str::to_owned).into());
        assert_eq!(common.msr_features, ["rdcl-no".to_owned()].into());
        assert_eq!((common.physical_bits, common.xsave_bytes), (39, 832));
        assert!([&old, &new].iter().all(|offer| common.missing_on(offer, "x").is_empty()));
        let other = cpu("AuthenticAMD", &[], 48);
        let unlike = CpuFacts::common([(&a, &old), (&b, &other)]).unwrap_err();
        assert!(
            unlike.to_string().starts_with("a has a GenuineIntel CPU and b a AuthenticAMD one"),
            "{unlike}"
        );
        assert_eq!(CpuFacts::common([]), Err(NoCommonCpu::NoHost));
    }

    #[test]
    fn a_host_below_x86_64_v2_is_told_what_it_lacks() {
        let mut host = cpu("GenuineIntel", &[], 40);
        host.features = X86_64_V2.split_whitespace().map(str::to_owned).collect();
        assert_eq!(host.below_x86_64_v2("a"), None);
        host.features.remove("sse4.2");
        host.features.remove("popcnt");
        let found = host.below_x86_64_v2("a").unwrap();
        assert!(found.reason.contains("of a lacks popcnt, sse4.2,"), "{found:?}");
    }

    #[test]
    fn a_host_with_another_tsc_must_be_able_to_scale_it() {
        let with = |khz, scalable| CpuFacts { tsc: Some(TscFacts { khz, scalable }), ..CpuFacts::default() };
        let found = with(2_000_000, false).missing_on(&with(3_000_000, false), "b");
        assert_eq!(found.iter().map(|finding| finding.check).collect::<Vec<_>>(), [Check::Tsc]);
        assert_eq!(with(2_000_000, false).missing_on(&with(3_000_000, true), "b"), []);
        assert_eq!(with(2_000_000, false).missing_on(&with(2_000_100, false), "b"), []);
    }

    #[test]
    fn a_tsc_that_is_a_percent_off_is_taken_as_it_is_and_one_further_off_is_not() {
        assert!(tsc_near_enough(2_000_000, 2_019_000) && tsc_near_enough(2_000_000, 1_981_000));
        assert!(!tsc_near_enough(2_000_000, 2_100_000) && !tsc_near_enough(2_000_000, 1_900_000));
        assert!(!tsc_near_enough(0, 1));
    }
}
