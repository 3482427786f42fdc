//! Python face of `ddx_core::source` and `ddx_core::ingest`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ddx_core::fetch::FetchConfig;
use ddx_core::image::Size;
use ddx_core::ingest::{Ingest as CoreIngest, IngestConfig, Item, PartEnd as CorePartEnd, Poll, RowRecord};
use ddx_core::source::{Charset, ColumnChoice, Input as CoreInput, Selection, Source, pick, select};
use pyo3::prelude::*;

use crate::buffer::{Buffer, Element};
use crate::error::to_python;

/// How long a wait may last before Python's signals are looked at.
const PATIENCE: Duration = Duration::from_millis(100);

/// An opened input: rows with a caption and an image.
#[pyclass(frozen, module = "ddx._core")]
struct Input {
    source: Arc<dyn Source>,
    opened: Arc<Opened>,
}

/// What is known of an input whichever of its rows are taken.
struct Opened {
    files: Vec<String>,
    identities: Vec<Option<String>>,
    listings: Vec<Option<String>>,
    left_out: Vec<String>,
    overrides_utf8: bool,
}

#[pymethods]
impl Input {
    #[new]
    // The keyword arguments of one Python constructor; what Python hands over is owned.
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value)]
    #[pyo3(signature = (
        sources, *, url_column=None, image_column=None, path_column=None, caption_columns=Vec::new(), key_column=None,
        max_captions=None, caption_encoding=None, captions_only=false, apart=Vec::new(), filter=None, unique=false,
        limit=None, shuffle=None,
    ))]
    fn new(
        py: Python<'_>,
        sources: Vec<String>,
        url_column: Option<String>,
        image_column: Option<String>,
        path_column: Option<String>,
        caption_columns: Vec<String>,
        key_column: Option<String>,
        max_captions: Option<usize>,
        caption_encoding: Option<&str>,
        captions_only: bool,
        apart: Vec<PathBuf>,
        filter: Option<String>,
        unique: bool,
        limit: Option<u64>,
        shuffle: Option<u64>,
    ) -> PyResult<Self> {
        let choice = ColumnChoice {
            url: url_column,
            image: image_column,
            path: path_column,
            captions: caption_columns,
            max_captions,
            charset: caption_encoding.map_or(Ok(Charset::default()), Charset::named).map_err(to_python)?,
            key: key_column,
            captions_only,
        };
        let selection = Selection { filter, unique, limit, shuffle };
        let open = || {
            let input = CoreInput::open_without(&sources, &apart, &choice)?;
            let opened = Opened {
                files: input.files().map(|path| path.to_string_lossy().into_owned()).collect(),
                identities: input.identities().map(|identity| identity.map(str::to_owned)).collect(),
                listings: input.listings().map(|listing| listing.map(str::to_owned)).collect(),
                left_out: input.left_out().to_vec(),
                overrides_utf8: choice.charset.overrides_utf8(),
            };
            Ok(Self { source: select(Arc::new(input), &selection)?, opened: Arc::new(opened) })
        };
        py.detach(open).map_err(to_python)
    }

    /// The rows of these numbers, which rise.
    #[allow(clippy::needless_pass_by_value)] // what Python hands over is owned
    fn pick(&self, rows: Vec<u64>) -> PyResult<Self> {
        let source = pick(self.source.clone(), &rows).map_err(to_python)?;
        Ok(Self { source, opened: self.opened.clone() })
    }

    #[getter]
    fn rows(&self) -> u64 {
        self.source.num_rows()
    }

    /// The files in order; a folder of images is one of them.
    #[getter]
    fn files(&self) -> Vec<String> {
        self.opened.files.clone()
    }

    /// For each file what its store says of its contents; None for one on a disk.
    #[getter]
    fn identities(&self) -> Vec<Option<String>> {
        self.opened.identities.clone()
    }

    /// For each file that is a folder of images on a disk the names and sizes of all that lies in it.
    #[getter]
    fn listings(&self) -> Vec<Option<String>> {
        self.opened.listings.clone()
    }

    /// What lies in the folders that were named and is not read, counted by reason; a text a folder.
    #[getter]
    fn left_out(&self) -> Vec<String> {
        self.opened.left_out.clone()
    }

    /// Whether the named encoding reads otherwise what is UTF-8 too.
    #[getter]
    fn overrides_utf8(&self) -> bool {
        self.opened.overrides_utf8
    }

    /// The captions that a row has places for.
    #[getter]
    fn num_captions(&self) -> usize {
        self.source.num_captions()
    }

    /// The longest list of captions, which may be longer than what is kept of it.
    #[getter]
    fn longest_list(&self) -> usize {
        self.source.longest_list()
    }

    #[getter]
    fn columns(&self) -> BTreeMap<&'static str, String> {
        self.source.columns()
    }

    #[getter]
    fn image_kind(&self) -> &'static str {
        self.source.image_kind().name()
    }
}

