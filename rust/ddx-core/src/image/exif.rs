//! The orientation in an Exif block.

use image::metadata::Orientation;

const ORIENTATION: u32 = 0x0112;

/// How to turn the picture; as it is where the block says nothing that makes sense. `block` may begin with `Exif\0\0`.
pub(super) fn orientation(block: &[u8]) -> Orientation {
    let tiff = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    find(tiff).and_then(|value| Orientation::from_exif(u8::try_from(value).ok()?)).unwrap_or(Orientation::NoTransforms)
}

/// The first value of the entry, whichever integer type it was written as.
fn find(tiff: &[u8]) -> Option<u32> {
    let is_little = match tiff.get(..4)? {
        b"II\x2a\0" => true,
        b"MM\0\x2a" => false,
        _ => return None,
    };
    let number = |at: usize, length: usize| -> Option<u32> {
        let digits = tiff.get(at..at.checked_add(length)?)?;
        let fold = |value: u32, digit: &u8| value << 8 | u32::from(*digit);
        Some(if is_little { digits.iter().rev().fold(0, fold) } else { digits.iter().fold(0, fold) })
    };
    let first = number(4, 4)? as usize;
    let entry = (0..number(first, 2)? as usize)
        .map(|index| first + 2 + 12 * index)
        .map_while(|at| Some((at, number(at, 2)?)))
        .find_map(|(at, tag)| (tag == ORIENTATION).then_some(at))?;
    let width = match number(entry + 2, 2)? {
        1 | 6 => 1,
        3 | 8 => 2,
        4 | 9 => 4,
        _ => return None,
    };
    number(entry + 8, width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_integer_type_of_either_byte_order_is_read() {
        let block = |is_little: bool, kind: u16, value: u32| {
            let short = |value: u16| if is_little { value.to_le_bytes() } else { value.to_be_bytes() };
            let long = |value: u32| if is_little { value.to_le_bytes() } else { value.to_be_bytes() };
            let head = [&if is_little { *b"II" } else { *b"MM" }, &short(42)[..], &long(8), &short(2)].concat();
            let other = [&short(0x0100)[..], &short(4), &long(1), &long(3)].concat();
            let written = match kind {
                1 => [value as u8, 0, 0, 0],
                3 => [short(value as u16), [0; 2]].concat().try_into().unwrap(),
                _ => long(value),
            };
            [head, other, [&short(0x0112)[..], &short(kind), &long(1), &written].concat(), long(0).to_vec()].concat()
        };
        for (is_little, kind) in [(false, 1), (false, 3), (false, 4), (true, 1), (true, 3), (true, 4), (true, 9)] {
            let plain = block(is_little, kind, 6);
            assert_eq!(orientation(&plain), Orientation::Rotate90, "{is_little} {kind}");
            assert_eq!(orientation(&[b"Exif\0\0", &plain[..]].concat()), Orientation::Rotate90);
            assert_eq!(orientation(&plain[..plain.len() - 9]), Orientation::NoTransforms);
        }
        for value in [0, 9, 0x0106] {
            assert_eq!(orientation(&block(true, 4, value)), Orientation::NoTransforms);
        }
        assert_eq!(orientation(&block(true, 5, 6)), Orientation::NoTransforms);
    }
}
