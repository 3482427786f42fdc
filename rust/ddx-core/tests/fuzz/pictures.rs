//! Small pictures of every format and of the kinds that an encoder at hand does not write.

use std::io::Cursor;

use image::codecs::{gif::GifEncoder, png::PngEncoder, webp::WebPEncoder};
use image::{DynamicImage, ExtendedColorType, Frame, ImageEncoder, ImageFormat, Rgb, RgbImage};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use moxcms::{ColorProfile, LutDataType, LutStore, LutType, LutWarehouse, Matrix3d, ToneReprCurve};

/// A TIFF header with one entry: orientation 6, turn right by 90 degrees.
const EXIF: &[u8] = &[b'M', b'M', 0, 42, 0, 0, 0, 8, 0, 1, 1, 0x12, 0, 3, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0];

/// Lossy `WebP` of 16 x 16 pixels, and one with transparency: `image` writes lossless ones only.
const WEBP_LOSSY: &str = "5249464660000000574542505650382054000000f001009d012a1000100004006825b0027435c0014345e98000\
    feef902d5c60d362ff967b59fcf5df551bc74398f00bc9215b07b3dd1d940f7d3d753b9925e63fddecdf1361e3e7fe09cf7d5a318f71efcc\
    080000";
const WEBP_ALPHA: &str = "52494646a200000057454250565038580a000000100000000f00000f0000414c504834000000115f40a46d9ba287\
    636f44c488c88190b6d5a490420a29a490420a294c610a5318df3b5f21a2ff69701948946c0c561e5c3cf9015650382048000000b001009d01\
    2a1000100005407c25b0027400f42ed20000fee9fd3def834d8de2c6926199ee0ac3b2548524cbf3d7593e8ce64d1446f69abfd80bebf49a83\
    4a95edd5ff3f00000000";

type Files = Vec<(String, Vec<u8>)>;

fn pixels() -> RgbImage {
    RgbImage::from_fn(19, 13, |x, y| Rgb([(x * 13) as u8, (y * 19) as u8, (x * y) as u8]))
}

fn named(extension: &str, files: Vec<Vec<u8>>) -> Files {
    files.into_iter().enumerate().map(|(index, bytes)| (format!("{index}.{extension}"), bytes)).collect()
}

pub fn profile() -> Vec<u8> {
    ColorProfile::new_display_p3().encode().unwrap()
}

/// Profiles of RGB: by primaries and by tables of both depths.
pub fn profiles() -> Files {
    let mut table = ColorProfile::new_display_p3();
    let mut curves = ColorProfile::new_adobe_rgb();
    curves.red_trc = Some(ToneReprCurve::Lut((0..16).map(|step| step * 4000).collect()));
    curves.green_trc = Some(ToneReprCurve::Parametric(vec![2.4, 0.9, 0.1, 0.08, 0.04]));
    let store = |entries: usize, wide: bool| {
        let values = (0..entries).map(|entry| entry * 65_535 / entries);
        if wide {
            LutStore::Store16(values.map(|value| value as u16).collect())
        } else {
            LutStore::Store8(values.map(|value| (value >> 8) as u8).collect())
        }
    };
    let lut = |wide: bool| {
        LutWarehouse::Lut(LutDataType {
            num_input_channels: 3,
            num_output_channels: 3,
            num_clut_grid_points: 3,
            matrix: Matrix3d::IDENTITY,
            num_input_table_entries: if wide { 4 } else { 256 },
            num_output_table_entries: if wide { 4 } else { 256 },
            input_table: store(3 * if wide { 4 } else { 256 }, wide),
            clut_table: store(81, wide),
            output_table: store(3 * if wide { 4 } else { 256 }, wide),
            lut_type: if wide { LutType::Lut16 } else { LutType::Lut8 },
        })
    };
    table.lut_a_to_b_perceptual = Some(lut(true));
    let mut small = table.clone();
    small.lut_a_to_b_perceptual = Some(lut(false));
    named("icc", [profile()].into_iter().chain([table, small, curves].map(|it| it.encode().unwrap())).collect())
}

