//! Runs a target case after case, and keeps what fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use crate::memory::peak_of;
use crate::mutate::{Random, mutate};

/// Cases of a target in `cargo test`.
const CASES: u64 = 300;
/// A case that takes longer than this never ends, however busy the machine is. Most take less than a millisecond.
const LONGEST_CASE: Duration = Duration::from_secs(1800);
/// Damaged files that ended in a new way are damaged further, so many of them.
const POOL: usize = 2048;
const MIB: usize = 1 << 20;

/// What is fuzzed.
pub struct Target<'a> {
    pub name: &'static str,
    /// Valid files and what they are called.
    pub files: Vec<(String, Vec<u8>)>,
    /// Pieces that mean something in such a file.
    pub words: &'a [&'a [u8]],
    /// Makes checksums right again, so that the damage behind them is seen.
    pub repair: fn(&str, &mut [u8]),
    /// Memory that a case may take, in MiB.
    pub max_mib: usize,
}

/// The panics since the last case began, by place; caught ones too, and those of other threads.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static RUNNING: AtomicBool = AtomicBool::new(false);
/// One target at a time: memory and panics are counted for the process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn unrepaired(_name: &str, _bytes: &mut [u8]) {}

impl Target<'_> {
    /// Damages the files and has `read` read each, at its path in a folder that holds all of them. `read` panics if it
    /// finds something wrong, and says otherwise how the reading ended: `Err` is the reader's own error, which none of
    /// the undamaged files may give.
    pub fn fuzz(&self, read: impl FnMut(&Path, &mut Random) -> Result<(), String>) {
        let _guard = alone();
        record_panics();
        RUNNING.store(true, Relaxed);
        let failures = Run::new(self, read).run();
        RUNNING.store(false, Relaxed);
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}

struct Run<'a, Read> {
    target: &'a Target<'a>,
    read: Read,
    folder: PathBuf,
    seed: u64,
    /// The files, and after them damaged ones; each with its number among the files.
    pool: Vec<(usize, Vec<u8>)>,
    outcomes: BTreeSet<String>,
    failures: BTreeMap<String, PathBuf>,
    caught: BTreeMap<String, u64>,
    largest: usize,
}

impl<'a, Read: FnMut(&Path, &mut Random) -> Result<(), String>> Run<'a, Read> {
    fn new(target: &'a Target<'a>, read: Read) -> Self {
        let seed = std::env::var("DDX_FUZZ_SEED").ok().map(|text| text.parse().unwrap());
        let fresh = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let folder = fuzz_folder().join(format!("{}-{}", target.name, std::process::id()));
        for (name, bytes) in &target.files {
            write(&folder.join(name), bytes);
        }
        Self {
            target,
            read,
            folder,
            seed: seed.unwrap_or_else(|| if seconds().is_some() { fresh() } else { 1 }),
            pool: target.files.iter().enumerate().map(|(index, (_, bytes))| (index, bytes.clone())).collect(),
            outcomes: BTreeSet::new(),
            failures: BTreeMap::new(),
            caught: BTreeMap::new(),
            largest: 0,
        }
    }

    /// Every failure with the file that led to it.
    fn run(mut self) -> Vec<String> {
        let Target { name, files, .. } = self.target;
        let begin = Instant::now();
        say(&format!("fuzz {name}: DDX_FUZZ_SEED={}, the file at hand is in {}", self.seed, self.folder.display()));
        let (case_began, dog) = watchdog(begin, name);
        let mut case = 0;
        if let Ok(path) = std::env::var("DDX_FUZZ_INPUT") {
            let file = files.iter().position(|(name, _)| path.ends_with(&flat(name))).unwrap_or(0);
            self.case(u64::MAX, file, std::fs::read(path).unwrap(), &mut Random::new(self.seed));
            case = CASES;
        }
        while seconds().map_or(case < CASES, |seconds| begin.elapsed().as_secs() < seconds) {
            case_began.store(begin.elapsed().as_millis() as u64, Relaxed);
            let mut random = Random::new(Random::new(self.seed).next() ^ case);
            let (file, bytes) = if case < files.len() as u64 {
                (case as usize, files[case as usize].1.clone())
            } else {
                self.damaged(&mut random)
            };
            self.case(case, file, bytes, &mut random);
            case += 1;
        }
        case_began.store(u64::MAX, Relaxed);
        dog.join().unwrap();
        std::fs::remove_dir_all(&self.folder).unwrap();
        let (took, outcomes) = (begin.elapsed().as_secs(), self.outcomes.len());
        let most = self.largest / MIB;
        say(&format!("fuzz {name}: {case} cases in {took} s, {outcomes} ways to end, at most {most} MiB"));
        for (panic, times) in &self.caught {
            say(&format!("fuzz {name}: caught {times} times: {panic}"));
        }
        self.failures.iter().map(|(what, path)| format!("{name}: {what}: {}", path.display())).collect()
    }

