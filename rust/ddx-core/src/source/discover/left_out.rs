//! What lies in a folder and is not read, counted by reason: nobody should have to find out from what is missing.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// Endings that are named for a reason.
const SHOWN: usize = 6;

/// Counts by reason, and by ending where the reason is about these.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LeftOut(BTreeMap<&'static str, (u64, BTreeMap<String, u64>)>);

impl LeftOut {
    /// Counts a thing, and the ending of its name if that is of interest.
    pub fn add(&mut self, reason: &'static str, name: Option<&Path>) {
        let (count, endings) = self.0.entry(reason).or_default();
        *count += 1;
        if let Some(name) = name {
            let ending = name.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
            *endings.entry(ending.map_or_else(|| "no ending".to_owned(), |it| format!(".{it}"))).or_default() += 1;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (reason, (count, endings))) in self.0.iter().enumerate() {
            write!(formatter, "{}{reason}: {count}", if index > 0 { ", " } else { "" })?;
            let mut counted: Vec<_> = endings.iter().collect();
            counted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let mut shown: Vec<String> =
                counted.iter().take(SHOWN).map(|(ending, count)| format!("{ending} {count}")).collect();
            if counted.len() > SHOWN {
                shown.push(format!("{} further endings", counted.len() - SHOWN));
            }
            if !shown.is_empty() {
                write!(formatter, " ({})", shown.join(", "))?;
            }
        }
        Ok(())
    }
}
