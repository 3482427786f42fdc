//! Python face of `ddx_core::store`.

use pyo3::prelude::*;

/// Adds the store's classes to `ddx._core`.
pub fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
