//! Rows that are left out before anything is fetched: by their metadata, by their address, by number.

use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use super::filter::Filter;
use super::{Cells, ImageKind, Rows, Source, Value};
use crate::{Error, Result};

/// Gaps of fewer rows than this are read and thrown away; opening a file anew costs more.
const GAP_READ_THROUGH: u64 = 512;

/// What is taken of an input.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// A condition on the columns, such as `aesthetic >= 5.5 and width >= 512`.
    pub filter: Option<String>,
    /// Whether of rows with the same URL or path only the first is taken.
    pub unique: bool,
    /// How many rows are taken at most.
    pub limit: Option<u64>,
    /// Which ones: the first, or as many at random by this seed, in the order of the input.
    pub shuffle: Option<u64>,
}

/// The selected rows of a source, in its order; reads the metadata of all rows once, if it must.
///
/// # Errors
/// If the filter is no condition or names an unknown column, nothing passes, or a file cannot be read.
pub fn select(source: Arc<dyn Source>, selection: &Selection) -> Result<Arc<dyn Source>> {
    if selection.limit == Some(0) {
        return Err(Error::Setting { name: "limit", value: "0".to_owned(), wanted: "at least 1".to_owned() });
    }
    let all = source.num_rows();
    let mut rows = Runs::default();
    if selection.filter.is_none() && !selection.unique {
        rows.push(0..all);
    } else {
        for row in passing(source.as_ref(), selection)? {
            let row = row?;
            rows.push(row..row + 1);
            if selection.shuffle.is_none() && selection.limit == Some(rows.num) {
                break;
            }
        }
    }
    if rows.num == 0 {
        let filter = selection.filter.clone().unwrap_or_default();
        return Err(Error::NothingPasses { filter, rows: all });
    }
    if let Some(limit) = selection.limit.filter(|limit| *limit < rows.num) {
        rows = match selection.shuffle {
            Some(seed) => rows.sample(limit, seed),
            None => rows.first(limit),
        };
    }
    Ok(if rows.num == all { source } else { Arc::new(Selected { source, rows }) })
}

/// The rows of a source with these numbers, which rise.
///
/// # Errors
/// If a number is out of range or does not rise.
pub fn pick(source: Arc<dyn Source>, numbers: &[u64]) -> Result<Arc<dyn Source>> {
    let mut rows = Runs::default();
    for &number in numbers {
        let last = rows.runs.last().map_or(0, |(_, run)| run.end);
        if number < last || number >= source.num_rows() {
            let wanted = format!("numbers that rise, below {}", source.num_rows());
            return Err(Error::Setting { name: "rows", value: number.to_string(), wanted });
        }
        rows.push(number..number + 1);
    }
    Ok(Arc::new(Selected { source, rows }))
}

