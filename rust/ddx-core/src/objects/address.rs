//! `s3://bucket/key` taken apart.

use std::path::{Path, PathBuf};

use super::ObjectError;

const SCHEMES: [&str; 4] = ["s3", "gs", "az", "file"];

/// Whether a path is the address of an object or of a folder of them.
#[must_use]
pub fn is_object(path: &Path) -> bool {
    scheme(path).is_some()
}

fn scheme(path: &Path) -> Option<(&'static str, &str)> {
    let (name, rest) = path.to_str()?.split_once("://")?;
    SCHEMES.iter().find(|scheme| **scheme == name).map(|scheme| (*scheme, rest))
}

/// Where an object or a folder of them is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Address {
    pub scheme: &'static str,
    /// The bucket or container; empty for files.
    pub bucket: String,
    /// What follows it, without slashes at its ends.
    key: String,
}

impl Address {
    pub fn parse(path: &Path) -> Result<Self, ObjectError> {
        let invalid = || ObjectError::Failed("not an address of an object".to_owned());
        let (scheme, rest) = scheme(path).ok_or_else(invalid)?;
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() != (scheme == "file") {
            return Err(invalid());
        }
        // Paths that are joined may go up again.
        let mut parts: Vec<&str> = Vec::new();
        for part in key.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        Ok(Self { scheme, bucket: bucket.to_owned(), key: parts.join("/") })
    }

    /// The address of another object of the bucket.
    pub fn with_key(&self, key: &str) -> PathBuf {
        PathBuf::from(format!("{}://{}/{key}", self.scheme, self.bucket))
    }

    pub fn object_path(&self) -> Result<object_store::path::Path, ObjectError> {
        object_store::path::Path::parse(&self.key).map_err(|error| ObjectError::Failed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_put_together() {
        let address =
            Address::parse(&Path::new("s3://b/folder/a.csv").parent().unwrap().join("../x/./1 %.jpg")).unwrap();
        assert_eq!((address.scheme, address.bucket.as_str(), address.key.as_str()), ("s3", "b", "x/1 %.jpg"));
        assert_eq!(address.with_key("x/y"), Path::new("s3://b/x/y"));
        assert_eq!(address.object_path().unwrap().as_ref(), "x/1 %.jpg");
        assert_eq!(Address::parse(Path::new("file:///tmp/x/")).unwrap().key, "tmp/x");
        assert_eq!(Address::parse(Path::new("gs://b")).unwrap().key, "");
        for wrong in ["s3:///x", "file://host/x", "http://b/x", "s3/x"] {
            assert!(Address::parse(Path::new(wrong)).is_err(), "{wrong}");
        }
        assert!(!is_object(Path::new("http://x/1.jpg")) && !is_object(Path::new("/s3/x")));
    }
}
