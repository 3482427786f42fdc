//! Python face of `ddx_core::ingest`.

use pyo3::prelude::*;

/// Adds the ingest classes to `ddx._core`.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
