//! `_approx_count_distinct`: HyperLogLog (Flajolet et al., 2007) with 2^11 registers, as CouchDB's. The standard error
//! is 2.3 percent.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bits of the hash that choose the register: CouchDB's precision.
const PRECISION: u32 = 11;
const REGISTERS: usize = 1 << PRECISION;

/// What is remembered of the keys that were seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Sketch {
    /// The registers that are not 0, in their order: pages have few keys.
    Few(Vec<(u16, u8)>),
    /// All.
    Many(Vec<u8>),
}

impl Sketch {
    pub fn of<'a>(keys: impl Iterator<Item = &'a [u8]>) -> Sketch {
        let mut registers = vec![0u8; REGISTERS];
        let mut before: &[u8] = &[];
        for key in keys {
            // Rows with equal keys lie side by side.
            if key != before {
                let (register, rank) = place_of(key);
                registers[register] = registers[register].max(rank);
                before = key;
            }
        }
        Sketch::pack(registers)
    }

    pub fn union(sketches: impl Iterator<Item = Sketch>) -> Sketch {
        let mut registers = vec![0u8; REGISTERS];
        for sketch in sketches {
            sketch.for_each(|register, rank| {
                if let Some(known) = registers.get_mut(register) {
                    *known = (*known).max(rank);
                }
            });
        }
        Sketch::pack(registers)
    }

    /// About how many different keys there were.
    pub fn estimate(&self) -> u64 {
        let mut registers = vec![0u8; REGISTERS];
        self.for_each(|register, rank| {
            if let Some(known) = registers.get_mut(register) {
                *known = rank;
            }
        });
        let m = REGISTERS as f64;
        let raw =
            0.7213 / (1.0 + 1.079 / m) * m * m / registers.iter().map(|rank| (-f64::from(*rank)).exp2()).sum::<f64>();
        let empty = registers.iter().filter(|rank| **rank == 0).count();
        // Few keys are better counted by the registers that they have left empty.
        let estimate = if raw <= 2.5 * m && empty > 0 { m * (m / empty as f64).ln() } else { raw };
        estimate.round() as u64
    }

    fn pack(registers: Vec<u8>) -> Sketch {
        let used = registers.iter().filter(|rank| **rank != 0).count();
        if used * 3 > REGISTERS {
            return Sketch::Many(registers);
        }
        let used = registers.into_iter().enumerate().filter(|(_, rank)| *rank != 0);
        Sketch::Few(used.map(|(register, rank)| (register as u16, rank)).collect())
    }

    fn for_each(&self, mut see: impl FnMut(usize, u8)) {
        match self {
            Sketch::Few(used) => used.iter().for_each(|(register, rank)| see(usize::from(*register), *rank)),
            Sketch::Many(registers) => registers.iter().enumerate().for_each(|(register, rank)| see(register, *rank)),
        }
    }
}

/// The register of a key, and the number of the first bit behind it that is set.
fn place_of(key: &[u8]) -> (usize, u8) {
    let hash = Sha256::digest(key);
    let hash = u64::from_be_bytes([hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7]]);
    let rest = hash << PRECISION;
    let rank = rest.leading_zeros().min(u64::BITS - PRECISION) + 1;
    ((hash >> (u64::BITS - PRECISION)) as usize, rank as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_about_right() {
        for count in [0u32, 1, 10, 1_000, 3_000, 5_000, 100_000] {
            let keys: Vec<[u8; 4]> = (0..count).map(u32::to_be_bytes).collect();
            let pages = keys.chunks(100).map(|page| Sketch::of(page.iter().chain(page).map(|key| &key[..])));
            let found = Sketch::union(pages).estimate() as f64;
            assert!((found - f64::from(count)).abs() <= f64::from(count) * 0.07, "{count}: {found}");
        }
    }
}
