//! Parquet files: any range of rows, whatever the row groups and types.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field};
use bytes::Bytes;
use ddx_core::source::{ColumnChoice, ImageKind, ImageRef, Input, Row, Source};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

/// Writes columns as a parquet file with row groups of the given size.
pub fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>, group_rows: usize) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group_rows)).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

pub fn texts(texts: impl IntoIterator<Item = Option<String>>) -> ArrayRef {
    Arc::new(texts.into_iter().collect::<StringArray>())
}

fn open(path: &Path, choice: &ColumnChoice) -> ddx_core::Result<Input> {
    Input::open(&[path.to_string_lossy().into_owned()], choice)
}

fn rows(source: &Input, range: std::ops::Range<u64>) -> Vec<Row> {
    source.rows(range).unwrap().map(Result::unwrap).collect()
}

#[test]
fn any_range_over_files_and_row_groups_is_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    for (name, first, count) in [("a.parquet", 0, 25), ("b.parquet", 25, 1), ("c.parquet", 26, 14)] {
        let numbers = first..first + count;
        let columns = vec![
            ("TEXT", texts(numbers.clone().map(|row| Some(format!("caption {row}"))))),
            ("URL", texts(numbers.map(|row| Some(format!("http://x/{row}"))))),
        ];
        write_parquet(&folder.path().join(name), columns, 7);
    }
    let source = open(folder.path(), &ColumnChoice::default()).unwrap();
    assert_eq!((source.num_rows(), source.image_kind()), (40, ImageKind::Url));
    let all = rows(&source, 0..40);
    for (row, found) in all.iter().enumerate() {
        assert_eq!(found.captions[0].as_deref(), Some(format!("caption {row}").as_str()));
        assert_eq!(found.image, Some(ImageRef::Url(format!("http://x/{row}"))));
        assert_eq!(found.key, Some(format!("{row:09}")));
    }
    for start in [0, 6, 7, 13, 24, 25, 26, 39] {
        for end in [start, start + 1, start + 8, 40, 99] {
            let expected = &all[start as usize..end.min(40) as usize];
            assert_eq!(rows(&source, start..end), expected, "{start}..{end}");
        }
    }
}

#[test]
fn embedded_bytes_paths_keys_and_gaps_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![Some(&b"one"[..]), None, None, Some(&b""[..])]));
    let names = texts([None, Some("pictures/two.png".to_owned()), None, None]);
    let image = StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), bytes.clone()),
        (Arc::new(Field::new("path", DataType::Utf8, true)), names.clone()),
    ]);
    let columns = vec![
        ("image", Arc::new(image) as ArrayRef),
        ("raw", bytes),
        ("file_name", names),
        ("caption", texts([Some(" a ".into()), Some("b".into()), None, Some("  ".into())])),
        ("id", Arc::new(Int64Array::from(vec![Some(11), Some(12), None, Some(14)])) as ArrayRef),
    ];
    write_parquet(&path, columns, 100);
    let found = rows(&open(&path, &ColumnChoice::default()).unwrap(), 0..4);
    let images: Vec<_> = found.iter().map(|row| row.image.clone()).collect();
    let two = ImageRef::Path(folder.path().join("pictures/two.png"));
    let one = ImageRef::Bytes(Bytes::from_static(b"one"));
    assert_eq!(images, [Some(one.clone()), Some(two.clone()), None, None]);
    let captions: Vec<_> = found.iter().map(|row| row.captions[0].as_deref()).collect();
    assert_eq!(captions, [Some("a"), Some("b"), None, None]);
    let keys: Vec<_> = found.iter().map(|row| row.key.as_deref().unwrap()).collect();
    assert_eq!(keys, ["11", "12", "000000002", "14"]);

    let choice = ColumnChoice { image: Some("raw".into()), ..Default::default() };
    assert_eq!(rows(&open(&path, &choice).unwrap(), 0..2)[0].image, Some(one));
    let choice = ColumnChoice { path: Some("file_name".into()), ..Default::default() };
    assert_eq!(rows(&open(&path, &choice).unwrap(), 0..2)[1].image, Some(two));
}

#[test]
fn what_is_no_parquet_or_empty_is_refused_with_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.parquet");
    std::fs::write(&path, b"PAR1 but not really").unwrap();
    let error = open(&path, &ColumnChoice::default()).err().unwrap();
    assert!(error.to_string().contains("not a readable parquet file"), "{error}");
    write_parquet(&path, vec![("text", texts([])), ("url", texts([]))], 10);
    let error = open(&path, &ColumnChoice::default()).err().unwrap();
    assert!(error.to_string().ends_with("a.parquet: no rows") && error.hint().is_some(), "{error}");
}
