//! The boxes of an AVIF file: which bytes are the picture, how large it is and how it is to be turned.

use std::borrow::Cow;

use image::metadata::Orientation;

/// Parts of an item; an encoder writes one.
const MOST_EXTENTS: usize = 64;
const ALPHA: &[u8] = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha";

/// What is needed of a file.
pub(super) struct Container<'a> {
    pub width: u32,
    pub height: u32,
    pub orientation: Orientation,
    pub profile: Option<Vec<u8>>,
    /// Matrix coefficients and whether values are of the full range, if the container says so.
    pub colours: Option<(u16, bool)>,
    pub picture: Cow<'a, [u8]>,
    pub alpha: Option<Cow<'a, [u8]>>,
}

type Answer<T> = Result<T, &'static str>;
type Boxed<'a> = ([u8; 4], &'a [u8]);

const CUT_SHORT: &str = "cut short";

impl<'a> Container<'a> {
    pub fn read(file: &'a [u8]) -> Answer<Self> {
        let meta = child(file, *b"meta").and_then(|meta| meta.get(4..)).ok_or("no picture item in it")?;
        let item = primary(meta).ok_or("no picture item in it")?;
        if item_type(meta, item).is_some_and(|kind| kind != *b"av01") {
            return Err("its picture is made of several");
        }
        let properties = properties_of(meta, item);
        let find =
            |kind: [u8; 4]| properties.iter().filter(move |(name, _)| *name == kind).map(|(_, content)| *content);
        let size = find(*b"ispe").next().ok_or("no size in it")?;
        let mut size = Fields(size.get(4..).unwrap_or_default());
        let (width, height) = (size.number(4).ok_or(CUT_SHORT)? as u32, size.number(4).ok_or(CUT_SHORT)? as u32);
        let colour = |kind: &'static [u8]| find(*b"colr").find_map(move |content| content.strip_prefix(kind));
        let profile = colour(b"prof").or_else(|| colour(b"rICC")).map(<[u8]>::to_vec);
        let colours = colour(b"nclx").and_then(|content| match content {
            [_, _, _, _, a, b, range, ..] => Some((u16::from_be_bytes([*a, *b]), range & 0x80 != 0)),
            _ => None,
        });
        let alpha = alpha_of(meta, item).map(|alpha| data(file, meta, alpha)).transpose()?;
        Ok(Self {
            width,
            height,
            orientation: orientation(find(*b"irot").next(), find(*b"imir").next()),
            profile,
            colours,
            picture: data(file, meta, item)?,
            alpha,
        })
    }
}

/// Turned against the clock by quarters first, then mirrored: top to bottom (0) or left to right (1).
fn orientation(turned: Option<&[u8]>, mirrored: Option<&[u8]>) -> Orientation {
    let quarters = turned.and_then(|content| content.first()).map_or(0, |angle| (4 - (angle & 3)) % 4);
    // Top to bottom is half a turn and left to right.
    let axis = mirrored.and_then(|content| content.first()).map(|axis| axis & 1);
    match ((quarters + if axis == Some(0) { 2 } else { 0 }) % 4, axis.is_some()) {
        (0, false) => Orientation::NoTransforms,
        (1, false) => Orientation::Rotate90,
        (2, false) => Orientation::Rotate180,
        (_, false) => Orientation::Rotate270,
        (0, true) => Orientation::FlipHorizontal,
        (1, true) => Orientation::Rotate90FlipH,
        (2, true) => Orientation::FlipVertical,
        (_, true) => Orientation::Rotate270FlipH,
    }
}

/// Big-endian numbers one after the other.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self, length: usize) -> Option<u64> {
        let (digits, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(digits.iter().fold(0, |value, digit| value << 8 | u64::from(*digit)))
    }

    fn version(&mut self) -> Option<u64> {
        self.number(4).map(|word| word >> 24)
    }

    fn next_box(&mut self) -> Option<Boxed<'a>> {
        let mut at = *self;
        let (size, kind) = (at.number(4)?, at.number(4)? as u32);
        let size = match size {
            0 => self.0.len() as u64,
            1 => at.number(8)?,
            size => size,
        };
        let (inside, rest) = self.0.split_at_checked(usize::try_from(size).ok()?)?;
        let content = inside.get(self.0.len() - at.0.len()..)?;
        self.0 = rest;
        Some((kind.to_be_bytes(), content))
    }
}

fn boxes(content: &[u8]) -> impl Iterator<Item = Boxed<'_>> {
    let mut fields = Fields(content);
    std::iter::from_fn(move || fields.next_box())
}

fn child(content: &[u8], kind: [u8; 4]) -> Option<&[u8]> {
    boxes(content).find(|(name, _)| *name == kind).map(|(_, content)| content)
}

fn primary(meta: &[u8]) -> Option<u64> {
    let mut fields = Fields(child(meta, *b"pitm")?);
    let version = fields.version()?;
    fields.number(if version == 0 { 2 } else { 4 })
}

