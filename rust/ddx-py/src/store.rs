//! Python face of `ddx_core::store`.
#![allow(clippy::needless_pass_by_value)] // arguments from Python and errors for `map_err` arrive by value

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::slice;

use ddx_core::store::{
    ArraySpec, BatchReader, Checked, Commit, Part, ReaderOptions, RowArray, ShardData, StoreWriter, Verifier,
};
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Map, Value};

use crate::buffer::{Buffer, Element};
use crate::error::to_python;

/// Numbers of the chunks that exist (None: the first ones), and their bytes.
type Content = (Option<Vec<u32>>, PyBuffer<u8>);

/// Writes one store; see `_core.pyi`.
#[pyclass(frozen, name = "StoreWriter", module = "ddx._core")]
pub struct PyStoreWriter {
    inner: StoreWriter,
}

#[pymethods]
impl PyStoreWriter {
    /// Creates the metadata of a store and the arrays without parts, the root's `zarr.json` last.
    #[staticmethod]
    fn create(
        py: Python<'_>,
        path: PathBuf,
        arrays: &str,
        attributes: &str,
        fingerprint: &str,
        whole: BTreeMap<String, PyBuffer<u8>>,
    ) -> PyResult<Self> {
        let arrays: Vec<ArraySpec> = serde_json::from_str(arrays).map_err(bad_json)?;
        let attributes: Map<String, Value> = serde_json::from_str(attributes).map_err(bad_json)?;
        let contents = whole_shards(&whole)?;
        let create = || StoreWriter::create(&path, arrays, &attributes, fingerprint, &contents);
        Ok(Self { inner: py.detach(create).map_err(to_python)? })
    }

    /// Gives a store more rows and parts, the root's `zarr.json` last.
    #[staticmethod]
    fn grow(py: Python<'_>, path: PathBuf, rows: u64, num_parts: u64, attributes: &str) -> PyResult<()> {
        let attributes: Map<String, Value> = serde_json::from_str(attributes).map_err(bad_json)?;
        py.detach(|| StoreWriter::grow(&path, rows, num_parts, &attributes)).map_err(to_python)
    }

    /// Creates a store of so many rows and parts with the arrays of another.
    #[staticmethod]
    fn create_like(
        py: Python<'_>,
        path: PathBuf,
        source: PathBuf,
        rows: u64,
        num_parts: u64,
        attributes: &str,
    ) -> PyResult<()> {
        let attributes: Map<String, Value> = serde_json::from_str(attributes).map_err(bad_json)?;
        py.detach(|| StoreWriter::create_like(&path, &source, rows, num_parts, &attributes)).map_err(to_python)
    }

    /// Opens a store that `create` made.
    #[staticmethod]
    fn open(path: PathBuf, fingerprint: &str) -> PyResult<Self> {
        Ok(Self { inner: StoreWriter::open(&path, fingerprint).map_err(to_python)? })
    }

    /// Writes a part's shards and files, then its commit record. Returns the record as JSON.
    ///
    /// `replace`: the part is done already; the old one counts until the new one is whole. `links`: files of another
    /// store that become this one's, by their paths in it.
    #[pyo3(signature = (*, part, first_row, rows, ok, failed, shards, files, replace=false, links=BTreeMap::new()))]
    #[allow(clippy::too_many_arguments)] // one keyword each in Python
    fn write_part(
        &self,
        py: Python<'_>,
        part: u64,
        first_row: u64,
        rows: u64,
        ok: u64,
        failed: BTreeMap<String, u64>,
        shards: BTreeMap<String, Content>,
        files: BTreeMap<String, PyBuffer<u8>>,
        replace: bool,
        links: BTreeMap<String, PathBuf>,
    ) -> PyResult<String> {
        let contents = shards
            .iter()
            .map(|(array, (ids, buffer))| {
                Ok(ShardData { array, ids: ids.as_deref(), data: contiguous(array, buffer)? })
            })
            .collect::<PyResult<Vec<_>>>()?;
        let others = files
            .iter()
            .map(|(path, buffer)| Ok((path.clone(), contiguous(path, buffer)?)))
            .collect::<PyResult<Vec<_>>>()?;
        let part = Part { part, first_row, rows, ok, failed: &failed };
        let write = || {
            if replace {
                self.inner.replace_part(part, &contents, &others)
            } else if links.is_empty() {
                self.inner.write_part(part, &contents, &others)
            } else {
                self.inner.adopt_part(part, &links, &contents, &others)
            }
        };
        let commit = py.detach(write).map_err(to_python)?;
        to_json(&commit)
    }

    /// Writes arrays of one shard anew, and every node's metadata as the root holds them.
    fn restore(&self, py: Python<'_>, whole: BTreeMap<String, PyBuffer<u8>>) -> PyResult<()> {
        let contents = whole_shards(&whole)?;
        py.detach(|| self.inner.restore(&contents)).map_err(to_python)
    }

    /// Finishes replacements that were stopped half way; several processes may do so at once.
    fn finish_replacements(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.finish_replacements()).map_err(to_python)
    }

    /// The records of the parts from `first` to before `end` that are done, as JSON each.
    fn committed(&self, py: Python<'_>, first: u64, end: u64) -> PyResult<Vec<String>> {
        py.detach(|| self.inner.committed(first..end)).iter().map(to_json).collect()
    }
}

