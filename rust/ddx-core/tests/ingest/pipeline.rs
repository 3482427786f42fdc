//! From rows to batches: order, shape, one status a row, bounded memory, prompt ends.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ddx_core::image::Size;
use ddx_core::ingest::{Batch, Ingest, IngestConfig, Item, PartEnd, Poll};
use ddx_core::source::{ColumnChoice, ImageKind, Input, Source};

use crate::WATCHDOG;
use crate::fetching;
use crate::images::{gradient, jpeg};
use crate::server::Server;
use crate::sources::{texts, write_parquet};

fn config() -> IngestConfig {
    IngestConfig {
        sizes: vec![Size::square(32)],
        part_rows: 10,
        batch_size: 4,
        prefetch_rows: 16,
        decode_threads: 2,
        max_pixels: 1_000_000,
        max_upscale: 1.0,
        tiff: false,
        verify_checksums: true,
        byte_budget: 200_000,
        pixel_budget: 1_000_000,
        fetch: fetching::config(),
    }
}

fn start(parquet: &Path, parts: &[u64], config: IngestConfig) -> ddx_core::Result<Ingest> {
    let source = Input::open(&[parquet.to_string_lossy().into_owned()], &ColumnChoice::default())?;
    Ingest::start(Arc::new(source), parts, config)
}

fn run(parquet: &Path, parts: &[u64], config: IngestConfig) -> (Vec<Batch>, Vec<PartEnd>) {
    finish(start(parquet, parts, config).unwrap())
}

fn finish(mut ingest: Ingest) -> (Vec<Batch>, Vec<PartEnd>) {
    let (mut batches, mut ends) = (Vec::new(), Vec::new());
    loop {
        match ingest.poll(WATCHDOG).unwrap() {
            Poll::Item(Item::Batch(batch)) => batches.push(batch),
            Poll::Item(Item::PartEnd(end)) => ends.push(end),
            Poll::Done => return (batches, ends),
            Poll::Pending => panic!("the watchdog: nothing came"),
        }
    }
}

/// 25 rows of URLs, of which one answer is late, and eight rows are bad in their own ways.
fn mixed(folder: &Path) -> (Server, std::path::PathBuf) {
    let pictures = (0..25_u32).map(|row| (format!("{row}.jpg"), jpeg(&gradient(32 + 3 * row, 40)))).collect();
    let server = Server::start(pictures);
    let url = |row: usize| match row {
        3 => server.url("gone.jpg"),
        5 => server.url("endless"),
        8 => "http://169.254.169.254/".to_owned(),
        12 => server.url("slow-ok"), // text, no image
        17 => server.url("cut"),
        20 => server.url("flaky"),
        _ => server.url(&format!("{row}.jpg")),
    };
    let urls = texts((0..25).map(|row| (row != 22).then(|| url(row))));
    let captions = texts((0..25).map(|row| (row != 23).then(|| format!("caption {row}"))));
    let parquet = folder.join("a.parquet");
    write_parquet(&parquet, vec![("url", urls), ("caption", captions)], 6);
    (server, parquet)
}

const BAD: [(u64, &str); 8] = [
    (3, "http_404"),
    (5, "too_large"),
    (8, "refused_address"),
    (12, "not_an_image"),
    (17, "reset"),
    (20, "not_an_image"),
    (22, "no_image"),
    (23, "no_caption"),
];

#[test]
fn captions_alone_are_rows_without_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let (parquet, list) = (folder.path().join("a.parquet"), folder.path().join("b.csv"));
    write_parquet(&parquet, vec![("caption", texts((0..14).map(|row| (row != 9).then(|| format!("{row}")))))], 6);
    std::fs::write(&list, "key,caption\nfirst,14\nsecond,\nthird,16\n").unwrap();
    for (file, rows, blank) in [(parquet, 14_u64, 9), (list, 3, 1)] {
        let choice = ColumnChoice { captions_only: true, ..Default::default() };
        let source = Input::open(&[file.to_string_lossy().into_owned()], &choice).unwrap();
        assert_eq!((source.num_rows(), source.image_kind()), (rows, ImageKind::Caption));
        assert!(!source.columns().contains_key("image"));
        let parts: Vec<u64> = (0..rows.div_ceil(10)).collect();
        let (batches, ends) = finish(Ingest::start(Arc::new(source), &parts, config()).unwrap());
        assert!(batches.is_empty());
        let records: Vec<_> = ends.into_iter().flat_map(|end| end.records).collect();
        assert_eq!(records.len() as u64, rows);
        for (row, record) in records.iter().enumerate() {
            let status = record.status.slug();
            assert_eq!(status, if row == blank { "no_caption" } else { "ok" }, "{row}");
            assert!(record.source.is_empty() && record.sha256.is_none());
        }
    }
}

