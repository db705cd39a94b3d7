//! A day of PlanetLab, with the VMs of the benchmark that has made it known (Beloglazov and Buyya, CCPE 2012).

use super::{FormatError, lines, values};
use crate::trace::{Trace, VmRecord};

/// Four sizes of VM, a quarter of the lines each: MIPS, taken as MHz, and MiB.
const SIZES: [(u64, u64); 4] = [(2500, 870), (2000, 1740), (1000, 1740), (500, 613)];

/// One VM a line: `name,s0,s1,...` in per cent of its CPU, every five minutes.
pub fn planetlab(text: &str) -> Result<Trace, FormatError> {
    let count = lines(text).count();
    let mut vms = Vec::with_capacity(count);
    for (order, (index, line)) in lines(text).enumerate() {
        let (mhz, mib) = SIZES[order / count.div_ceil(SIZES.len())];
        let percent = |word: &str| word.parse::<u64>().ok().filter(|percent| *percent <= 100);
        let mut words = line.split(',');
        words.next();
        let series: Vec<u64> = values(index, &mut words, |word| Some(percent(word)? * mhz / 100))?;
        if series.is_empty() {
            return Err(FormatError::at(index, "expected NAME,s0,s1,... in per cent"));
        }
        let name = format!("vm-{order:04}")
            .parse()
            .map_err(|error: godwit_types::ids::InvalidName| FormatError::at(index, error.to_string()))?;
        vms.push(VmRecord::new(name, 1, mib << 20, series));
    }
    Ok(Trace { interval_ms: 300_000, vms, ..Trace::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn per_cent_are_of_the_vms_size() {
        let trace = planetlab("a,10,100\nb,50,0\nc,1,2\nd,3,4\n").unwrap();
        assert_eq!(trace.vms[0].cpu_mhz, [250, 2500]);
        assert_eq!((trace.vms[1].demand(0).cpu, trace.vms[3].memory), (1000, 613 << 20));
        assert_eq!(
            planetlab("a,1\nb,x").unwrap_err().to_string(),
            "line 2: 'x' is not a value of the series"
        );
        assert!(planetlab("a").unwrap_err().to_string().contains("expected NAME"));
    }
}
