//! Everything that the user named, one file after the other, as one source.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::discover::{FileKind, Found, discover};
use super::ffrecord::FfrecordFile;
use super::folder::ImageFolder;
use super::list::ListFile;
use super::parquet::ParquetFile;
use super::webdataset::TarFile;
use super::{Cells, ColumnChoice, ImageKind, Row, Rows, Source, numbered};
use crate::{Error, Result};

/// Files of a store that are opened at the same time.
const OBJECTS_AT_A_TIME: usize = 16;

/// The files of an input and their rows, in the order in which they were named.
pub struct Input {
    files: Vec<File>,
    num_rows: u64,
    num_captions: usize,
    left_out: Vec<String>,
}

struct File {
    path: PathBuf,
    identity: Option<String>,
    listing: Option<String>,
    first_row: u64,
    rows: Box<dyn Source>,
}

impl Input {
    /// Opens what `sources` name (files, patterns, folders) and finds the columns; images are not read.
    ///
    /// # Errors
    /// If a name matches nothing, a file cannot be read as what it is, a column is missing, or there is no row at all.
    pub fn open(sources: &[String], choice: &ColumnChoice) -> Result<Self> {
        Self::open_without(sources, &[], choice)
    }

    /// The same without what lies in the folders `apart`, unless a source names a place in one of them.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn open_without(sources: &[String], apart: &[PathBuf], choice: &ColumnChoice) -> Result<Self> {
        let (mut files, mut num_rows) = (Vec::new(), 0);
        let (found, left_out) = discover(sources, apart)?;
        for file in open_all(found, choice)? {
            let mut file = file?;
            file.first_row = num_rows;
            num_rows += file.rows.num_rows();
            files.push(file);
        }
        if num_rows == 0 {
            return Err(Error::NoRows(sources.join(", ")));
        }
        let num_captions = files.iter().map(|file| file.rows.num_captions()).max().unwrap_or(1);
        Ok(Self { files, num_rows, num_captions, left_out })
    }

    /// The files in order; a folder of images is one of them.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// For each file what its store says of its contents; `None` for one on a disk.
    pub fn identities(&self) -> impl Iterator<Item = Option<&str>> {
        self.files.iter().map(|file| file.identity.as_deref())
    }

    /// For each file that is a folder of images on a disk the names and sizes of all that lies in it.
    pub fn listings(&self) -> impl Iterator<Item = Option<&str>> {
        self.files.iter().map(|file| file.listing.as_deref())
    }

    /// What lies in the folders that were named and is not read, counted by reason; a text a folder.
    #[must_use]
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// A row without a name is called by its number in the whole input; all rows have places for as many captions.
    fn named(&self, mut row: Row, number: u64) -> Row {
        row.key.get_or_insert_with(|| numbered(number));
        row.captions.resize(self.num_captions, None);
        row
    }

    fn first(&self) -> &dyn Source {
        self.files[0].rows.as_ref()
    }
}

impl Source for Input {
    fn num_rows(&self) -> u64 {
        self.num_rows
    }

    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        let end = range.end.min(self.num_rows);
        let pieces = self.files.iter().filter_map(move |file| {
            let file_end = file.first_row + file.rows.num_rows();
            let piece = range.start.max(file.first_row)..end.min(file_end);
            (!piece.is_empty()).then_some((file, piece))
        });
        // A file is opened when its first row is asked for, and closed before the next one.
        Ok(Box::new(pieces.flat_map(|(file, piece)| {
            let within = piece.start - file.first_row..piece.end - file.first_row;
            match file.rows.rows(within) {
                Ok(rows) => Box::new(rows.zip(piece).map(|(row, number)| row.map(|row| self.named(row, number)))),
                Err(error) => Box::new(std::iter::once(Err(error))) as Rows<'_>,
            }
        })))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        let cells: Vec<Cells<'_>> = self.files.iter().map(|file| file.rows.cells(columns)).collect::<Result<_>>()?;
        Ok(Box::new(cells.into_iter().flatten()))
    }

    fn num_captions(&self) -> usize {
        self.num_captions
    }

    fn longest_list(&self) -> usize {
        self.files.iter().map(|file| file.rows.longest_list()).max().unwrap_or(1)
    }

    fn image_kind(&self) -> ImageKind {
        self.first().image_kind()
    }

    fn columns(&self) -> BTreeMap<&'static str, String> {
        self.first().columns()
    }
}

/// Opens files in their order; several of a store at a time, since each waits for answers.
fn open_all(found: Vec<Found>, choice: &ColumnChoice) -> Result<Vec<Result<File>>> {
    if found.iter().all(|found| found.identity.is_none()) {
        return Ok(found.into_iter().map(|found| open(found, choice)).collect());
    }
    let threads = rayon::ThreadPoolBuilder::new().num_threads(found.len().min(OBJECTS_AT_A_TIME)).build();
    let failed =
        |error: rayon::ThreadPoolBuildError| Error::Start { what: "reading threads", reason: error.to_string() };
    Ok(threads.map_err(failed)?.install(|| found.into_par_iter().map(|found| open(found, choice)).collect()))
}

fn open(found: Found, choice: &ColumnChoice) -> Result<File> {
    let Found { place, kind, identity, listing } = found;
    let path = place.path.clone();
    let rows: Box<dyn Source> = match kind {
        FileKind::Parquet => Box::new(ParquetFile::open(place, choice)?),
        FileKind::List(format) => Box::new(ListFile::open(place, format, choice)?),
        FileKind::Ffrecord => Box::new(FfrecordFile::open(place, choice)?),
        FileKind::Tar => Box::new(TarFile::open(place, choice)?),
        FileKind::ImageFolder(images) => Box::new(ImageFolder::new(&path, images, choice)?),
    };
    Ok(File { path, identity, listing, first_row: 0, rows })
}
