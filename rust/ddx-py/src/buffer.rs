//! A C-contiguous array that Python sees through the buffer protocol, so that numpy and torch take it without a copy.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;

/// The element types that cross the border, in the notation of Python's `struct` module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Unsigned bytes.
    U8,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
    /// Signed 32-bit integers.
    I32,
    /// Signed 64-bit integers.
    I64,
}

impl Element {
    fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    fn format(self) -> &'static CStr {
        match self {
            Self::U8 => c"B",
            Self::F16 => c"e",
            Self::F32 => c"f",
            Self::I32 => c"i",
            Self::I64 => c"q",
        }
    }
}

/// An array in C order; `numpy.asarray(buffer)` is a writable view that keeps it alive.
#[pyclass(frozen, module = "ddx._core")]
pub struct Buffer {
    bytes: UnsafeCell<Box<[u8]>>,
    element: Element,
    shape: Vec<isize>,
    strides: Vec<isize>,
}

// SAFETY: after construction Rust never touches the bytes again; they belong to the views that Python takes, which
// follow Python's own rules for shared writable memory (the same as for any numpy array).
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Takes `bytes` as the array of that shape, without a copy.
    ///
    /// # Panics
    /// If the shape and the number of bytes disagree, which is a bug of the caller.
    pub fn new(bytes: Vec<u8>, element: Element, shape: &[usize]) -> Self {
        let num_bytes = shape.iter().product::<usize>() * element.size();
        assert_eq!(bytes.len(), num_bytes, "a buffer of shape {shape:?} needs {num_bytes} bytes");
        let mut strides = vec![0; shape.len()];
        let mut stride = element.size();
        for (axis, &length) in shape.iter().enumerate().rev() {
            strides[axis] = stride as isize;
            stride *= length;
        }
        let shape = shape.iter().map(|&length| length as isize).collect();
        Self { bytes: UnsafeCell::new(bytes.into_boxed_slice()), element, shape, strides }
    }
}

#[pymethods]
impl Buffer {
    /// The lengths of the axes.
    #[getter]
    fn shape(&self) -> Vec<isize> {
        self.shape.clone()
    }

    #[allow(clippy::needless_pass_by_value)] // the protocol's own signature
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        let this = slf.get();
        // SAFETY: `view` is Python's own, checked above. The pointers that it gets (bytes, shape, strides, format) are
        // owned by the frozen object or static, and the view holds a reference to the object in `obj`.
        unsafe {
            let bytes = &mut *this.bytes.get();
            (*view).buf = bytes.as_mut_ptr().cast::<c_void>();
            (*view).len = bytes.len() as isize;
            (*view).readonly = 0;
            (*view).itemsize = this.element.size() as isize;
            let wants = |flag: c_int| (flags & flag) == flag;
            (*view).format =
                if wants(ffi::PyBUF_FORMAT) { this.element.format().as_ptr().cast_mut() } else { ptr::null_mut() };
            (*view).ndim = this.shape.len() as c_int;
            (*view).shape = if wants(ffi::PyBUF_ND) { this.shape.as_ptr().cast_mut() } else { ptr::null_mut() };
            (*view).strides =
                if wants(ffi::PyBUF_STRIDES) { this.strides.as_ptr().cast_mut() } else { ptr::null_mut() };
            (*view).suboffsets = ptr::null_mut();
            (*view).internal = ptr::null_mut();
            (*view).obj = slf.into_any().into_ptr();
        }
        Ok(())
    }
}