pub fn jpegs() -> Files {
    let pixels = pixels();
    let encode = |samples: &[u8], colour, settings: &dyn Fn(&mut Encoder<&mut Vec<u8>>)| {
        let mut bytes = Vec::new();
        let mut encoder = Encoder::new(&mut bytes, 60);
        settings(&mut encoder);
        encoder.encode(samples, 19, 13, colour).unwrap();
        bytes
    };
    let rgb = pixels.as_raw();
    let ink = [rgb.as_slice(), &rgb[..19 * 13]].concat();
    let sampled = |factor| encode(rgb, ColorType::Rgb, &|encoder| encoder.set_sampling_factor(factor));
    named(
        "jpg",
        vec![
            encode(rgb, ColorType::Rgb, &|_| ()),
            sampled(SamplingFactor::F_2_2),
            sampled(SamplingFactor::F_4_1),
            sampled(SamplingFactor::F_1_2),
            encode(rgb, ColorType::Rgb, &|encoder| encoder.set_progressive(true)),
            encode(rgb, ColorType::Rgb, &|encoder| {
                encoder.set_progressive_scans(30);
                encoder.set_sampling_factor(SamplingFactor::F_2_1);
                encoder.set_restart_interval(1);
            }),
            encode(rgb, ColorType::Rgb, &|encoder| {
                encoder.set_restart_interval(2);
                encoder.set_optimized_huffman_tables(true);
                encoder.add_exif_metadata(EXIF).unwrap();
                encoder.add_icc_profile(&profile()).unwrap();
            }),
            encode(&rgb[..19 * 13], ColorType::Luma, &|_| ()),
            encode(&ink, ColorType::Cmyk, &|_| ()),
            encode(&ink, ColorType::CmykAsYcck, &|encoder| encoder.set_progressive(true)),
        ],
    )
}

fn encode(pixels: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    pixels.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

pub fn crc32(bytes: &[u8]) -> u32 {
    let fold = |mut value: u32| {
        for _ in 0..8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
        }
        value
    };
    !bytes.iter().fold(!0, |crc, byte| fold((crc ^ u32::from(*byte)) & 0xff) ^ (crc >> 8))
}