/// The numbers of the rows that pass the filter and are the first with their address.
fn passing<'a>(source: &'a dyn Source, selection: &Selection) -> Result<impl Iterator<Item = Result<u64>> + 'a> {
    let filter = selection.filter.as_deref().map(Filter::parse).transpose()?;
    let mut columns = filter.as_ref().map(|filter| filter.columns().to_vec()).unwrap_or_default();
    let address = if selection.unique {
        if matches!(source.image_kind(), ImageKind::Bytes | ImageKind::Caption) {
            return Err(Error::NoAddress);
        }
        columns.push(source.columns()["image"].clone());
        Some(columns.len() - 1)
    } else {
        None
    };
    let mut seen = HashSet::new();
    let mut cells = source.cells(&columns)?;
    let mut number = 0;
    let mut takes = move |cells: &[Value]| {
        filter.as_ref().is_none_or(|filter| filter.takes(cells))
            && address.is_none_or(|index| cells[index].text().is_none_or(|text| seen.insert(digest(&text))))
    };
    Ok(std::iter::from_fn(move || {
        loop {
            let row = number;
            number += 1;
            match cells.next()? {
                Ok(cells) if takes(&cells) => return Some(Ok(row)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }))
}

/// 64 bits of a text: eight bytes a row where the text has a hundred.
fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new(); // its keys are fixed, so every run decides alike
    value.hash(&mut hasher);
    hasher.finish()
}

/// Rows in rising order, as runs.
#[derive(Default)]
struct Runs {
    /// How many rows come before each run, and the run.
    runs: Vec<(u64, Range<u64>)>,
    num: u64,
}

impl Runs {
    fn push(&mut self, range: Range<u64>) {
        let length = range.end - range.start;
        match self.runs.last_mut() {
            Some((_, last)) if last.end == range.start => last.end = range.end,
            _ => self.runs.push((self.num, range)),
        }
        self.num += length;
    }

    fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().flat_map(|(_, run)| run.clone())
    }

    fn first(&self, limit: u64) -> Self {
        let mut taken = Self::default();
        for (before, run) in &self.runs {
            if *before < limit {
                taken.push(run.start..run.end.min(run.start + limit - before));
            }
        }
        taken
    }

    /// `limit` rows that a hash of seed and number picks: every larger sample of the seed holds every smaller one.
    fn sample(&self, limit: u64, seed: u64) -> Self {
        let mut smallest = BinaryHeap::new();
        for row in self.iter() {
            let rank = (digest(&(seed, row)), row);
            if (smallest.len() as u64) < limit {
                smallest.push(rank);
            } else if smallest.peek().is_some_and(|largest| rank < *largest) {
                smallest.pop();
                smallest.push(rank);
            }
        }
        let mut rows: Vec<u64> = smallest.into_iter().map(|(_, row)| row).collect();
        rows.sort_unstable();
        let mut taken = Self::default();
        for row in rows {
            taken.push(row..row + 1);
        }
        taken
    }

    /// The runs that hold the rows `range` of the selection, cut to it.
    fn within(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let (start, end) = (range.start, range.end);
        let first = self.runs.partition_point(|(before, _)| *before <= start).saturating_sub(1);
        self.runs[first..].iter().take_while(move |(before, _)| *before < end).map(move |(before, run)| {
            let from = run.start + start.saturating_sub(*before);
            from..run.end.min(run.start + (end - before))
        })
    }
}

/// A source of which some rows are left out.
struct Selected {
    source: Arc<dyn Source>,
    rows: Runs,
}

impl Source for Selected {
    fn num_rows(&self) -> u64 {
        self.rows.num
    }