#[test]
fn hostile_answers_all_end_in_a_status() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(HashMap::new());
    let run = |urls: Vec<Option<String>>, config| {
        let captions = texts(urls.iter().map(|_| Some("caption".to_owned())));
        let parquet = folder.path().join("a.parquet");
        write_parquet(&parquet, vec![("url", texts(urls)), ("caption", captions)], 6);
        let (_, ends) = run(&parquet, &[0], config);
        ends[0].records.iter().map(|record| record.status.slug().into_owned()).collect::<Vec<_>>()
    };
    let cases = [
        ("endless", "too_large"),
        ("cut", "reset"),
        ("huge", "too_large"),
        ("loop", "redirects"),
        ("to-metadata", "refused_address"),
        ("to-file", "bad_url"),
        ("away", "http_503"),
        ("gzip-bomb", "too_large"),
        ("noai", "opted_out"),
    ];
    let mut urls: Vec<_> = cases.iter().map(|(path, _)| Some(server.url(path))).collect();
    urls.push(Some(server.url("ok").replace("http:", "https:"))); // no TLS there
    let expected: Vec<_> = cases.iter().map(|(_, status)| *status).chain(["connect"]).collect();
    assert_eq!(run(urls, config()), expected);

    // Those that would never end, each with the one deadline that ends it.
    let slow = ["drip", "stall", "silent"].map(|path| Some(server.url(path))).to_vec();
    let mut hasty = config();
    hasty.fetch.total_timeout = Duration::from_millis(500);
    assert_eq!(run(slow, hasty), ["timeout"; 3]);
}

#[test]
fn every_row_has_a_status_and_batches_are_full_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, parquet) = mixed(folder.path());
    let (batches, ends) = run(&parquet, &[0, 1, 2], config());
    let statuses: Vec<(u64, String)> = ends
        .iter()
        .flat_map(|end| end.records.iter().zip(end.first_row..))
        .map(|(record, row)| (row, record.status.slug().into_owned()))
        .collect();
    assert_eq!(statuses.len(), 25);
    for (row, status) in statuses {
        let expected = BAD.iter().find(|(bad, _)| *bad == row).map_or("ok", |(_, status)| status);
        assert_eq!(status, expected, "row {row}");
    }
    for end in &ends {
        let ok: Vec<u64> = (end.first_row..)
            .zip(&end.records)
            .filter_map(|(row, record)| (record.status.slug() == "ok").then_some(row))
            .collect();
        let of_part: Vec<&Batch> = batches.iter().filter(|batch| batch.part == end.part).collect();
        let in_batches: Vec<u64> = of_part.iter().flat_map(|batch| batch.rows.clone()).collect();
        assert_eq!(in_batches, ok, "part {}", end.part);
        assert!(of_part.iter().rev().skip(1).all(|batch| batch.rows.len() == 4));
    }
    assert!(batches.iter().all(|batch| batch.images.len() == 4 * 32 * 32 * 3));
    let record = &ends[0].records[2];
    assert_eq!((record.width, record.height), (38, 40));
    assert_eq!((record.crop.left, record.crop.top, record.crop.width), (0.0, 1.0, 38.0));
    assert!(record.sha256.is_some() && record.detail.is_empty());
}

#[test]
fn parts_alone_give_the_bytes_of_the_whole_run() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, parquet) = mixed(folder.path());
    let (whole, _) = run(&parquet, &[0, 1, 2], config());
    let mut config = config();
    (config.prefetch_rows, config.decode_threads, config.fetch.concurrency) = (1, 1, 1);
    let (part, ends) = run(&parquet, &[2, 0], config);
    assert_eq!(
        ends.iter().map(|end| (end.part, end.first_row, end.records.len())).collect::<Vec<_>>(),
        [(2, 20, 5), (0, 0, 10)]
    );
    for number in [0, 2] {
        let images = |batches: &[Batch]| -> Vec<Vec<u8>> {
            batches.iter().filter(|batch| batch.part == number).map(|batch| batch.images.clone()).collect()
        };
        assert_eq!(images(&whole), images(&part), "part {number}");
    }
}

