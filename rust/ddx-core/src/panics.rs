//! A parser that panics on bytes from outside costs one row, never the run.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`; its panic becomes an error with the panic's message.
///
/// What `work` borrows mutably must be scratch space or be given up afterwards.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let message = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
        message.map_or_else(|| "panicked".to_owned(), |message| format!("panicked: {message}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(caught(|| 1), Ok(1));
        let numbers: Vec<u8> = Vec::new();
        let error = caught(|| numbers[3]).err();
        assert!(error.is_some_and(|message| message.contains("index is 3")));
    }
}
