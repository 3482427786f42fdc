//! `ddx._core`: the compiled half of ddx as Python sees it.

use pyo3::prelude::*;

mod ingest;
mod store;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    ingest::register(module)?;
    store::register(module)
}