/// A PNG of `depth` bits a sample whose pixels are stored without compression.
fn plain_png(colour: u8, depth: u8, interlaced: bool, chunks: &[(&[u8], &[u8])]) -> Vec<u8> {
    let (width, height) = (19_usize, 13_usize);
    let samples = match colour {
        2 => 3,
        4 => 2,
        6 => 4,
        _ => 1,
    };
    let passes: &[(usize, usize, usize, usize)] = if interlaced {
        &[(0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)]
    } else {
        &[(0, 1, 0, 1)]
    };
    let mut raw = Vec::new();
    for &(left, step_x, top, step_y) in passes {
        let row_bytes = ((width - left).div_ceil(step_x) * samples * usize::from(depth)).div_ceil(8);
        for row in 0..(height - top).div_ceil(step_y) {
            raw.push(row as u8 % 5);
            raw.extend((0..row_bytes).map(|byte| (byte * 7 + row) as u8 % 2));
        }
    }
    let length = raw.len() as u16;
    let mut stored = vec![0x78, 1, 1];
    stored.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
    stored.extend(&raw);
    let (low, high) = raw.iter().fold((1_u32, 0_u32), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    stored.extend((high << 16 | low).to_be_bytes());
    let header = [&[0, 0, 0, 19, 0, 0, 0, 13, depth, colour, 0, 0, u8::from(interlaced)][..]].concat();
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let all = [(&b"IHDR"[..], header.as_slice())].into_iter().chain(chunks.iter().copied());
    for (name, content) in all.chain([(&b"IDAT"[..], stored.as_slice()), (&b"IEND"[..], &[][..])]) {
        let body = [name, content].concat();
        bytes.extend((content.len() as u32).to_be_bytes());
        bytes.extend(&body);
        bytes.extend(crc32(&body).to_be_bytes());
    }
    bytes
}

pub fn pngs() -> Files {
    let pixels = pixels();
    let dynamic = DynamicImage::from(pixels.clone());
    let palette: &[u8] = &[1, 2, 3, 200, 100, 50];
    let mut with_metadata = Vec::new();
    let mut encoder = PngEncoder::new(&mut with_metadata);
    encoder.set_icc_profile(profile()).unwrap();
    encoder.set_exif_metadata(EXIF.to_vec()).unwrap();
    encoder.write_image(pixels.as_raw(), 19, 13, ExtendedColorType::Rgb8).unwrap();
    named(
        "png",
        vec![
            encode(pixels, ImageFormat::Png),
            encode(dynamic.to_luma_alpha8(), ImageFormat::Png),
            encode(dynamic.to_rgba16(), ImageFormat::Png),
            with_metadata,
            plain_png(0, 16, true, &[(b"gAMA", &[0, 0, 177, 143])]),
            plain_png(0, 2, false, &[(b"tRNS", &[0, 1])]),
            plain_png(2, 8, true, &[(b"tEXt", b"key\0value"), (b"zTXt", b"key\0\0x\x01\x01\0\0\xff\xff\0\0\0\x01")]),
            plain_png(3, 1, true, &[(b"PLTE", palette), (b"tRNS", &[7])]),
            plain_png(3, 8, false, &[(b"PLTE", palette), (b"acTL", &[0, 0, 0, 1, 0, 0, 0, 0])]),
            plain_png(6, 16, true, &[]),
        ],
    )
}

fn from_hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// A container around the chunks of `WebP`; `flags` say what is in it.
fn webp(flags: u8, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    let header = [flags, 0, 0, 0, 18, 0, 0, 12, 0, 0];
    for (name, content) in [(b"VP8X", &header[..])].iter().chain(chunks) {
        body.extend(*name);
        body.extend((content.len() as u32).to_le_bytes());
        body.extend(*content);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

pub fn webps() -> Files {
    let pixels = pixels();
    let lossless = encode(pixels.clone(), ImageFormat::WebP);
    let mut with_metadata = Vec::new();
    let mut encoder = WebPEncoder::new_lossless(&mut with_metadata);
    encoder.set_icc_profile(profile()).unwrap();
    encoder.set_exif_metadata(EXIF.to_vec()).unwrap();
    encoder.write_image(pixels.as_raw(), 19, 13, ExtendedColorType::Rgb8).unwrap();
    // Place 0, 0; the size less one; 100 ms; no blending; and the picture as its own chunk.
    let place = [0, 0, 0, 0, 0, 0, 18, 0, 0, 12, 0, 0, 100, 0, 0, 2];
    let frame = [&place[..], &lossless[12..]].concat();
    let animation = webp(2, &[(b"ANIM", &[0, 0, 0, 255, 0, 0]), (b"ANMF", &frame), (b"ANMF", &frame)]);
    named(
        "webp",
        vec![
            encode(DynamicImage::from(pixels).to_rgba8(), ImageFormat::WebP),
            lossless,
            with_metadata,
            animation,
            from_hex(WEBP_LOSSY),
            from_hex(WEBP_ALPHA),
        ],
    )
}

pub fn gifs() -> Files {
    let pixels = DynamicImage::from(pixels()).to_rgba8();
    let mut animation = Vec::new();
    let frames = (0..3).map(|turn| {
        let mut frame = pixels.clone();
        frame.put_pixel(turn, 0, image::Rgba([0; 4]));
        Frame::new(frame)
    });
    GifEncoder::new(&mut animation).encode_frames(frames).unwrap();
    let still = encode(pixels.clone(), ImageFormat::Gif);
    // The first separator of a frame that begins in the corner; its flags are nine bytes on.
    let at = still.windows(5).position(|window| window == [0x2c, 0, 0, 0, 0]).unwrap();
    let mut interlaced = still.clone();
    interlaced[at + 9] |= 0x40;
    named("gif", vec![still, interlaced, animation])
}

/// A BMP of 19 x 13 pixels with a palette, bit fields or run lengths.
fn plain_bmp(depth: u16, compression: u32, tables: &[u8], data: &[u8]) -> Vec<u8> {
    let offset = 54 + tables.len() as u32;
    let mut bytes = b"BM".to_vec();
    bytes.extend([offset + data.len() as u32, 0, offset, 40, 19, 13].map(u32::to_le_bytes).concat());
    bytes.extend([1_u16, depth].map(u16::to_le_bytes).concat());
    let colours = if depth <= 8 { tables.len() as u32 / 4 } else { 0 };
    bytes.extend([compression, data.len() as u32, 2835, 2835, colours, 0].map(u32::to_le_bytes).concat());
    [bytes.as_slice(), tables, data].concat()
}

pub fn bmps() -> Files {
    let palette: Vec<u8> = (0..64).map(|byte| byte * 3).collect();
    let row = |bytes: usize| bytes.next_multiple_of(4);
    let runs = [5, 1, 0, 3, 1, 2, 3, 0, 11, 4, 0, 0].repeat(13);
    let runs = [runs.as_slice(), &[0, 2, 1, 1, 0, 1]].concat();
    let half_runs = [[14, 0x12, 0, 5, 0x12, 0x34, 0x50, 0, 0, 0].repeat(13).as_slice(), &[0, 1]].concat();
    let fields: Vec<u8> = [0xf800_u32, 0x07e0, 0x001f].map(u32::to_le_bytes).concat();
    let pixels = pixels();
    named(
        "bmp",
        vec![
            encode(pixels.clone(), ImageFormat::Bmp),
            encode(DynamicImage::from(pixels).to_rgba8(), ImageFormat::Bmp),
            plain_bmp(1, 0, &palette[..8], &vec![0x55; row(3) * 13]),
            plain_bmp(4, 0, &palette, &vec![0x1f; row(10) * 13]),
            plain_bmp(8, 1, &palette, &runs),
            plain_bmp(4, 2, &palette, &half_runs),
            plain_bmp(16, 3, &fields, &vec![0x37; row(38) * 13]),
        ],
    )
}