fn item_type(meta: &[u8], item: u64) -> Option<[u8; 4]> {
    let mut fields = Fields(child(meta, *b"iinf")?);
    let version = fields.version()?;
    fields.number(if version == 0 { 2 } else { 4 })?;
    boxes(fields.0).find_map(|(_, content)| {
        let mut entry = Fields(content);
        let version = entry.version()?;
        let id = entry.number(if version == 2 { 2 } else { 4 })?;
        entry.number(2)?; // protection
        let kind = entry.number(4)? as u32;
        (id == item && version >= 2).then_some(kind.to_be_bytes())
    })
}

fn properties_of(meta: &[u8], item: u64) -> Vec<Boxed<'_>> {
    let Some(iprp) = child(meta, *b"iprp") else { return Vec::new() };
    let all: Vec<_> = child(iprp, *b"ipco").map(|content| boxes(content).collect()).unwrap_or_default();
    let associations = boxes(iprp).filter(|(name, _)| name == b"ipma").filter_map(|(_, content)| {
        let mut fields = Fields(content);
        let head = fields.number(4)?;
        let (version, is_wide) = (head >> 24, head & 1 == 1);
        for _ in 0..fields.number(4)? {
            let id = fields.number(if version == 0 { 2 } else { 4 })?;
            let num = fields.number(1)?;
            let index = |fields: &mut Fields| {
                let (length, mask) = if is_wide { (2, 0x7fff) } else { (1, 0x7f) };
                fields.number(length).map(|number| (number & mask) as usize)
            };
            let indexes: Vec<usize> = (0..num).map_while(|_| index(&mut fields)).collect();
            if id == item {
                return Some(indexes);
            }
        }
        None
    });
    let found = associations.flatten().filter_map(|index| all.get(index.checked_sub(1)?).copied());
    found.collect()
}

/// The item that holds the transparency of another one.
fn alpha_of(meta: &[u8], item: u64) -> Option<u64> {
    let mut fields = Fields(child(meta, *b"iref")?);
    let length = if fields.version()? == 0 { 2 } else { 4 };
    boxes(fields.0).filter(|(name, _)| name == b"auxl").find_map(|(_, content)| {
        let mut reference = Fields(content);
        let from = reference.number(length)?;
        let to = (0..reference.number(2)?).map_while(|_| reference.number(length)).any(|to| to == item);
        let is_alpha =
            |(name, content): &Boxed| name == b"auxC" && content.get(4..).is_some_and(|it| it.starts_with(ALPHA));
        (to && properties_of(meta, from).iter().any(is_alpha)).then_some(from)
    })
}

/// The bytes of an item, which lie in the file or in a box of `meta`.
fn data<'a>(file: &'a [u8], meta: &'a [u8], item: u64) -> Answer<Cow<'a, [u8]>> {
    let (place, extents) = location(meta, item).ok_or("its picture has no place")?;
    let store = match place {
        0 => file,
        1 => child(meta, *b"idat").ok_or(CUT_SHORT)?,
        _ => return Err("its picture lies in another item"),
    };
    let mut pieces = extents.iter().map(|(offset, length)| {
        let start = usize::try_from(*offset).map_err(|_| CUT_SHORT)?;
        let rest = store.get(start..).ok_or(CUT_SHORT)?;
        // No length means up to the end.
        let length = if *length == 0 { rest.len() } else { usize::try_from(*length).map_err(|_| CUT_SHORT)? };
        rest.get(..length).ok_or(CUT_SHORT)
    });
    let first = pieces.next().ok_or(CUT_SHORT)??;
    let mut all = Cow::Borrowed(first);
    for piece in pieces {
        let piece = piece?;
        if all.len() + piece.len() > file.len() {
            return Err("its parts overlap");
        }
        all.to_mut().extend_from_slice(piece);
    }
    Ok(all)
}

type Extents = Vec<(u64, u64)>;

/// Where an item lies (0: the file, 1: `idat`), and its parts by offset and length.
fn location(meta: &[u8], item: u64) -> Option<(u64, Extents)> {
    let mut fields = Fields(child(meta, *b"iloc")?);
    let version = fields.version()?;
    let sizes = fields.number(2)?;
    let size = |shift: u32| (sizes >> shift & 15) as usize;
    let (offset_size, length_size, base_size) = (size(12), size(8), size(4));
    let index_size = if version == 0 { 0 } else { size(0) };
    if [offset_size, length_size, base_size, index_size].iter().any(|size| *size > 8) {
        return None;
    }
    let id_size = if version < 2 { 2 } else { 4 };
    for _ in 0..fields.number(id_size)? {
        let id = fields.number(id_size)?;
        let place = if version == 0 { 0 } else { fields.number(2)? & 15 };
        fields.number(2)?; // in this file
        let base = fields.number(base_size)?;
        let mut extents = Extents::new();
        for _ in 0..fields.number(2)? {
            fields.number(index_size)?;
            let (offset, length) = (fields.number(offset_size)?, fields.number(length_size)?);
            if extents.len() < MOST_EXTENTS {
                extents.push((base.checked_add(offset)?, length));
            }
        }
        if id == item {
            return Some((place, extents));
        }
    }
    None
}
