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

/// `AVIF` of 19 x 13 pixels: 4:2:0, 4:4:4, with transparency, turned to the right, and grey.
#[cfg(feature = "avif")]
const AVIFS: [&str; 5] = [
    "00000020667479706176696600000000617669666d6966316d6961664d413142000000eb6d65746100000000000000216864\
        6c72000000000000000070696374000000000000000000000000000000000e7069746d0000000000010000001e696c6f6300\
        0000004400000100010000000100000113000000590000002869696e660000000000010000001a696e666502000000000100\
        0061763031436f6c6f72000000006a697072700000004b6970636f000000146973706500000000000000130000000d000000\
        107069786900000000030808080000000c6176314381000c0000000013636f6c726e636c780001000d000680000000176970\
        6d61000000000000000100010401028304000000616d64617412000a091810e58d1010d06840324a17878786218492492641\
        0000f0039e9ba3a60938e1be41c718bad12245ec54972f54a8baec335a97a273da8e2277b6fb71932ef846d5bfd969f015bc\
        530cbae9637779fbf435f2622e04",
    "00000020667479706176696600000000617669666d6966316d6961664d413141000000eb6d65746100000000000000216864\
        6c72000000000000000070696374000000000000000000000000000000000e7069746d0000000000010000001e696c6f6300\
        0000004400000100010000000100000113000000850000002869696e660000000000010000001a696e666502000000000100\
        0061763031436f6c6f72000000006a697072700000004b6970636f000000146973706500000000000000130000000d000000\
        107069786900000000030808080000000c617631438120000000000013636f6c726e636c780001000d000680000000176970\
        6d610000000000000001000104010283040000008d6d64617412000a083810e58d2021a0d232771202434a8041041f200000\
        f003aa4c23a5e8ca5d9b8c5ff4594e85b128a34c7dc9b5945017fae641cc4391908c819bad69577a092dc82707d8c9263a57\
        6e1b3fff8c0f99e02fa5f81de1b6c7f7e31120c5c250b3e49a5e4de5ec32d3a4fd416c6967bf83a52adb36d212b45e2404ab\
        81e8fbf42ca26780",
    "00000020667479706176696600000000617669666d6966316d6961664d413142000001866d65746100000000000000216864\
        6c72000000000000000070696374000000000000000000000000000000000e7069746d0000000000010000002c696c6f6300\
        00000044000002000100000001000001cd00000059000200000001000001ae0000001f0000004269696e6600000000000200\
        00001a696e6665020000000001000061763031436f6c6f72000000001a696e6665020000000002000061763031416c706861\
        000000001a69726566000000000000000e6175786c000200010001000000c3697072700000009d6970636f00000014697370\
        6500000000000000130000000d000000107069786900000000030808080000000c6176314381000c0000000013636f6c726e\
        636c780001000d0006800000000e706978690000000001080000000c6176314381001c000000003861757843000000007572\
        6e3a6d7065673a6d706567423a636963703a73797374656d733a617578696c696172793a616c706861000000001e69706d61\
        00000000000000020001040102830400020401058607000000806d64617412000a051810e58c2a32144590061840ed392eed\
        df3d7854638d3c71e2e7c012000a091810e58d1010d06840324a178787862184924926410000f0039e9ba3a60938e1be41c7\
        18bad12245ec54972f54a8baec335a97a273da8e2277b6fb71932ef846d5bfd969f015bc530cbae9637779fbf435f2622e04",
    "00000020667479706176696600000000617669666d6966316d6961664d413142000000f56d65746100000000000000216864\
        6c72000000000000000070696374000000000000000000000000000000000e7069746d0000000000010000001e696c6f6300\
        000000440000010001000000010000011d000000590000002869696e660000000000010000001a696e666502000000000100\
        0061763031436f6c6f72000000007469707270000000546970636f000000146973706500000000000000130000000d000000\
        107069786900000000030808080000000c6176314381000c0000000013636f6c726e636c780001000d000680000000096972\
        6f74030000001869706d6100000000000000010001050102830485000000616d64617412000a091810e58d1010d06840324a\
        178787862184924926410000f0039e9ba3a60938e1be41c718bad12245ec54972f54a8baec335a97a273da8e2277b6fb7193\
        2ef846d5bfd969f015bc530cbae9637779fbf435f2622e04",
    "0000001c667479706176696600000000617669666d6966316d696166000000e96d657461000000000000002168646c720000\
        00000000000070696374000000000000000000000000000000000e7069746d0000000000010000001e696c6f630000000044\
        0000010001000000010000010d000000360000002869696e660000000000010000001a696e66650200000000010000617630\
        31436f6c6f72000000006869707270000000496970636f000000146973706500000000000000130000000d0000000e706978\
        690000000001080000000c6176314381001c0000000013636f6c726e636c780001000d0006800000001769706d6100000000\
        00000001000104010283040000003e6d64617412000a081810e58d3010d06a322817862184926410f0039d6d869b879d3597\
        11f84815c716467a51c44ef3424e2a44bde8cfac2e37fa",
];

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
/// A PNG of `side` by `side` pixels in the colours of an ICC profile.
pub fn with_profile(rgb: &[u8], side: u32, profile: Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = PngEncoder::new(&mut bytes);
    encoder.set_icc_profile(profile).unwrap();
    encoder.write_image(rgb, side, side, ExtendedColorType::Rgb8).unwrap();
    bytes
}

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
            // These are a scan for each component.
            encode(rgb, ColorType::Rgb, &|encoder| {
                encoder.set_sampling_factor(SamplingFactor::F_2_2);
                encoder.set_optimized_huffman_tables(true);
            }),
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