#[test]
fn every_picture_is_in_a_batch_of_the_size_that_is_nearest_to_its_shape() {
    let folder = tempfile::tempdir().unwrap();
    // Wide, square and high ones in turns; the last two are too small for theirs.
    let shapes = [(120, 60), (70, 70), (50, 100), (90, 50), (80, 79), (60, 110), (38, 20), (31, 32)];
    for (row, (width, height)) in shapes.into_iter().enumerate() {
        std::fs::write(folder.path().join(format!("{row}.jpg")), jpeg(&gradient(width, height))).unwrap();
    }
    let parquet = folder.path().join("a.parquet");
    let columns = vec![
        ("path", texts((0..8).map(|row| Some(format!("{row}.jpg"))))),
        ("text", texts((0..8).map(|row| Some(row.to_string())))),
    ];
    write_parquet(&parquet, columns, 10);
    let sizes = vec![Size { width: 24, height: 40 }, Size::square(32), Size { width: 40, height: 24 }];
    let (batches, ends) = run(&parquet, &[0], IngestConfig { sizes: sizes.clone(), batch_size: 2, ..config() });
    let found: Vec<_> = batches.iter().map(|batch| (batch.size, batch.rows.as_slice())).collect();
    // A batch comes when it is full: rows 0 and 3 at row 3, 1 and 4 at row 4, 2 and 5 at row 5.
    assert_eq!(found, [(sizes[2], [0, 3].as_slice()), (sizes[1], &[1, 4]), (sizes[0], &[2, 5])]);
    assert!(batches.iter().all(|batch| batch.images.len() == 2 * batch.size.num_bytes()));
    let statuses: Vec<_> = ends[0].records.iter().map(|record| record.status.slug().into_owned()).collect();
    assert_eq!(statuses[6..], ["too_small", "too_small"]);
    assert!((ends[0].records[3].crop.width / ends[0].records[3].crop.height - 40.0 / 24.0).abs() < 1e-6);
}

#[test]
fn small_pictures_are_refused_or_enlarged_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("small.jpg"), jpeg(&gradient(40, 24))).unwrap();
    let parquet = folder.path().join("a.parquet");
    let columns = vec![
        ("path", texts([Some("small.jpg".into()), Some("none.jpg".into())])),
        ("text", texts([Some("a".into()), Some("b".into())])),
    ];
    write_parquet(&parquet, columns, 10);
    let statuses = |config| -> Vec<String> {
        let (_, ends) = run(&parquet, &[0], config);
        ends[0].records.iter().map(|record| record.status.slug().into_owned()).collect()
    };
    assert_eq!(statuses(config()), ["too_small", "missing_file"]);
    assert_eq!(statuses(IngestConfig { max_upscale: 1.5, ..config() }), ["ok", "missing_file"]);
}

#[test]
fn dropping_a_busy_ingest_waits_for_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(HashMap::new());
    let parquet = folder.path().join("a.parquet");
    let columns = vec![
        ("url", texts((0..500).map(|_| Some(server.url("silent"))))),
        ("text", texts((0..500).map(|row| Some(row.to_string())))),
    ];
    write_parquet(&parquet, columns, 100);
    let mut ingest = start(&parquet, &[0, 1, 2], config()).unwrap();
    assert!(matches!(ingest.poll(Duration::from_millis(200)).unwrap(), Poll::Pending));
    ingest.close();
    assert!(ingest.poll(WATCHDOG).is_err());
    drop(ingest);
}

#[test]
fn settings_out_of_range_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, parquet) = mixed(folder.path());
    let error = start(&parquet, &[3], config()).err().unwrap();
    assert_eq!(error.to_string(), "part = 3: must be below 3, the number of parts");
    let error = start(&parquet, &[0], IngestConfig { batch_size: 0, ..config() }).err().unwrap();
    assert_eq!(error.to_string(), "batch_size = 0: must be at least 1");
    assert!(start(&parquet, &[0], IngestConfig { max_upscale: 0.5, ..config() }).is_err());
}

#[test]
fn rows_of_a_damaged_file_are_recorded_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.jpg"), jpeg(&gradient(40, 40))).unwrap();
    for name in ["a.parquet", "b.parquet"] {
        let columns = vec![
            ("path", texts((0..20).map(|_| Some("x.jpg".into())))),
            ("text", texts((0..20).map(|row| Some(format!("caption {row}"))))),
        ];
        write_parquet(&folder.path().join(name), columns, 100);
    }
    // The data pages come first in the file; the footer stays whole.
    let path = folder.path().join("a.parquet");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4..60].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let (batches, ends) = run(folder.path(), &[0, 1, 2, 3], config());
    let failed =
        |end: &PartEnd| end.records.iter().filter(|record| record.status.slug() == "unreadable_source").count();
    assert_eq!(ends.iter().map(failed).collect::<Vec<_>>(), [10, 10, 0, 0]);
    assert!(batches.iter().all(|batch| batch.part >= 2));
}
