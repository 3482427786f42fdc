//! Lists of URLs or paths: CSV, TSV and JSON lines. A first pass counts the rows and notes where every so-manieth begins.

mod encoding;
mod names;
mod reader;

use std::collections::BTreeMap;
use std::ops::Range;

use arrow_schema::{DataType, Field, Schema};

use super::caption::{Captions, blank};
use super::columns::{Columns, find_columns, some_of};
use super::place::{Place, beside};
use super::{Cells, Checksum, ColumnChoice, ImageKind, ImageRef, Row, Rows, Source};
use crate::{Error, Result};
use encoding::Encoded;
use names::{header, json_names};
use reader::{Line, Reader};

/// Rows between two noted places: what a jump into the middle reads too much of, at most.
const ROWS_A_MARK: u64 = 1024;

/// How the fields of a row are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListFormat {
    /// Commas; a field may be quoted.
    Csv,
    /// Tabs; quotes mean themselves, as in Conceptual Captions.
    Tsv,
    /// A JSON object a line.
    Jsonl,
}

/// One list.
pub(super) struct ListFile {
    encoded: Encoded,
    format: ListFormat,
    names: Vec<String>,
    columns: Columns,
    /// The captions of a row in each of their columns.
    places: Vec<usize>,
    longest_list: usize,
    /// Offset of row 0, row `ROWS_A_MARK`, and so on.
    marks: Vec<u64>,
    num_rows: u64,
}

impl ListFile {
    /// Reads the file once.
    ///
    /// # Errors
    /// If it cannot be read, or has no columns for captions and images.
    pub fn open(place: Place, format: ListFormat, choice: &ColumnChoice) -> Result<Self> {
        let encoded = Encoded::open(place, choice.charset)?;
        let (names, data_at) = match format {
            ListFormat::Jsonl => (json_names(&encoded)?, encoded.start),
            ListFormat::Csv | ListFormat::Tsv => header(&encoded, format)?,
        };
        let fields: Vec<Field> = names.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
        let columns = find_columns(&encoded.place.path, &Schema::new(fields), choice)?;
        let (mut marks, mut num_rows) = (Vec::new(), 0);
        let mut reader = Reader::open(&encoded, format, data_at)?;
        let mut longest = vec![1; columns.captions.len()];
        loop {
            let at = reader.offset();
            let Some(line) = reader.next()? else { break };
            for (longest, &index) in longest.iter_mut().zip(&columns.captions) {
                *longest = line.num_captions(&names[index]).max(*longest);
            }
            if num_rows % ROWS_A_MARK == 0 {
                marks.push(at);
            }
            num_rows += 1;
        }
        let places = longest.iter().map(|&longest| longest.min(choice.max_captions.unwrap_or(longest))).collect();
        let longest_list = longest.into_iter().max().unwrap_or(1);
        Ok(Self { encoded, format, names, columns, places, longest_list, marks, num_rows })
    }

    fn lines_from(&self, row: u64) -> Result<Reader> {
        let mark = row / ROWS_A_MARK;
        // A list without rows has no marks either.
        let start = self.marks.get(mark as usize).copied().unwrap_or(0);
        let mut reader = Reader::open(&self.encoded, self.format, start)?;
        for _ in mark * ROWS_A_MARK..row {
            reader.next()?;
        }
        Ok(reader)
    }

    fn row(&self, line: &Line) -> Row {
        let cell = |index: usize| line.text(&self.names, index);
        let mut captions = Captions::default();
        for (&index, &places) in self.columns.captions.iter().zip(&self.places) {
            captions.push(line.caption(&self.names, index, self.encoded.charset), places);
        }
        let (captions, caption_fault) = captions.finish(blank);
        let path = &self.encoded.place.path;
        let image = match line {
            Line::Broken(reason) => Some(ImageRef::Broken(reason.clone())),
            _ if self.columns.image_kind == ImageKind::Caption => Some(ImageRef::Caption),
            _ => cell(self.columns.image).map(|text| match self.columns.image_kind {
                ImageKind::Path => ImageRef::Path(beside(path, &text)),
                _ => ImageRef::Url(text),
            }),
        };
        Row {
            key: self.columns.key.and_then(cell),
            captions,
            caption_fault,
            image,
            checksum: self.columns.checksum.and_then(cell).as_deref().and_then(Checksum::parse),
        }
    }
}