/// A TIFF of one strip with runs of bytes (`PackBits`), each pixel as many samples as `photometric` needs.
fn plain_tiff(photometric: u16, samples: u16, bits: u16) -> Vec<u8> {
    let row = usize::from(samples) * usize::from(bits) / 8 * 19;
    // Runs of at most 19 equal bytes.
    let strip: Vec<u8> = (0..13_u8).flat_map(|y| [(1_i8 - 19) as u8, 17 * y].repeat(row / 19)).collect();
    let mut bytes = b"II\x2a\0\x08\0\0\0".to_vec();
    let after = 8 + 2 + 12 * 10 + 4;
    let short = |tag: u16, value: u16| (tag, 3_u16, 1_u32, u32::from(value));
    let depths = if samples > 2 { (258, 3, u32::from(samples), after) } else { short(258, bits) };
    let entries = [
        short(256, 19),
        short(257, 13),
        depths,
        short(259, 32773),
        short(262, photometric),
        (273, 4, 1, after + 8),
        short(274, 6),
        short(277, samples),
        short(278, 13),
        (279, 4, 1, strip.len() as u32),
    ];
    bytes.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, count, value) in entries {
        bytes.extend([tag.to_le_bytes(), kind.to_le_bytes()].concat());
        bytes.extend([count.to_le_bytes(), value.to_le_bytes()].concat());
    }
    bytes.extend([0; 4]);
    bytes.extend([bits.to_le_bytes(); 4].concat());
    [bytes, strip].concat()
}

pub fn tiffs() -> Files {
    let pixels = pixels();
    let dynamic = DynamicImage::from(pixels.clone());
    named(
        "tif",
        vec![
            encode(pixels, ImageFormat::Tiff),
            encode(dynamic.to_luma16(), ImageFormat::Tiff),
            encode(dynamic.to_rgba8(), ImageFormat::Tiff),
            plain_tiff(0, 1, 8),
            plain_tiff(2, 3, 8),
            plain_tiff(5, 4, 8),
        ],
    )
}

#[cfg(feature = "avif")]
pub fn avifs() -> Files {
    named("avif", AVIFS.map(from_hex).to_vec())
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