/// Pictures of one part.
#[pyclass(frozen, module = "ddx._core")]
struct Batch {
    #[pyo3(get)]
    part: u64,
    #[pyo3(get)]
    rows: Vec<u64>,
    #[pyo3(get)]
    count: usize,
    #[pyo3(get)]
    images: Py<Buffer>,
}

/// The records of a part.
#[pyclass(frozen, module = "ddx._core")]
struct PartEnd {
    inner: CorePartEnd,
}

impl PartEnd {
    fn each<T>(&self, field: impl Fn(&RowRecord) -> T) -> Vec<T> {
        self.inner.records.iter().map(field).collect()
    }
}

#[pymethods]
impl PartEnd {
    #[getter]
    fn part(&self) -> u64 {
        self.inner.part
    }

    #[getter]
    fn first_row(&self) -> u64 {
        self.inner.first_row
    }

    #[getter]
    fn num_rows(&self) -> usize {
        self.inner.records.len()
    }

    #[getter]
    fn key(&self) -> Vec<String> {
        self.each(|record| record.key.clone())
    }

    #[getter]
    fn captions(&self) -> Vec<Vec<String>> {
        self.each(|record| record.captions.clone())
    }

    #[getter]
    fn source(&self) -> Vec<String> {
        self.each(|record| record.source.clone())
    }

    #[getter]
    fn status(&self) -> Vec<String> {
        self.each(|record| record.status.slug().into_owned())
    }

    #[getter]
    fn detail(&self) -> Vec<String> {
        self.each(|record| record.detail.clone())
    }

    #[getter]
    fn width(&self) -> Vec<u32> {
        self.each(|record| record.width)
    }

    #[getter]
    fn height(&self) -> Vec<u32> {
        self.each(|record| record.height)
    }

    #[getter]
    fn crop(&self) -> Vec<(f64, f64, f64, f64)> {
        self.each(|record| (record.crop.left, record.crop.top, record.crop.width, record.crop.height))
    }

