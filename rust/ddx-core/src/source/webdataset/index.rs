//! Which members of a tar are a row: neighbours of one name, as in `WebDataset`, and those of that name further on.
//!
//! `tar cf x.tar *.jpg *.txt` puts all images before all captions. Such members join the row of their name, unless it
//! has one of their extension: then the name is there twice, and begins another row.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::member::{Dot, Member, Members, Stop, read_json};
use crate::source::Charset;
use crate::source::place::Place;
use crate::{Error, Result};

/// The rows of a tar.
pub(super) struct Index {
    pub dot: Dot,
    /// Where each row's first member begins.
    offsets: Vec<u64>,
    /// Where runs of further members of a row begin that are not its first one's neighbours.
    strays: BTreeMap<u32, Vec<u64>>,
    num_members: usize,
    pub extensions: BTreeSet<String>,
    /// The fields of the first JSON, and those of them that are lists.
    pub json_names: Vec<String>,
    pub json_lists: BTreeSet<String>,
    /// Why the tar cannot be read to its end.
    pub broken: Option<String>,
}

impl Index {
    /// Reads the members' headers and the first JSON.
    ///
    /// # Errors
    /// If the file cannot be opened, or is no tar.
    pub fn read(place: &Place, dot: Dot, charset: Charset) -> Result<Self> {
        let mut members = Members::open(place, dot, 0)?;
        let mut index = Self {
            dot,
            offsets: Vec::new(),
            strays: BTreeMap::new(),
            num_members: 0,
            extensions: BTreeSet::new(),
            json_names: Vec::new(),
            json_lists: BTreeSet::new(),
            broken: None,
        };
        let mut rows = Known::default();
        while let Some(member) = members.next() {
            let member = match member {
                Ok(member) => member,
                Err(Stop::Unreachable(error)) => return Err(error),
                Err(Stop::Damaged(reason)) if index.num_members == 0 => {
                    return Err(Error::NotATar { path: place.path.clone(), reason });
                }
                Err(Stop::Damaged(reason)) => {
                    index.broken = Some(reason);
                    break;
                }
            };
            index.num_members += 1;
            match rows.place(&member) {
                Found::Row => index.offsets.push(member.begin),
                Found::Neighbour => {}
                Found::Stray(row) => index.strays.entry(row).or_default().push(member.begin),
            }
            if index.json_names.is_empty() && member.extension == "json" {
                let json = read_json(&mut members.reader, &member, charset);
                let (json, _) = json.map_err(|error| Error::object(&place.path, error))?;
                index.json_lists = json.iter().filter(|(_, it)| it.is_array()).map(|(name, _)| name.clone()).collect();
                index.json_names = json.into_iter().map(|(name, _)| name).collect();
            }
            index.extensions.insert(member.extension);
        }
        Ok(index)
    }

    pub fn num_rows(&self) -> u64 {
        self.offsets.len() as u64
    }

    pub fn num_members(&self) -> usize {
        self.num_members
    }

    /// The members of each row from `first` on.
    pub fn samples(&self, place: &Place, first: u64) -> Result<Samples<'_>> {
        let members = Members::open(place, self.dot, 0)?;
        Ok(Samples { index: self, members, row: first as usize, ahead: None })
    }
}

/// What a member is to the rows before it.
enum Found {
    Row,
    Neighbour,
    /// It begins a run of members of this row.
    Stray(u32),
}

/// The rows so far, by a hash of their key.
#[derive(Default)]
struct Known {
    /// The last row of a key, and the hashes of its extensions.
    rows: HashMap<u64, (u32, Vec<u32>)>,
    num_rows: u32,
    last: Option<u64>,
}

impl Known {
    fn place(&mut self, member: &Member) -> Found {
        let (key, extension) = (hash(&member.key), hash(&member.extension) as u32);
        let follows = self.last.replace(key) == Some(key);
        if let Some((row, extensions)) = self.rows.get_mut(&key)
            && !extensions.contains(&extension)
        {
            extensions.push(extension);
            return if follows { Found::Neighbour } else { Found::Stray(*row) };
        }
        self.rows.insert(key, (self.num_rows, vec![extension]));
        self.num_rows += 1;
        Found::Row
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new(); // its keys are fixed
    text.hash(&mut hasher);
    hasher.finish()
}

/// The members of rows, row by row; after an error nothing comes.
pub(super) struct Samples<'a> {
    index: &'a Index,
    pub members: Members,
    row: usize,
    /// The member behind the last row's, which is often the first of the next.
    ahead: Option<Member>,
}

impl Samples<'_> {
    /// Adds the members of one name that begin there.
    fn take_run(&mut self, begin: u64, sample: &mut Vec<Member>) -> Result<()> {
        let mut next = self.ahead.take().filter(|member| member.begin == begin);
        if next.is_none() {
            self.members.go_to(begin);
        }
        loop {
            let member = match next.take().map(Ok).or_else(|| self.members.next()) {
                Some(Ok(member)) => member,
                Some(Err(Stop::Unreachable(error))) => return Err(error),
                Some(Err(Stop::Damaged(_))) | None => return Ok(()),
            };
            let belongs = |first: &Member| first.key == member.key;
            let is_twice = sample.iter().any(|other| other.extension == member.extension);
            if sample.first().is_some_and(|first| !belongs(first)) || is_twice {
                self.ahead = Some(member);
                return Ok(());
            }
            sample.push(member);
        }
    }
}

impl Iterator for Samples<'_> {
    type Item = Result<Vec<Member>>;

    fn next(&mut self) -> Option<Self::Item> {
        let &begin = self.index.offsets.get(self.row)?;
        let strays = self.index.strays.get(&(self.row as u32)).map_or(&[][..], Vec::as_slice);
        self.row += 1;
        let mut sample = Vec::new();
        for &begin in [begin].iter().chain(strays) {
            if let Err(error) = self.take_run(begin, &mut sample) {
                self.row = usize::MAX;
                return Some(Err(error));
            }
        }
        Some(Ok(sample))
    }
}