impl Source for ListFile {
    fn num_rows(&self) -> u64 {
        self.num_rows
    }

    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        let mut reader = self.lines_from(range.start)?;
        Ok(Box::new(range.map_while(move |_| reader.next().map(|line| line.map(|line| self.row(&line))).transpose())))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        let missing = |name: &str| Error::NoSuchColumn {
            path: self.encoded.place.path.clone(),
            column: name.to_owned(),
            columns: some_of(&self.names),
        };
        let index = |name: &String| {
            let exact = self.names.iter().position(|found| found == name);
            exact
                .or_else(|| self.names.iter().position(|found| found.eq_ignore_ascii_case(name)))
                .ok_or_else(|| missing(name))
        };
        let indexes: Vec<usize> = columns.iter().map(index).collect::<Result<_>>()?;
        let mut reader = self.lines_from(0)?;
        Ok(Box::new((0..self.num_rows).map_while(move |_| {
            let line = reader.next().transpose()?;
            Some(line.map(|line| indexes.iter().map(|&index| line.value(&self.names, index)).collect()))
        })))
    }

    fn num_captions(&self) -> usize {
        self.places.iter().sum()
    }

    fn longest_list(&self) -> usize {
        self.longest_list
    }

    fn image_kind(&self) -> ImageKind {
        self.columns.image_kind
    }

    fn columns(&self) -> BTreeMap<&'static str, String> {
        self.columns.names(|index| self.names[index].clone())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::reader::LONGEST_LINE;
    use super::*;
    use crate::source::{CaptionFault, Value};

    fn list(name: &str, text: impl AsRef<[u8]>) -> Result<(tempfile::TempDir, ListFile)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let format = match path.extension().and_then(|name| name.to_str()) {
            Some("csv") => ListFormat::Csv,
            Some("tsv") => ListFormat::Tsv,
            _ => ListFormat::Jsonl,
        };
        ListFile::open(Place::new(&path), format, &ColumnChoice::default()).map(|list| (folder, list))
    }

    fn rows(list: &ListFile, range: Range<u64>) -> Vec<Row> {
        list.rows(range).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn any_range_of_any_format_is_the_same_rows() {
        let (mut csv, mut tsv, mut jsonl) = ("TEXT,URL\n".to_owned(), String::new(), String::new());
        for row in 0..2500 {
            writeln!(csv, "\"a \"\"{row}\"\",\nb\",http://x/{row}").unwrap();
            writeln!(tsv, "a \"{row}\t http://x/{row}").unwrap();
            writeln!(jsonl, "{{\"url\": \"http://x/{row}\", \"caption\": \"a {row}\"}}\n").unwrap();
        }
        for (name, text) in [("x.csv", csv), ("x.tsv", tsv), ("x.jsonl", jsonl)] {
            let (_folder, list) = list(name, &text).unwrap();
            assert_eq!(list.num_rows(), 2500, "{name}");
            let all = rows(&list, 0..2500);
            for (row, found) in all.iter().enumerate() {
                assert_eq!(found.image, Some(ImageRef::Url(format!("http://x/{row}"))), "{name}");
                assert!(found.captions[0].as_ref().unwrap().contains(&row.to_string()), "{name}: {found:?}");
            }
            for start in [0, 1, 1023, 1024, 1025, 2047, 2048, 2499] {
                assert_eq!(rows(&list, start..start + 1), all[start as usize..=start as usize], "{name} {start}");
            }
            assert_eq!(rows(&list, 1000..2500), all[1000..]);
        }
    }

    #[test]
    fn a_list_without_a_header_is_known_by_its_addresses() {
        let (_folder, list) = list("cc3m.tsv", "a dog\thttp://x/1.jpg\na cat\thttp://x/2.jpg\n").unwrap();
        assert_eq!(list.num_rows(), 2);
        assert_eq!(list.columns()["image"], "url");
        assert_eq!(rows(&list, 0..1)[0].captions[0].as_deref(), Some("a dog"));
    }

    #[test]
    fn paths_are_meant_from_the_folder_of_the_list() {
        let (folder, list) = list("metadata.csv", "file_name,text\na/b.png,a cat\n,a dog\n").unwrap();
        let found = rows(&list, 0..2);
        assert_eq!(found[0].image, Some(ImageRef::Path(folder.path().join("a/b.png"))));
        assert_eq!(found[1].image, None);
    }

    #[test]
    fn a_broken_line_costs_its_row_alone() {
        let text = "{\"url\": \"http://x/0\", \"text\": \"a\"}\n{\"url\":\n{\"url\": \"http://x/2\", \"text\": 3}\n";
        let (_folder, list) = list("x.jsonl", text).unwrap();
        let found = rows(&list, 0..3);
        assert!(matches!(&found[1].image, Some(ImageRef::Broken(reason)) if reason.contains("JSON")), "{found:?}");
        assert_eq!(found[2].captions[0].as_deref(), Some("3"));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        assert!(list("x.jsonl", "hello\n").err().unwrap().to_string().contains("not JSON"));
        let error = list("x.csv", "a,b\n1,2\n").err().unwrap();
        assert_eq!(error.to_string().split(": ").last(), Some("a, b"), "{error}");
    }

    #[test]
    fn a_row_without_an_end_is_refused() {
        let text = format!("url,text\nhttp://x/1,a\nhttp://x/2,\"{}", "b,\n".repeat(LONGEST_LINE as usize / 2));
        for name in ["x.csv", "x.jsonl"] {
            let text = if name == "x.csv" { text.clone() } else { text.replace('\n', " ") };
            let error = list(name, &text).err().unwrap();
            assert!(error.to_string().contains("a row of more than"), "{name}: {error}");
        }
    }

    #[test]
    fn any_encoding_with_a_mark_gives_the_same_rows() {
        let wide = |text: &str| -> Vec<u8> {
            std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
        };
        for (name, text) in [
            ("x.csv", "url,text\nhttp://x/1,café\nhttp://x/2,猫\n"),
            ("x.tsv", "café\thttp://x/1\n猫\thttp://x/2\n"),
            ("x.jsonl", "{\"url\": \"http://x/1\", \"text\": \"café\"}\n{\"url\": \"http://x/2\", \"text\": \"猫\"}"),
        ] {
            for bytes in [text.as_bytes().to_vec(), format!("\u{feff}{text}").into_bytes(), wide(text)] {
                let (_folder, list) = list(name, bytes).unwrap();
                assert_eq!(list.num_rows(), 2, "{name}");
                let found = rows(&list, 0..2);
                let captions: Vec<_> = found.iter().map(|row| row.captions[0].as_deref().unwrap()).collect();
                assert_eq!(captions, ["café", "猫"], "{name}");
                assert_eq!(rows(&list, 1..2), found[1..]);
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_cost_their_row_alone() {
        let csv = &b"url,text,by\nhttp://x/1,a cat,caf\xe9\nhttp://x/2,caf\xe9,b\n"[..];
        let jsonl = b"{\"url\": \"http://x/1\", \"text\": \"a cat\", \"by\": \"caf\xe9\"}\n\
                      {\"url\": \"http://x/2\", \"text\": \"caf\xe9\"}";
        for (name, bytes) in [("x.csv", csv), ("x.jsonl", jsonl)] {
            let (_folder, list) = list(name, bytes).unwrap();
            let found = rows(&list, 0..2);
            assert_eq!((found[0].captions[0].as_deref(), &found[0].caption_fault), (Some("a cat"), &None), "{name}");
            assert!(matches!(found[1].caption_fault, Some(CaptionFault::Encoding(_))), "{name}: {:?}", found[1]);
            assert!(matches!(found[1].image, Some(ImageRef::Url(_))), "{name}: {:?}", found[1]);
        }
    }

    #[test]
    fn a_list_of_captions_has_as_many_places_as_the_longest() {
        let text = "{\"url\": \"http://x/1\", \"captions\": \"a\"}\n\
                    {\"url\": [\"http://x/2\", \"http://x/3\"], \"captions\": [\"b\", \"\", \"c\"]}\n\
                    {\"url\": \"http://x/4\", \"captions\": {\"en\": \"d\"}}";
        let (_folder, list) = list("x.jsonl", text).unwrap();
        assert_eq!(list.num_captions(), 3);
        let found = rows(&list, 0..3);
        let texts = |row: &Row| row.captions.iter().flatten().cloned().collect::<Vec<_>>();
        assert_eq!((texts(&found[0]), texts(&found[1])), (vec!["a".to_owned()], vec!["b".to_owned(), "c".to_owned()]));
        assert_eq!(found[1].image, Some(ImageRef::Url("http://x/2".to_owned())));
        assert!(matches!(found[2].caption_fault, Some(CaptionFault::NotText(_))), "{:?}", found[2]);
    }

    #[test]
    fn a_list_without_rows_has_no_cells() {
        let (_folder, list) = list("x.csv", "url,text,width\n").unwrap();
        assert_eq!(list.cells(&["width".to_owned()]).unwrap().count(), 0);
    }

    #[test]
    fn cells_are_found_by_name_in_any_case() {
        let (_folder, list) = list("x.csv", "url,text,Width\nhttp://x/1,a,640\nhttp://x/2,b,\n").unwrap();
        let cells: Vec<_> = list.cells(&["width".to_owned()]).unwrap().map(Result::unwrap).collect();
        assert_eq!(cells, [[Value::Text("640".to_owned())], [Value::Null]]);
        assert!(list.cells(&["height".to_owned()]).err().unwrap().to_string().contains("height"));
    }
}
