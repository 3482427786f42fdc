//! Pages of a parquet file, looked at before they are decoded.
//!
//! The decoders of the two delta encodings of byte arrays allocate as many lengths as a page's own header counts, before
//! anything is compared with what the page can hold. In a damaged file that may be more than there is memory, and a
//! failed allocation ends the process; so the counts are held against the number of values first.

use std::sync::Arc;

use bytes::Bytes;
use parquet::arrow::arrow_reader::RowGroups;
use parquet::basic::Encoding;
use parquet::column::page::{Page, PageIterator, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

/// Some row groups of a file.
pub(super) struct CheckedGroups<R> {
    pub reader: Arc<R>,
    pub metadata: Arc<ParquetMetaData>,
    pub groups: Vec<usize>,
}

impl<R: ChunkReader + 'static> RowGroups for CheckedGroups<R> {
    fn num_rows(&self) -> usize {
        self.row_groups().map(|group| group.num_rows() as usize).sum()
    }

    fn column_chunks(&self, column: usize) -> Result<Box<dyn PageIterator>> {
        let (reader, metadata) = (Arc::clone(&self.reader), Arc::clone(&self.metadata));
        Ok(Box::new(CheckedChunks { reader, metadata, column, groups: self.groups.clone().into_iter() }))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(self.groups.iter().map(|&group| self.metadata.row_group(group)))
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }
}

struct CheckedChunks<R> {
    reader: Arc<R>,
    metadata: Arc<ParquetMetaData>,
    column: usize,
    groups: std::vec::IntoIter<usize>,
}

impl<R: ChunkReader + 'static> Iterator for CheckedChunks<R> {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        let group = self.metadata.row_group(self.groups.next()?);
        let chunk = group.column(self.column);
        let descriptor = chunk.column_descr();
        let levels = (descriptor.max_rep_level() > 0, descriptor.max_def_level() > 0);
        let reader = SerializedPageReader::new(Arc::clone(&self.reader), chunk, group.num_rows() as usize, None);
        Some(reader.map(|inner| Box::new(CheckedPages { inner, levels }) as _))
    }
}

impl<R: ChunkReader + 'static> PageIterator for CheckedChunks<R> {}

struct CheckedPages<R: ChunkReader> {
    inner: SerializedPageReader<R>,
    /// Whether pages begin with repetition levels, and with definition levels.
    levels: (bool, bool),
}

impl<R: ChunkReader> Iterator for CheckedPages<R> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl<R: ChunkReader> PageReader for CheckedPages<R> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.inner.get_next_page()?;
        if let Some(page) = &page {
            check(page, self.levels)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.inner.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.inner.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        self.inner.take_deferred_dictionary()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.inner.at_record_boundary()
    }
}

fn check(page: &Page, levels: (bool, bool)) -> Result<()> {
    let (buffer, num_values, encoding, start) = match page {
        Page::DataPage { buf, num_values, encoding, .. } => (buf, *num_values, *encoding, behind_levels(buf, levels)),
        Page::DataPageV2 { buf, num_values, encoding, def_levels_byte_len, rep_levels_byte_len, .. } => {
            let start = *def_levels_byte_len as usize + *rep_levels_byte_len as usize;
            (buf, *num_values, *encoding, Some(start))
        }
        Page::DictionaryPage { .. } => return Ok(()),
    };
    let streams = match encoding {
        Encoding::DELTA_LENGTH_BYTE_ARRAY => 1, // the lengths
        Encoding::DELTA_BYTE_ARRAY => 2,        // those of the prefixes and of what follows them
        _ => return Ok(()),
    };
    let values = start.and_then(|start| buffer.get(start..));
    if values.is_some_and(|values| streams_fit(values, streams, num_values)) {
        return Ok(());
    }
    Err(ParquetError::General(format!("a page of {num_values} values has other numbers of lengths in it")))
}

/// Where the values of a page of the first version begin: each kind of levels has its size before it.
fn behind_levels(buffer: &Bytes, (repetition, definition): (bool, bool)) -> Option<usize> {
    let mut start = 0;
    for _ in 0..usize::from(repetition) + usize::from(definition) {
        let size: [u8; 4] = buffer.get(start..)?.first_chunk().copied()?;
        start = start.checked_add(4 + u32::from_le_bytes(size) as usize)?;
    }
    Some(start)
}

/// Whether so many streams of delta-packed integers, one after another, count no more than `num_values` each.
fn streams_fit(mut bytes: &[u8], streams: usize, num_values: u32) -> bool {
    for stream in 0..streams {
        let Some((count, rest)) = stream_count(bytes, stream + 1 < streams) else { return false };
        if count > u64::from(num_values) {
            return false;
        }
        bytes = rest;
    }
    true
}

/// How many integers a delta-packed stream says that it has, and what comes after it, if that is asked for.
///
/// The header is the block's size, its number of miniblocks, the count and the first value; a block is the smallest
/// difference, a width in bits for each miniblock, and these.
fn stream_count(bytes: &[u8], find_end: bool) -> Option<(u64, &[u8])> {
    let (block, rest) = varint(bytes)?;
    let (num_miniblocks, rest) = varint(rest)?;
    let (count, rest) = varint(rest)?;
    let (_, mut rest) = varint(rest)?;
    if !find_end {
        return Some((count, rest));
    }
    let in_miniblock = block.checked_div(num_miniblocks).filter(|&values| values > 0)?;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        (_, rest) = varint(rest)?;
        let (widths, mut data) = rest.split_at_checked(usize::try_from(num_miniblocks).ok()?)?;
        for &width in widths {
            if left == 0 {
                break;
            }
            let bits = in_miniblock.checked_mul(width.into())?;
            data = data.get(usize::try_from(bits / 8).ok()?..)?;
            left = left.saturating_sub(in_miniblock);
        }
        rest = data;
    }
    Some((count, rest))
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (place, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * place as u32)?;
        if byte < 0x80 {
            return Some((value, &bytes[place + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_length_are_read() {
        assert_eq!(varint(&[5, 9]), Some((5, &[9][..])));
        assert_eq!(varint(&[0x80, 1]), Some((128, &[][..])));
        assert_eq!(varint(&[0xff; 12]), None);
        assert_eq!(varint(&[0x80]), None);
    }

    #[test]
    fn a_stream_is_passed_over_to_the_next_one() {
        // Blocks of 128 in 4 miniblocks of 32; 34 values, so 33 differences: widths 2 and 1 are used, the others are not.
        let mut bytes = vec![0x80, 1, 4, 34, 0, /* smallest difference */ 0, 2, 1, 7, 7];
        bytes.extend([0; 8 + 4]);
        let end = bytes.len();
        bytes.extend([0x80, 1, 4, 3, 0]);
        assert_eq!(stream_count(&bytes, true), Some((34, &bytes[end..])));
        assert!(streams_fit(&bytes, 2, 34) && !streams_fit(&bytes, 2, 33));
        bytes[end + 3] = 35;
        assert!(!streams_fit(&bytes, 2, 34), "the second one counts too many");
        assert_eq!(stream_count(&bytes[..end - 1], true), None);
    }
}
