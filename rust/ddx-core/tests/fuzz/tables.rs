//! Small parquet files of every codec and encoding.

use std::sync::Arc;

use arrow_array::types::Int32Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, DictionaryArray, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray, StructArray,
};
use arrow_schema::{DataType, Field};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, Encoding, GzipLevel, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder, WriterVersion};

const ROWS: usize = 23;

fn batch(embedded: bool) -> RecordBatch {
    let rows = 0..ROWS;
    let texts = |text: &dyn Fn(usize) -> Option<String>| -> StringArray { rows.clone().map(text).collect() };
    let names = texts(&|row| Some(format!("http://x/{row}.jpg")));
    let bytes: BinaryArray = rows.clone().map(|row| (row % 5 > 0).then(|| vec![row as u8; row])).collect();
    let image = StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), Arc::new(bytes) as ArrayRef),
        (Arc::new(Field::new("path", DataType::Utf8, true)), Arc::new(names.clone()) as ArrayRef),
    ]);
    let image: (&str, ArrayRef) = if embedded { ("image", Arc::new(image)) } else { ("url", Arc::new(names)) };
    let kinds: DictionaryArray<Int32Type> = rows.clone().map(|row| ["UNLIKELY", "NSFW"][row % 2]).collect();
    let lists = rows.clone().map(|row| Some(vec![Some(row as i32); row % 4]));
    RecordBatch::try_from_iter([
        image,
        ("caption", Arc::new(texts(&|row| (row % 7 > 0).then(|| format!("caption {row}")))) as ArrayRef),
        ("id", Arc::new(Int64Array::from_iter_values(rows.clone().map(|row| row as i64)))),
        ("sha256", Arc::new(texts(&|row| Some(format!("{row:064x}"))))),
        (
            "score",
            Arc::new(rows.clone().map(|row| (row % 3 > 0).then_some(row as f64 / 2.0)).collect::<Float64Array>()),
        ),
        ("good", Arc::new(rows.clone().map(|row| Some(row % 2 == 0)).collect::<BooleanArray>())),
        ("kind", Arc::new(kinds)),
        ("list", Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(lists))),
    ])
    .unwrap()
}

fn write(batch: &RecordBatch, properties: WriterPropertiesBuilder) -> Vec<u8> {
    let properties = properties.set_max_row_group_row_count(Some(9)).set_data_page_row_count_limit(4);
    let properties = properties.set_write_batch_size(2).build();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

pub fn parquets() -> Vec<(String, Vec<u8>)> {
    let builder = WriterProperties::builder;
    let second = || builder().set_writer_version(WriterVersion::PARQUET_2_0);
    let plain = || builder().set_dictionary_enabled(false);
    let all = [
        (false, plain()),
        (true, plain()),
        (false, builder().set_compression(Compression::SNAPPY)),
        (true, builder().set_compression(Compression::ZSTD(ZstdLevel::default()))),
        (false, plain().set_compression(Compression::GZIP(GzipLevel::default()))),
        (false, builder().set_compression(Compression::LZ4)),
        (true, plain().set_compression(Compression::LZ4_RAW)),
        (false, plain().set_compression(Compression::BROTLI(BrotliLevel::default()))),
        (true, second().set_compression(Compression::SNAPPY)),
        (false, plain().set_column_encoding("score".into(), Encoding::BYTE_STREAM_SPLIT)),
        // Without compression a damaged page is still read: these name how much is to be allocated.
        (true, plain().set_column_encoding("caption".into(), Encoding::DELTA_LENGTH_BYTE_ARRAY)),
        (false, second().set_dictionary_enabled(false)),
        (false, plain().set_column_encoding("url".into(), Encoding::DELTA_BYTE_ARRAY)),
    ];
    let files = all.into_iter().map(|(embedded, properties)| write(&batch(embedded), properties));
    files.enumerate().map(|(index, bytes)| (format!("{index}.parquet"), bytes)).collect()
}
