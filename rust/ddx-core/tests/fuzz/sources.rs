//! Files of rows, and the filter that chooses among them.

use std::path::Path;
use std::sync::Arc;

use ddx_core::Error;
use ddx_core::source::{ColumnChoice, ImageRef, Input, Row, Selection, Source, select};

use crate::harness::{Target, unrepaired};
use crate::mutate::Random;
use crate::pictures::crc32;
use crate::tables::parquets;

/// Rows that are looked at: the rest of a file that claims more is more of the same.
const MOST_ROWS: u64 = 3000;
/// The longest files have a MiB, and each of their bytes can be a field or a word.
const MAX_MIB: usize = 256;

fn open(path: &Path) -> Result<Input, String> {
    Input::open(&[path.to_str().unwrap().to_owned()], &ColumnChoice::default()).map_err(|error| said(path, &error))
}

fn said(path: &Path, error: &Error) -> String {
    error.to_string().replace(path.to_str().unwrap(), "")
}

/// All rows, the rows from some row on, the cells of some columns, and the rows that a filter takes.
///
/// A source that `counts` its rows gives as many, and the same from any row on.
fn read(path: &Path, columns: &[&str], filter: &str, counts: bool, random: &mut Random) -> Result<(), String> {
    let input = open(path)?;
    let num_rows = input.num_rows();
    let rows = |from: u64, to: u64| -> Result<Vec<Row>, String> {
        input.rows(from..to).and_then(Iterator::collect).map_err(|error| said(path, &error))
    };
    let end = num_rows.min(MOST_ROWS);
    let all = rows(0, end)?;
    assert!(all.len() as u64 <= end);
    let start = random.below(all.len().max(1));
    let rest = rows(start as u64, end)?;
    if counts {
        assert_eq!(all.len() as u64, end);
        assert_eq!(rest, all[start..], "from {start} on");
    }
    let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
    let cells = input.cells(&columns).map_err(|error| said(path, &error))?;
    let mut num_cells = 0;
    for cells in cells.take(end as usize) {
        assert_eq!(cells.map_err(|error| said(path, &error))?.len(), columns.len());
        num_cells += 1;
    }
    assert!(!counts || num_cells == end, "{num_cells} cells of {end} rows");
    if num_rows <= MOST_ROWS {
        let selection = Selection { filter: Some(filter.to_owned()), ..Selection::default() };
        let selected = select(Arc::new(input), &selection).map_err(|error| said(path, &error))?;
        let taken = selected.rows(0..selected.num_rows()).map_err(|error| said(path, &error))?;
        for row in taken {
            row.map_err(|error| said(path, &error))?;
        }
    }
    let broken = |row: &Row| match &row.image {
        Some(ImageRef::Broken(reason)) => Some(reason.clone()),
        _ => None,
    };
    all.iter().find_map(broken).map_or(Ok(()), Err)
}

#[test]
fn parquet() {
    let target = Target { name: "parquet", files: parquets(), words: &[b"PAR1"], repair: unrepaired, max_mib: MAX_MIB };
    target.fuzz(|path, random| {
        read(path, &["score", "good", "kind", "caption"], "score > 2 or good and id < 9", false, random)
    });
}

type Files = Vec<(String, Vec<u8>)>;

fn tars() -> Files {
    let long = format!("{}/long", "folder".repeat(30));
    let json = br#"{"caption": "from json", "width": 640, "list": [1, {"a": null}]}"#;
    let members: [(&str, &[u8]); 9] = [
        ("a.jpg", &[7; 600]),
        ("a.txt", b"caption a"),
        ("a.json", json),
        ("x/b.png", b"b"),
        ("x/b.txt", b""),
        ("x/b.json", b"{\"width\": 3}"),
        (&format!("{long}.webp"), &[1; 512]),
        (&format!("{long}.txt"), b"long"),
        (&format!("{long}.json"), json),
    ];
    let header = |mut header: tar::Header, length: usize| {
        header.set_size(length as u64);
        header.set_mode(0o644);
        header.set_cksum();
        header
    };
    let (mut gnu, mut pax) = (tar::Builder::new(Vec::new()), tar::Builder::new(Vec::new()));
    for (name, bytes) in members {
        gnu.append_data(&mut header(tar::Header::new_gnu(), bytes.len()), name, bytes).unwrap();
        let size = bytes.len().to_string();
        pax.append_pax_extensions([("path", name.as_bytes()), ("size", size.as_bytes())]).unwrap();
        pax.append_data(&mut header(tar::Header::new_ustar(), bytes.len()), name.rsplit('/').next().unwrap(), bytes)
            .unwrap();
    }
    let mut global = header(tar::Header::new_ustar(), 18);
    global.set_entry_type(tar::EntryType::XGlobalHeader);
    pax.append_data(&mut global, "global", &b"18 comment=nothing"[..]).unwrap();
    // A file with a hole: half of its 1024 bytes are stored.
    let mut sparse = header(tar::Header::new_gnu(), 512);
    sparse.set_entry_type(tar::EntryType::GNUSparse);
    let fields = sparse.as_gnu_mut().unwrap();
    fields.realsize = *b"00000002000\0";
    fields.sparse[0].offset = *b"00000001000\0";
    fields.sparse[0].numbytes = *b"00000001000\0";
    gnu.append_data(&mut sparse, "hole.bin", &[9; 512][..]).unwrap();
    gnu.append_data(&mut header(tar::Header::new_gnu(), 1), "z.gif", &b"z"[..]).unwrap();
    let mut link = header(tar::Header::new_gnu(), 0);
    link.set_entry_type(tar::EntryType::Symlink);
    gnu.append_link(&mut link, "link.jpg", &long).unwrap();
    vec![("gnu.tar".into(), gnu.into_inner().unwrap()), ("pax.tar".into(), pax.into_inner().unwrap())]
}