fn whole_shards(whole: &BTreeMap<String, PyBuffer<u8>>) -> PyResult<Vec<ShardData<'_>>> {
    whole.iter().map(|(array, buffer)| Ok(ShardData { array, ids: None, data: contiguous(array, buffer)? })).collect()
}

/// Bytes read, and the damaged files with the reason.
type Findings = (u64, Vec<(String, String)>);

/// Checks one store; see `_core.pyi`.
#[pyclass(frozen, name = "StoreVerifier", module = "ddx._core")]
pub struct PyStoreVerifier {
    inner: Verifier,
}

#[pymethods]
impl PyStoreVerifier {
    #[new]
    fn new(path: PathBuf) -> PyResult<Self> {
        Ok(Self { inner: Verifier::open(&path).map_err(to_python)? })
    }

    /// Checks a part; `ok`: the places of its fine rows, where known.
    #[pyo3(signature = (part, ok))]
    fn part(&self, py: Python<'_>, part: u64, ok: Option<Vec<u32>>) -> Findings {
        findings(py.detach(|| self.inner.part(part, ok.as_deref())))
    }

    /// Checks the arrays without parts, and the metadata.
    fn whole(&self, py: Python<'_>) -> Findings {
        findings(py.detach(|| self.inner.whole()))
    }
}

fn findings(checked: Checked) -> Findings {
    (checked.bytes, checked.damaged.into_iter().map(|damage| (damage.file, damage.reason)).collect())
}

/// Reads random batches; see `_core.pyi`.
#[pyclass(name = "BatchReader", module = "ddx._core")]
pub struct PyBatchReader {
    inner: BatchReader,
}

#[pymethods]
impl PyBatchReader {
    #[new]
    #[pyo3(signature = (path, *, batch_size, seed, position = 0, rank = 0, world = 1, prefetch = 4, threads = 2, verify = true))]
    #[allow(clippy::too_many_arguments)] // one keyword each in Python
    fn new(
        py: Python<'_>,
        path: PathBuf,
        batch_size: usize,
        seed: u64,
        position: u64,
        rank: usize,
        world: usize,
        prefetch: usize,
        threads: usize,
        verify: bool,
    ) -> PyResult<Self> {
        let options = ReaderOptions { batch_size, seed, position, rank, world, prefetch, threads, verify };
        Ok(Self { inner: py.detach(|| BatchReader::open(&path, &options)).map_err(to_python)? })
    }

    /// Rows that a batch may hold.
    #[getter]
    fn num_rows(&self) -> usize {
        self.inner.store().num_ok()
    }

    /// Number of the batch that comes next.
    #[getter]
    fn position(&self) -> u64 {
        self.inner.position()
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let batch = py.detach(|| self.inner.next_batch()).map_err(to_python)?;
        let store = self.inner.store();
        let num = batch.rows.len();
        let shape_of = |array| -> Vec<usize> {
            let shape = store.shape(batch.bucket, array).unwrap_or_default();
            [num].into_iter().chain(shape.iter().map(|&extent| extent as usize)).collect()
        };
        let shape = shape_of(RowArray::Latents);
        let token_shape = [num, batch.length, store.token_width()];
        let dict = PyDict::new(py);
        let rows = batch.rows.iter().flat_map(|row| row.to_le_bytes()).collect();
        dict.set_item("rows", Buffer::new(rows, Element::I64, &[num]))?;
        dict.set_item("lengths", i32_buffer(&batch.lengths))?;
        dict.set_item("flipped", batch.flipped)?;
        dict.set_item("latents", Buffer::new(batch.latents, Element::F16, &shape))?;
        if let Some(logvar) = batch.logvar {
            dict.set_item("logvar", Buffer::new(logvar, Element::F16, &shape))?;
        }
        if let Some(captions) = batch.captions {
            dict.set_item("captions", i32_buffer(&captions))?;
        }
        let element = if batch.scales.is_some() { Element::U8 } else { Element::F16 };
        dict.set_item("tokens", Buffer::new(batch.tokens, element, &token_shape))?;
        if let Some(scales) = batch.scales {
            let scales = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
            dict.set_item("scales", Buffer::new(scales, Element::F32, &[num]))?;
        }
        if let Some(pooled) = batch.pooled {
            let width = pooled.len() / num.max(1) / 2;
            dict.set_item("pooled", Buffer::new(pooled, Element::F16, &[num, width]))?;
        }
        Ok(dict)
    }
}

/// Adds the store's classes to `ddx._core`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyStoreWriter>()?;
    module.add_class::<PyStoreVerifier>()?;
    module.add_class::<PyBatchReader>()
}

fn i32_buffer(values: &[i32]) -> Buffer {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Buffer::new(bytes, Element::I32, &[values.len()])
}

fn contiguous<'a>(name: &str, buffer: &'a PyBuffer<u8>) -> PyResult<&'a [u8]> {
    if !buffer.is_c_contiguous() {
        return Err(PyValueError::new_err(format!("{name}: the bytes are not contiguous")));
    }
    if buffer.len_bytes() == 0 {
        return Ok(&[]); // an empty buffer may have a null pointer
    }
    // SAFETY: the view is held for as long as the slice lives, keeps its object alive and unmoved, and spans exactly
    // these bytes. ddx hands its arrays over to the writer and does not change them any more.
    Ok(unsafe { slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) })
}

fn to_json(commit: &Commit) -> PyResult<String> {
    serde_json::to_string(commit).map_err(bad_json)
}

fn bad_json(error: serde_json::Error) -> PyErr {
    PyValueError::new_err(error.to_string())
}
