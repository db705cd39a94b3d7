//! On which hosts each VM can be at all, wherever the others are.

/// Hosts are listed for VMs that can be on fewer than one of so many.
const FEW: usize = 4;

/// One bit for each host and VM, in a row for each host, so that those who could come to it are found close together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    hosts: usize,
    /// Of 64 bits, in a row.
    words: usize,
    bits: Vec<u64>,
    /// The hosts of each VM, if they are few.
    listed: Vec<Box<[u32]>>,
}

impl Reach {
    /// By whether a VM, which comes first, can be on a host.
    pub fn new(hosts: usize, vms: usize, can_be: impl Fn(usize, usize) -> bool) -> Self {
        let words = vms.div_ceil(64);
        let mut reach = Self { hosts, words, bits: vec![0; hosts * words], listed: Vec::with_capacity(vms) };
        for vm in 0..vms {
            let places: Vec<u32> =
                (0..hosts).filter(|host| can_be(vm, *host)).map(|host| host as u32).collect();
            places.iter().for_each(|host| reach.bits[*host as usize * words + vm / 64] |= 1 << (vm % 64));
            reach.listed.push(if places.len() * FEW < hosts { places.into() } else { Box::default() });
        }
        reach
    }

    /// Whether the VM can be on the host.
    #[inline]
    pub fn can_be(&self, vm: usize, host: usize) -> bool {
        self.bits[host * self.words + vm / 64] >> (vm % 64) & 1 == 1
    }

    /// A host that the VM can be on, by a number below a bound; none if that hits one that it cannot be on.
    #[inline]
    pub(super) fn pick(&self, vm: usize, below: impl FnOnce(usize) -> usize) -> Option<usize> {
        match &*self.listed[vm] {
            [] => Some(below(self.hosts)).filter(|host| self.can_be(vm, *host)),
            few => Some(few[below(few.len())] as usize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_is_picked_and_nothing_else() {
        // The first VM can be anywhere, the last on the last host alone, those between on every other.
        let can_be = |vm: usize, host: usize| match vm {
            0 => true,
            99 => host == 9,
            _ => (vm + host).is_multiple_of(2),
        };
        let reach = Reach::new(10, 100, can_be);
        for (vm, host) in (0..100).flat_map(|vm| (0..10).map(move |host| (vm, host))) {
            assert_eq!(reach.can_be(vm, host), can_be(vm, host), "{vm} {host}");
            let picked = reach.pick(vm, |bound| host % bound);
            assert!(picked.is_none_or(|host| can_be(vm, host)), "{vm} {picked:?}");
            assert!(picked.is_some() || !can_be(vm, host), "{vm} {host}");
        }
    }
}
