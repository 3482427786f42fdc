//! What a store answers instead of the object, in few words.

use std::error::Error as StdError;
use std::io;
use std::path::Path;

/// How the answers of stores without such a bucket begin.
const NO_BUCKET: [&str; 2] = ["NoSuchBucket", "ContainerNotFound"];
/// How the answers to wrong or insufficient credentials begin.
const DENIED: [&str; 10] = [
    "AccessDenied",
    "AuthenticationFailed",
    "AuthorizationFailure",
    "AuthorizationPermissionMismatch",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "401 ",
    "403 ",
];

/// Why an object cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Nothing at that place.
    #[error("no such object")]
    Missing,
    /// No bucket of that name.
    #[error("no such bucket")]
    NoBucket,
    /// The credentials are wrong or do not suffice.
    #[error("access is denied: {0}")]
    Denied(String),
    /// Somebody wrote to it.
    #[error("it has changed since it was opened")]
    Changed,
    /// Everything else, after all attempts.
    #[error("{0}")]
    Failed(String),
}

impl From<object_store::Error> for ObjectError {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error::{NotFound, PermissionDenied, Precondition, Unauthenticated};
        let reason = reason(&error);
        let has_code = |codes: &[&str]| codes.iter().any(|code| reason.starts_with(code));
        // A refusal to list has no kind of its own.
        match error {
            _ if has_code(&NO_BUCKET) => Self::NoBucket,
            NotFound { .. } => Self::Missing,
            PermissionDenied { .. } | Unauthenticated { .. } => Self::Denied(reason),
            _ if has_code(&DENIED) => Self::Denied(reason),
            Precondition { .. } => Self::Changed,
            _ => Self::Failed(reason),
        }
    }
}

impl ObjectError {
    /// The one that lies behind another error, if one does.
    pub(crate) fn behind(error: &(dyn StdError + 'static)) -> Option<Self> {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = error.downcast_ref().or_else(|| inner.and_then(|inner| inner.downcast_ref())).cloned();
        found.or_else(|| inner.and_then(|inner| Self::behind(inner))).or_else(|| Self::behind(error.source()?))
    }

    /// The cure, in words for a user of the command line.
    pub(crate) fn hint(&self, path: &Path) -> Option<String> {
        let is = |scheme: &str| path.to_str().is_some_and(|path| path.starts_with(scheme));
        let (credentials, place) = if is("s3:") {
            (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to those of somebody who may list and read the bucket; \
                 a public one needs AWS_SKIP_SIGNATURE=true",
                "AWS_ENDPOINT_URL (with AWS_ALLOW_HTTP=true for plain http) and AWS_REGION",
            )
        } else if is("gs:") {
            (
                "set GOOGLE_APPLICATION_CREDENTIALS to the file of an account that may list and read the bucket; \
                 a public one needs GOOGLE_SKIP_SIGNATURE=true",
                "GOOGLE_SERVICE_ACCOUNT",
            )
        } else if is("az:") {
            (
                "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY to those of an account that may list and \
                 read the container; a public one needs AZURE_SKIP_SIGNATURE=true",
                "AZURE_STORAGE_ACCOUNT_NAME and AZURE_ENDPOINT",
            )
        } else {
            return None;
        };
        Some(match self {
            Self::Missing => "check the address; quote a pattern such as 's3://bucket/part-*.parquet'".to_owned(),
            Self::NoBucket => format!("check the bucket's name, {place}"),
            Self::Denied(_) => credentials.to_owned(),
            Self::Changed => "run the same command again once nobody writes there".to_owned(),
            Self::Failed(_) => format!("check the network, {place}"),
        })
    }
}

/// The code and message of the store's answer, or the first cause.
fn reason(error: &dyn StdError) -> String {
    let all = error.to_string();
    let tag = |name: &str| -> Option<&str> {
        let (_, rest) = all.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
    };
    if let Some(code) = tag("Code") {
        return tag("Message").map_or_else(|| code.to_owned(), |message| format!("{code}: {message}"));
    }
    let mut cause: &dyn StdError = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let reason = cause.to_string();
    reason.trim_end_matches([':', ' ']).rsplit("status code: ").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_sorted_by_their_code_and_have_a_cure() {
        let answer = |text: &str| ObjectError::from(object_store::Error::Generic { store: "S3", source: text.into() });
        let xml = |code: &str, message: &str| {
            let text = "Server returned non-2xx status code: 403 Forbidden: <?xml?><Error>";
            answer(&format!("{text}<Code>{code}</Code><Message>{message}</Message></Error>"))
        };
        let denied = ObjectError::Denied("InvalidAccessKeyId: no such key".to_owned());
        assert_eq!(xml("InvalidAccessKeyId", "no such key"), denied);
        assert_eq!(xml("NoSuchBucket", "none"), ObjectError::NoBucket);
        let bare = answer("Server returned non-2xx status code: 403 Forbidden: ");
        assert_eq!(bare, ObjectError::Denied("403 Forbidden".to_owned()));
        let other = answer("Server returned non-2xx status code: 500 Internal Server Error: ");
        assert_eq!(other, ObjectError::Failed("500 Internal Server Error".to_owned()));
        for (scheme, name) in [("s3", "AWS_"), ("gs", "GOOGLE_"), ("az", "AZURE_")] {
            let path = format!("{scheme}://bucket/x");
            for error in [&denied, &ObjectError::NoBucket, &other] {
                assert!(error.hint(Path::new(&path)).unwrap().contains(name), "{error}");
            }
        }
    }

    #[test]
    fn a_store_is_found_behind_errors_of_others() {
        let within = io::Error::other(io::Error::other(ObjectError::Changed));
        assert_eq!(ObjectError::behind(&within), Some(ObjectError::Changed));
        assert_eq!(ObjectError::behind(&io::Error::other("else")), None);
    }
}