    #[getter]
    fn hash(&self) -> Vec<String> {
        self.each(|record| record.sha256.map(|digest| hex(&digest)).unwrap_or_default())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// An iterator over `Batch` and `PartEnd`.
#[pyclass(frozen, module = "ddx._core")]
struct Ingest {
    inner: Mutex<CoreIngest>,
    batch_size: usize,
}

#[pymethods]
impl Ingest {
    #[new]
    // The keyword arguments of one Python constructor; what Python hands over is owned.
    #[allow(clippy::too_many_arguments, clippy::needless_pass_by_value, clippy::fn_params_excessive_bools)]
    #[pyo3(signature = (
        input, *, sizes, part_rows, batch_size, parts,
        concurrency=64, per_host=8, host_rate=None, connect_timeout_s=10.0, idle_timeout_s=15.0, total_timeout_s=60.0,
        max_body_bytes=64 << 20, retries=3, backoff_s=0.5, allow_private_hosts=false, respect_opt_out=true,
        user_agent=None, max_pixels=100_000_000, max_upscale=1.0, tiff=false, verify_checksums=true, prefetch_rows=None, decode_threads=None,
        byte_budget=256 << 20, pixel_budget=128_000_000,
    ))]
    fn new(
        py: Python<'_>,
        input: &Input,
        sizes: Vec<(u32, u32)>,
        part_rows: u64,
        batch_size: usize,
        parts: Vec<u64>,
        concurrency: usize,
        per_host: usize,
        host_rate: Option<f64>,
        connect_timeout_s: f64,
        idle_timeout_s: f64,
        total_timeout_s: f64,
        max_body_bytes: usize,
        retries: u32,
        backoff_s: f64,
        allow_private_hosts: bool,
        respect_opt_out: bool,
        user_agent: Option<String>,
        max_pixels: u64,
        max_upscale: f64,
        tiff: bool,
        verify_checksums: bool,
        prefetch_rows: Option<usize>,
        decode_threads: Option<usize>,
        byte_budget: usize,
        pixel_budget: u64,
    ) -> PyResult<Self> {
        let fetch = FetchConfig {
            concurrency,
            per_host,
            host_interval: host_rate.map_or(Ok(Duration::ZERO), |rate| seconds("host_rate", 1.0 / rate))?,
            connect_timeout: seconds("connect_timeout_s", connect_timeout_s)?,
            idle_timeout: seconds("idle_timeout_s", idle_timeout_s)?,
            total_timeout: seconds("total_timeout_s", total_timeout_s)?,
            max_body_bytes,
            retries,
            backoff: seconds("backoff_s", backoff_s)?,
            allow_private_hosts,
            respect_opt_out,
            user_agent: user_agent.unwrap_or_else(|| concat!("ddx/", env!("CARGO_PKG_VERSION")).to_owned()),
        };
        let sizes: Vec<Size> = sizes.into_iter().map(|(width, height)| Size { width, height }).collect();
        let config = IngestConfig {
            part_rows,
            batch_size,
            prefetch_rows: prefetch_rows
                .unwrap_or_else(|| IngestConfig::default_prefetch_rows(input.source.image_kind(), &sizes, batch_size)),
            sizes,
            decode_threads: decode_threads.unwrap_or_else(available_threads),
            max_pixels,
            max_upscale,
            tiff,
            verify_checksums,
            byte_budget,
            pixel_budget,
            fetch,
        };
        let source = input.source.clone();
        let inner = py.detach(|| CoreIngest::start(source, &parts, config)).map_err(to_python)?;
        Ok(Self { inner: Mutex::new(inner), batch_size })
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        loop {
            let poll = py.detach(|| self.inner.lock().unwrap_or_else(PoisonError::into_inner).poll(PATIENCE));
            match poll.map_err(to_python)? {
                Poll::Item(item) => return self.to_python(py, item).map(Some),
                Poll::Done => return Ok(None),
                Poll::Pending => py.check_signals()?,
            }
        }
    }

    /// Counters since the start.
    fn stats(&self, py: Python<'_>) -> BTreeMap<&'static str, u64> {
        py.detach(|| {
            let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let stats = inner.stats();
            let (rows, ok) = (stats.rows.load(Ordering::Relaxed), stats.ok.load(Ordering::Relaxed));
            BTreeMap::from([
                ("rows", rows),
                ("ok", ok),
                ("failed", rows.saturating_sub(ok)),
                ("bytes", stats.bytes.load(Ordering::Relaxed)),
                ("pixels", stats.pixels.load(Ordering::Relaxed)),
                ("fetching", stats.fetching.load(Ordering::Relaxed)),
                ("queued", inner.num_queued() as u64),
            ])
        })
    }

    /// Stops the threads; iterating afterwards raises `CoreError`.
    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.lock().unwrap_or_else(PoisonError::into_inner).close());
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }
}

impl Ingest {
    fn to_python(&self, py: Python<'_>, item: Item) -> PyResult<Py<PyAny>> {
        match item {
            Item::Batch(batch) => {
                let (width, height) = (batch.size.width as usize, batch.size.height as usize);
                let shape = [self.batch_size, height, width, 3];
                let images = Py::new(py, Buffer::new(batch.images, Element::U8, &shape))?;
                let batch = Batch { part: batch.part, count: batch.rows.len(), rows: batch.rows, images };
                Ok(Py::new(py, batch)?.into_any())
            }
            Item::PartEnd(inner) => Ok(Py::new(py, PartEnd { inner })?.into_any()),
        }
    }
}

fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn seconds(name: &'static str, value: f64) -> PyResult<Duration> {
    let wanted = || "a number of seconds above 0".to_owned();
    let valid = Duration::try_from_secs_f64(value).ok().filter(|duration| !duration.is_zero());
    valid.ok_or_else(|| to_python(ddx_core::Error::Setting { name, value: value.to_string(), wanted: wanted() }))
}

/// Adds the ingest classes to `ddx._core`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Input>()?;
    module.add_class::<Batch>()?;
    module.add_class::<PartEnd>()?;
    module.add_class::<Ingest>()
}