/// The checksum of every header.
fn repair_tar(_name: &str, bytes: &mut [u8]) {
    for block in bytes.as_chunks_mut::<512>().0 {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

#[test]
fn tar() {
    let words: [&[u8]; 6] = [&[0; 512], b"L", b"x", b"S", b"\x80\0\0\0\xff\xff\xff\xff", b"20 size=99999999999\n"];
    let target = Target { name: "tar", files: tars(), words: &words, repair: repair_tar, max_mib: MAX_MIB };
    target.fuzz(|path, random| read(path, &["width", "caption"], "width > 2", true, random));
}

/// Samples with their checksums behind a head with its own.
fn ffrecord(samples: &[Vec<u8>]) -> Vec<u8> {
    let num = samples.len() as u64;
    let mut bytes = [&[0; 4][..], &num.to_le_bytes()].concat();
    bytes.extend(samples.iter().flat_map(|sample| crc32(sample).to_le_bytes()));
    let mut at = 12 + 12 * num;
    for sample in samples {
        bytes.extend(at.to_le_bytes());
        at += sample.len() as u64;
    }
    bytes.extend(samples.concat());
    repair_ffrecord("", &mut bytes);
    bytes
}

/// The checksums of the samples, and then that of the head.
fn repair_ffrecord(_name: &str, bytes: &mut [u8]) {
    let number = |bytes: &[u8], at: usize| bytes.get(at..at + 8).map(|it| u64::from_le_bytes(it.try_into().unwrap()));
    let Some(num) = number(bytes, 4).filter(|&num| num <= bytes.len().saturating_sub(12) as u64 / 12) else { return };
    let num = num as usize;
    for sample in 0..num {
        let place = 12 + 4 * num + 8 * sample;
        let end = if sample + 1 < num { number(bytes, place + 8) } else { None };
        let (start, end) = (number(bytes, place).unwrap_or(0) as usize, end.map_or(bytes.len(), |end| end as usize));
        if let Some(content) = bytes.get(start..end.min(bytes.len())) {
            let crc = crc32(content);
            bytes[12 + 4 * sample..16 + 4 * sample].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let crc = crc32(&bytes[4..12 + 12 * num]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
}

fn ffrecords() -> Files {
    let item = |code: u8, bytes: &[u8]| [&[code, bytes.len() as u8][..], bytes].concat();
    let dict = |row: u8| {
        let fields = [
            [item(0x8c, b"jpg"), item(b'C', b"\xff\xd8\xff\xe0 an image")].concat(),
            [item(0x8c, b"text"), item(0x8c, b"a caption")].concat(),
            [item(0x8c, b"width"), vec![b'K', row]].concat(),
            [item(0x8c, b"json"), b"}\x94(".to_vec(), item(0x8c, b"caption"), vec![b'N'], b"u".to_vec()].concat(),
            [item(0x8c, b"score"), b"G\x3f\xe0\0\0\0\0\0\0".to_vec()].concat(),
            [item(0x8c, b"list"), b"](K\x01\x8a\x02\xff\xff\x89Ne".to_vec()].concat(),
        ];
        [b"\x80\x04}\x94(".to_vec(), fields.concat(), b"u.".to_vec()].concat()
    };
    let names = [item(0x8c, b"1.jpg"), b"K\0".to_vec(), item(0x8c, b"1.txt"), b"K\x01".to_vec()].concat();
    let ordered = b"\x80\x04ccollections\nOrderedDict\n\x94)R\x94(".to_vec();
    let deep = [item(0x8c, b"deep"), b"h\0)R(".to_vec(), item(0x8c, b"2.png"), b"K\x01uu.".to_vec()].concat();
    let folder = [b"piouhjgbr".to_vec(), ordered, names, deep].concat();
    vec![
        ("dicts.ffr".into(), ffrecord(&[dict(1), dict(2), dict(3)])),
        ("folder.ffr".into(), ffrecord(&[b"\xff\xd8\xff\xe0".to_vec(), b"a caption".to_vec(), folder])),
    ]
}

#[test]
fn ffrecord_files() {
    let words: [&[u8]; 10] = [b"\x80\x04", b"}", b"]", b"(", b"u", b"e", b"\x94h\0", b"\x85R", b"cos\nsystem\n", b"2"];
    let target =
        Target { name: "ffrecord", files: ffrecords(), words: &words, repair: repair_ffrecord, max_mib: MAX_MIB };
    target.fuzz(|path, random| {
        let is_folder = path.file_name().is_some_and(|name| name == "folder.ffr");
        let (columns, filter): (&[&str], _) =
            if is_folder { (&[], "1 = 1") } else { (&["width", "score"], "width > 1") };
        read(path, columns, filter, true, random)
    });
}

fn lists() -> Files {
    let csv = "url,text,width\nhttp://x/1,\"a \"\"quoted\"\",\nb\",640\n\nhttp://x/2,,\nhttp://x/3,c,x,y\n";
    let many = (0..1500).map(|row| format!("http://x/{row}\t \"{row}\n")).collect::<Vec<_>>().concat();
    let json = concat!(
        "{\"url\": \"http://x/1\", \"caption\": \"a\", \"width\": 640}\n",
        "\n",
        "{\"url\": \"http://x/2\", \"width\": null, \"list\": [[1e9, -3], {\"a\": \"\\u00e9\\ud83d\\ude00\"}]}\n",
    );
    vec![
        ("a.csv".into(), csv.into()),
        ("paths.csv".into(), b"\xef\xbb\xbffile_name,text,width\r\na/b.png,a cat,5\r\n,a dog,3\r\n".into()),
        ("a.tsv".into(), b"url\tcaption\twidth\nhttp://x/1\ta dog\t4\nhttp://x/2\t\xff\xfe\t3\n".into()),
        ("many.tsv".into(), many.into()),
        ("a.jsonl".into(), json.into()),
    ]
}

#[test]
fn list() {
    let words: [&[u8]; 12] =
        [b"\"", b"\"\"", b",", b"\t", b"\n", b"\r\n", b"\r", b"\xef\xbb\xbf", b"{", b"[", b"\"a\":", b"http://x/9"];
    let target = Target { name: "list", files: lists(), words: &words, repair: unrepaired, max_mib: MAX_MIB };
    target.fuzz(|path, random| {
        let (columns, filter): (&[&str], _) = match path.file_name().and_then(|name| name.to_str()) {
            Some("many.tsv") => (&["url"], "url != 'http://x/7'"),
            _ => (&["width"], "width > 2"),
        };
        read(path, columns, filter, true, random)
    });
}

#[test]
fn filter() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("x.csv");
    std::fs::write(&table, "url,text,width,NSFW,my col,height\nu,t,640,UNLIKELY,7,\nv,t,512,true,x,1e3\n").unwrap();
    let source: Arc<dyn Source> = Arc::new(open(&table).unwrap());
    let texts = [
        "text = 't' and width >= 512",
        "width = 640 AND NOT height < 5",
        "(width < 0 or width > 600) and NSFW != \"NSFW\"",
        "NSFW not in ('LIKELY', 7, true) or not (not (not (height is null)))",
        "`my col` > 6.9 and -1 < width and width <> 1e3",
        "height is not null",
    ];
    let words: [&[u8]; 18] = [
        b"(",
        b")",
        b"not ",
        b" and ",
        b" or ",
        b" in ",
        b" is ",
        b"null",
        b"'",
        b"\"",
        b"`",
        b",",
        b"width",
        b" >= ",
        b"true",
        b"\xc3\xa9",
        b"nan",
        b"-inf",
    ];
    let files = texts.iter().enumerate().map(|(index, text)| (format!("{index}.txt"), text.as_bytes().to_vec()));
    let target = Target { name: "filter", files: files.collect(), words: &words, repair: unrepaired, max_mib: MAX_MIB };
    target.fuzz(|path, _| {
        let text = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
        match select(source.clone(), &Selection { filter: Some(text), unique: true, ..Selection::default() }) {
            Ok(selected) => {
                let rows: Vec<_> = selected.rows(0..selected.num_rows()).unwrap().map(Result::unwrap).collect();
                assert_eq!(rows.len() as u64, selected.num_rows());
                Ok(())
            }
            Err(Error::NothingPasses { .. }) => Ok(()),
            Err(Error::Filter { reason, .. }) => Err(reason),
            Err(Error::NoSuchColumn { .. }) => Err("no such column".to_owned()),
            Err(error) => panic!("{error}"),
        }
    });
}
