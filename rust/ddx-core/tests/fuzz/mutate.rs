//! Damage: what happens to files on their way, and what somebody who means harm writes into them.

/// `SplitMix64`.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    /// A number below `end`, or 0 if that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end.max(1)
    }

    pub fn one_of<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        &things[self.below(things.len())]
    }

    /// Small numbers often, numbers up to 2^`bits` sometimes.
    fn skewed(&mut self, bits: usize) -> usize {
        let bits = self.below(bits + 1);
        self.below(1 << bits)
    }
}

/// Files do not grow beyond this.
const LONGEST: usize = 1 << 20;

const EXTREMES: [u64; 18] = [
    0,
    1,
    2,
    3,
    7,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX - 1,
    u64::MAX,
];

/// Damages `bytes` in one to a few places; `donor` is another file, `words` are pieces that mean something.
pub fn mutate(bytes: &mut Vec<u8>, donor: &[u8], words: &[&[u8]], random: &mut Random) {
    for _ in 0..=random.skewed(3) {
        let at = random.below(bytes.len());
        match random.below(14) {
            0 | 1 => change(bytes, at, |byte| byte ^ 1 << (at % 8)),
            2 => {
                let new = random.next() as u8;
                change(bytes, at, |_| new);
            }
            3 => {
                let by = random.below(9) as u8;
                change(bytes, at, |byte| byte.wrapping_add(by).wrapping_sub(4));
            }
            4 | 5 => extreme_integer(bytes, at, random),
            6 | 7 => extreme_number(bytes, at, random),
            8 => bytes.truncate(at),
            9 => {
                let end = at + random.skewed(10).min(bytes.len() - at);
                bytes.drain(at..end);
            }
            10 => repeat(bytes, at, random),
            11 if !words.is_empty() => {
                let word = random.one_of(words).repeat(1 + random.skewed(2));
                insert(bytes, at, &word);
            }
            12 => {
                let from = random.below(donor.len());
                let piece = &donor[from..donor.len().min(from + random.skewed(12))];
                insert(bytes, at, piece);
            }
            _ => {
                // One piece of the other file over this one's, so that what follows keeps its place.
                let piece = &donor[at.min(donor.len())..donor.len().min(at + random.skewed(8))];
                let end = bytes.len().min(at + piece.len());
                bytes[at..end].copy_from_slice(&piece[..end - at]);
            }
        }
    }
}

fn change(bytes: &mut [u8], at: usize, new: impl Fn(u8) -> u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = new(*byte);
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    if bytes.len() + piece.len() <= LONGEST {
        bytes.splice(at..at, piece.iter().copied());
    }
}

/// One, two, four or eight bytes become a number on the edge, or one beside it, of either byte order.
fn extreme_integer(bytes: &mut [u8], at: usize, random: &mut Random) {
    let width = 1 << random.below(4);
    let value = *random.one_of(&EXTREMES);
    let mut written = value.to_le_bytes()[..width].to_vec();
    if random.below(2) == 0 {
        written.reverse();
    }
    let end = bytes.len().min(at + width);
    bytes[at..end].copy_from_slice(&written[..end - at]);
}

/// A number that is spelled out becomes one on the edge, in one place or wherever it stands.
fn extreme_number(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let Some(start) = (at..bytes.len()).find(|&at| bytes[at].is_ascii_digit()) else { return };
    let length = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let old = bytes[start..start + length].to_vec();
    let value = *random.one_of(&EXTREMES);
    let mut new = match random.below(8) {
        0 => b"1e999".to_vec(),
        1 => b"-1".to_vec(),
        2 => format!("{value:o}").into_bytes(),
        _ => value.to_string().into_bytes(),
    };
    if random.below(2) == 0 {
        bytes.splice(start..start + length, new);
    } else {
        // In tars and the like every field has its place: the same number of digits.
        if random.below(2) == 0 {
            new = [vec![b'0'; length.saturating_sub(new.len())], new].concat();
            new.truncate(length);
        }
        let mut at = 0;
        while at < bytes.len() && bytes.len() <= LONGEST {
            let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
            if bytes[at..at + digits] == old {
                bytes.splice(at..at + digits, new.iter().copied());
                at += new.len().max(1);
            } else {
                at += digits.max(1);
            }
        }
    }
}

/// A short piece many times, a long one a few.
fn repeat(bytes: &mut Vec<u8>, at: usize, random: &mut Random) {
    let length = (1 + random.skewed(10)).min(bytes.len() - at);
    let times = random.skewed(18).min((LONGEST - bytes.len().min(LONGEST)) / length.max(1));
    let piece = bytes[at..at + length].repeat(times);
    insert(bytes, at, &piece);
}