    fn rows(&self, range: Range<u64>) -> Result<Rows<'_>> {
        // Runs with short gaps between them are read in one go.
        let mut spans: Vec<(Range<u64>, Vec<Range<u64>>)> = Vec::new();
        for run in self.rows.within(&range) {
            match spans.last_mut() {
                Some((span, runs)) if run.start - span.end <= GAP_READ_THROUGH => {
                    span.end = run.end;
                    runs.push(run);
                }
                _ => spans.push((run.clone(), vec![run])),
            }
        }
        Ok(Box::new(spans.into_iter().flat_map(|(span, runs)| match self.source.rows(span.clone()) {
            Err(error) => Box::new(std::iter::once(Err(error))) as Rows<'_>,
            Ok(rows) => {
                let mut runs = runs.into_iter().peekable();
                Box::new(rows.zip(span).filter_map(move |(row, number)| {
                    while runs.peek().is_some_and(|run| run.end <= number) {
                        runs.next();
                    }
                    (row.is_err() || runs.peek().is_some_and(|run| run.contains(&number))).then_some(row)
                }))
            }
        })))
    }

    fn cells(&self, columns: &[String]) -> Result<Cells<'_>> {
        let mut cells = self.source.cells(columns)?;
        let mut next = 0;
        Ok(Box::new(self.rows.iter().map_while(move |row| {
            let skipped = usize::try_from(row - next).ok()?;
            next = row + 1;
            cells.nth(skipped)
        })))
    }

    fn num_captions(&self) -> usize {
        self.source.num_captions()
    }

    fn longest_list(&self) -> usize {
        self.source.longest_list()
    }

    fn image_kind(&self) -> ImageKind {
        self.source.image_kind()
    }

    fn columns(&self) -> BTreeMap<&'static str, String> {
        self.source.columns()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{ColumnChoice, Input};

    /// `num` rows: URL `http://x/<row % 10>`, width = row.
    fn source(num: u64) -> (tempfile::TempDir, Arc<dyn Source>) {
        let folder = tempfile::tempdir().unwrap();
        for (file, rows) in [("a.csv", 0..num / 2), ("b.csv", num / 2..num)] {
            let lines: Vec<_> = rows.map(|row| format!("http://x/{},caption,{row}", row % 10)).collect();
            std::fs::write(folder.path().join(file), format!("url,text,width\n{}\n", lines.join("\n"))).unwrap();
        }
        let input = Input::open(&[folder.path().to_string_lossy().into_owned()], &ColumnChoice::default()).unwrap();
        (folder, Arc::new(input))
    }

    fn keys(source: &dyn Source, range: Range<u64>) -> Vec<u64> {
        source.rows(range).unwrap().map(|row| row.unwrap().key.unwrap().parse().unwrap()).collect()
    }

    fn selected(num: u64, selection: &Selection) -> Vec<u64> {
        let (_folder, source) = source(num);
        let selected = select(source, selection).unwrap();
        let all = keys(selected.as_ref(), 0..selected.num_rows());
        assert_eq!(all.len() as u64, selected.num_rows());
        for start in [0, 1, all.len() / 2, all.len().saturating_sub(1)] {
            for end in [start, start + 1, all.len()] {
                let (end, range) = (end.min(all.len()), start as u64..end.min(all.len()) as u64);
                assert_eq!(keys(selected.as_ref(), range), all[start.min(end)..end]);
            }
        }
        all
    }

    fn filter(text: &str) -> Selection {
        Selection { filter: Some(text.to_owned()), ..Selection::default() }
    }

    #[test]
    fn any_range_of_a_selection_is_the_same_rows() {
        let wide = |row: &u64| (1000..1005).contains(row) || *row >= 3990;
        let expected: Vec<u64> = (0..4000).filter(wide).collect();
        assert_eq!(selected(4000, &filter("(width >= 1000 and width < 1005) or width >= 3990")), expected);
        assert_eq!(selected(40, &filter("width < 40")), (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn of_equal_addresses_the_first_is_taken() {
        assert_eq!(selected(40, &Selection { unique: true, ..filter("width >= 5") }), (5..15).collect::<Vec<_>>());
    }

    #[test]
    fn a_limit_takes_the_first_rows_or_random_ones() {
        let limited = |limit, shuffle| Selection { limit: Some(limit), shuffle, ..filter("width >= 10") };
        assert_eq!(selected(100, &limited(3, None)), [10, 11, 12]);
        assert_eq!(selected(100, &limited(1000, None)).len(), 90);
        let (small, large) = (selected(100, &limited(10, Some(1))), selected(100, &limited(20, Some(1))));
        assert_eq!((small.len(), large.len()), (10, 20));
        assert!(small.iter().all(|row| large.contains(row) && *row >= 10));
        assert_ne!(small, selected(100, &limited(10, Some(2))));
        assert_ne!(small, (10..20).collect::<Vec<_>>());
    }

    #[test]
    fn rows_are_picked_by_number() {
        let (_folder, source) = source(20);
        let picked = pick(source.clone(), &[0, 3, 4, 19]).unwrap();
        assert_eq!(keys(picked.as_ref(), 0..4), [0, 3, 4, 19]);
        assert_eq!(keys(picked.as_ref(), 1..3), [3, 4]);
        assert!(pick(source.clone(), &[4, 3]).is_err());
        assert!(pick(source, &[20]).is_err());
    }

    #[test]
    fn a_selection_of_nothing_is_refused() {
        let refused = |selection| {
            let (_folder, source) = source(10);
            select(source, &selection).err().unwrap()
        };
        assert!(matches!(refused(filter("width > 100")), Error::NothingPasses { rows: 10, .. }));
        assert!(matches!(refused(filter("height > 100")), Error::NoSuchColumn { .. }));
        assert!(matches!(refused(filter("width >")), Error::Filter { .. }));
        assert!(matches!(refused(Selection { limit: Some(0), ..Selection::default() }), Error::Setting { .. }));
    }
}
