//! `ddx._core`: the compiled half of ddx as Python sees it.

use pyo3::prelude::*;

mod buffer;
mod error;
mod ingest;
mod store;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    error::register(module)?;
    module.add("JPEG_DECODER", if cfg!(feature = "libjpeg-turbo") { "libjpeg-turbo" } else { "zune-jpeg" })?;
    module.add_class::<buffer::Buffer>()?;
    ingest::register(module)?;
    store::register(module)
}
