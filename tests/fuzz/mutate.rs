//! Random damage to files, the same for the same seed.

/// splitmix64.
pub struct Random(u64);

impl Random {
    /// A generator for a name and a number.
    pub fn new(name: &str, number: u64) -> Self {
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        Random(hash ^ number.wrapping_mul(0xD134_2543_DE82_EF95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`, which is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// Numbers at which parsers break.
const NUMBERS: [u64; 14] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 40,
    1 << 60,
    i64::MAX as u64,
    u64::MAX - 7,
    u64::MAX,
];

/// Words at which parsers of text break.
const WORDS: [&str; 12] = [
    "-1",
    "1e400",
    "18446744073709551616",
    "1152921504606846976",
    "4294967295",
    "null",
    "[]",
    "{}",
    "\"\"",
    "\\u0000",
    "\u{fffd}",
    "0",
];

/// One to four damages.
pub fn mutate(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = bytes.to_vec();
    for _ in 0..=random.below(4) {
        damage(&mut out, random);
    }
    out
}

fn damage(out: &mut Vec<u8>, random: &mut Random) {
    if out.is_empty() {
        return out.push(random.next() as u8);
    }
    // Headers come first in most formats: half of the damage goes there.
    let reach = if random.below(2) == 0 { out.len().min(128) } else { out.len() };
    let at = random.below(reach);
    match random.below(9) {
        0 => out[at] ^= 1 << random.below(8),
        1 => out[at] = random.next() as u8,
        2 | 3 => {
            let mut number = random.of(&NUMBERS).to_le_bytes();
            let width = random.of(&[1, 2, 4, 8]);
            if random.below(3) == 0 {
                number[..width].reverse();
            }
            let end = out.len().min(at + width);
            out[at..end].copy_from_slice(&number[..end - at]);
        }
        4 => out.truncate(at),
        5 => {
            let end = out.len().min(at + 1 + random.below(64));
            drop(out.drain(at..end));
        }
        6 => {
            let end = out.len().min(at + 1 + random.below(64));
            let copied = out[at..end].to_vec();
            let to = random.below(out.len());
            drop(out.splice(to..to, copied));
        }
        7 => {
            let end = out.len().min(at + 1 + random.below(16));
            out[at..end].fill(random.of(&[0, 0xff]));
        }
        // Replaces a number in a text, or whatever is there.
        _ => {
            let digit = out[at..].iter().position(u8::is_ascii_digit).map_or(at, |found| at + found);
            let end = out[digit..].iter().position(|byte| !byte.is_ascii_digit()).map_or(out.len(), |length| digit + length);
            drop(out.splice(digit..end, random.of(&WORDS).bytes()));
        }
    }
}