    fn damaged(&self, random: &mut Random) -> (usize, Vec<u8>) {
        let (file, mut bytes) = random.one_of(&self.pool).clone();
        let (_, donor) = random.one_of(&self.pool);
        mutate(&mut bytes, donor, self.target.words, random);
        if random.below(8) > 0 {
            (self.target.repair)(&self.target.files[file].0, &mut bytes);
        }
        (file, bytes)
    }

    fn case(&mut self, case: u64, file: usize, bytes: Vec<u8>, random: &mut Random) {
        let (name, whole) = &self.target.files[file];
        let path = self.folder.join(name);
        overwrite(&path, &bytes);
        panics().clear();
        let (ended, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(|| (self.read)(&path, random))));
        self.largest = self.largest.max(peak);
        let (panics, is_whole) = (std::mem::take(&mut *panics()), case < self.target.files.len() as u64);
        let failure = match &ended {
            Err(_) => Some(format!("panicked: {}", panics.last().map_or("", String::as_str))),
            Ok(_) if peak > self.target.max_mib * MIB => Some(format!("{} MiB of memory", peak / MIB)),
            Ok(Err(error)) if is_whole => Some(format!("not read, though undamaged: {error}")),
            Ok(_) => None,
        };
        if let Some(failure) = failure {
            self.keep(case, name, &bytes, &failure);
        } else {
            for panic in panics {
                let times = self.caught.entry(place(&panic)).or_default();
                *times += 1;
                if *times == 1 {
                    let kept = fuzz_folder().join("caught").join(format!("{}-{case}-{}", self.seed, flat(name)));
                    write(&kept, &bytes);
                }
            }
        }
        let outcome = ended.map_or_else(|_| "panic".to_owned(), |ended| ended.err().unwrap_or_default());
        if self.outcomes.insert(shape(&outcome)) && self.pool.len() < POOL {
            self.pool.push((file, bytes));
        }
        overwrite(&path, whole);
    }

    fn keep(&mut self, case: u64, name: &str, bytes: &[u8], failure: &str) {
        let what = if failure.starts_with("panicked") { place(failure) } else { shape(failure) };
        if self.failures.len() < 50 && !self.failures.contains_key(&what) {
            let file = format!("{}-{}-{case}-{}", self.target.name, self.seed, flat(name));
            let path = fuzz_folder().join("failed").join(file);
            write(&path, bytes);
            say(&format!("fuzz {}: case {case}: {failure}: {}", self.target.name, path.display()));
            self.failures.insert(what, path);
        }
    }
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz")
}

fn seconds() -> Option<u64> {
    std::env::var("DDX_FUZZ_SECONDS").ok().map(|text| text.parse().unwrap())
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    overwrite(path, bytes);
}

/// Some file systems wait for the disk when a file was cut to nothing first.
fn overwrite(path: &Path, bytes: &[u8]) {
    let mut file = File::options().write(true).create(true).truncate(false).open(path).unwrap();
    file.write_all(bytes).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
}

fn flat(name: &str) -> String {
    name.replace('/', "_")
}

/// Says it even if the process dies next: `println` keeps what a test prints until it has ended.
fn say(line: &str) {
    if seconds().is_some() {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

fn panics() -> MutexGuard<'static, Vec<String>> {
    PANICS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Panics while a target runs are noted instead of printed.
fn record_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if RUNNING.load(Relaxed) {
                let place = panic.location().map(ToString::to_string).unwrap_or_default();
                let message = panic.payload().downcast_ref::<&str>().copied();
                let message = message.or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str));
                let message = message.unwrap_or_default();
                panics().push(format!("{message} [{place}]"));
            } else {
                print(panic);
            }
        }));
    });
}

/// Where a panic happened: the same place is the same finding, whatever the numbers in the message.
fn place(panic: &str) -> String {
    let (message, place) = panic.rsplit_once('[').unwrap_or((panic, ""));
    format!("{} [{place}", shape(message))
}

/// The beginning of a message without the numbers and names in it.
fn shape(message: &str) -> String {
    let is_word =
        |word: &str| word.chars().all(|c| c.is_ascii_alphabetic() || matches!(c, '.' | ',' | ':' | '(' | ')'));
    let words = message.split_ascii_whitespace().map(|word| if is_word(word) { word } else { "#" });
    words.take(12).collect::<Vec<_>>().join(" ")
}

/// Ends the process when a case does not end.
fn watchdog(begin: Instant, name: &'static str) -> (Arc<AtomicU64>, std::thread::JoinHandle<()>) {
    let case_began = Arc::new(AtomicU64::new(0));
    let seen = case_began.clone();
    let dog = std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let since = seen.load(Relaxed);
            if since == u64::MAX {
                return;
            }
            if begin.elapsed().saturating_sub(Duration::from_millis(since)) > LONGEST_CASE {
                let _ = writeln!(std::io::stderr(), "fuzz {name}: a case takes longer than {LONGEST_CASE:?}");
                std::process::abort();
            }
        }
    });
    (case_began, dog)
}
