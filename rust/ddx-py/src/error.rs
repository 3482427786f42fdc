//! `CoreError`: the core's errors as Python sees them.

use ddx_core::Error;
use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;

create_exception!(
    ddx._core,
    CoreError,
    PyException,
    "An error of the compiled core: `message`, `hint` (or None), and whether it was wrong `usage`."
);

/// Turns a core error into a `CoreError(message, hint, usage)`.
#[allow(clippy::needless_pass_by_value)] // made for `map_err`
pub fn to_python(error: Error) -> PyErr {
    CoreError::new_err((error.to_string(), error.hint(), error.is_usage()))
}

/// Adds the exception to `ddx._core`.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("CoreError", module.py().get_type::<CoreError>())
}
