//! Explains a server's refusal in one line: HTTP status, the server's message, and what to do.

use super::retry::is_about_credentials;
use crate::error::Refusal;
use object_store::Error;
use std::error::Error as _;
use std::io::{self, ErrorKind};

/// Variables that identify the user.
const CREDENTIALS: &str = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, if you have one)";
/// Variables with the server's address.
const ADDRESS: &str = "AWS_ENDPOINT_URL (of a server other than Amazon's) and AWS_REGION";

/// What the library's text of a request that took too long ends with.
const TIMED_OUT: &str = "operation timed out";
/// What is said instead.
const SILENT: &str = "the server does not answer (the request timed out)";

/// The error as an I/O error.
pub(super) fn explain(error: &Error) -> io::Error {
    let text = without_passwords(&whole_text(error));
    let status = status_of(&text);
    let code = between(&text, "<Code>", "</Code>");
    let (kind, advice) = match (error, status, code) {
        (_, _, Some("NoSuchBucket")) => (ErrorKind::Other, format!("make the bucket, or correct --store or {ADDRESS}")),
        (_, _, Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException")) => {
            (ErrorKind::Other, "set AWS_REGION: the bucket is in another region".into())
        }
        (
            _,
            _,
            Some("InvalidAccessKeyId" | "SignatureDoesNotMatch" | "ExpiredToken" | "InvalidToken" | "RequestTimeTooSkewed"),
        ) => (ErrorKind::PermissionDenied, format!("check {CREDENTIALS}, and this machine's clock")),
        (Error::PermissionDenied { .. } | Error::Unauthenticated { .. }, ..) | (_, Some(401 | 403), _) => {
            (ErrorKind::PermissionDenied, format!("check {CREDENTIALS}, and what they may do in this bucket"))
        }
        (Error::NotFound { .. }, ..) => return io::Error::new(ErrorKind::NotFound, answer(status, code, &text)),
        (Error::AlreadyExists { .. } | Error::Precondition { .. }, ..) => {
            return io::Error::new(ErrorKind::AlreadyExists, answer(status, code, &text));
        }
        // A range beyond the end of an object.
        (_, Some(416), _) => return io::Error::new(ErrorKind::UnexpectedEof, answer(status, code, &text)),
        (_, Some(301 | 307), _) => (ErrorKind::Other, "set AWS_REGION: the bucket is in another region".into()),
        (_, Some(500..=599 | 429), _) => (ErrorKind::Other, "several attempts failed: run the same command again later".into()),
        (_, Some(_), _) => (ErrorKind::Other, format!("check {ADDRESS}")),
        // The library has no type for this: a machine without credentials looks for those of an Amazon machine, and only the text says so.
        _ if is_about_credentials(&text) => (ErrorKind::PermissionDenied, format!("set {CREDENTIALS}: none are set")),
        _ => (ErrorKind::Other, format!("check {ADDRESS}, and the network: the server cannot be reached")),
    };
    io::Error::new(kind, Refusal { answer: answer(status, code, &text), advice })
}

/// Status, code and message of the server, or what the library says instead.
fn answer(status: Option<u16>, code: Option<&str>, text: &str) -> String {
    // The library's text begins with the address and its own settings.
    let Some(status) = status else { return if text.contains(TIMED_OUT) { SILENT.into() } else { shortened(text) } };
    let mut answer = format!("HTTP status {status}");
    if let Some(code) = code {
        answer = format!("{answer} {code}");
    }
    match between(text, "<Message>", "</Message>") {
        Some(message) if !message.is_empty() => format!("{answer}: {}", shortened(message)),
        _ => answer,
    }
}

/// A text without the user names and passwords of the addresses in it, such as that of a proxy.
fn without_passwords(text: &str) -> String {
    let mut clean = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/\"'()<>,".contains(c)).unwrap_or(after.len());
        rest = after[..end].rfind('@').map_or(after, |user| &after[user + 1..]);
    }
    clean + rest
}

/// In one line of limited length.
fn shortened(text: &str) -> String {
    const LONGEST: usize = 240;
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.chars().count() <= LONGEST {
        return words;
    }
    format!("{}…", words.chars().take(LONGEST).collect::<String>())
}

/// The error's text with the texts of its causes, each once.
fn whole_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The HTTP status, which the library gives only in its text.
fn status_of(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(start)?;
    rest.split_once(end).map(|(inside, _)| inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(text: &str) -> io::Error {
        explain(&Error::Generic { store: "S3", source: text.into() })
    }

    #[test]
    fn a_refusal_says_status_and_what_to_do() {
        let body = "<Error><Code>NoSuchBucket</Code>\n<Message>The bucket\n does not exist</Message></Error>";
        let advice = |error: &io::Error| error.get_ref().unwrap().downcast_ref::<Refusal>().unwrap().advice.clone();
        let error = explained(&format!("Server returned non-2xx status code: 404 Not Found: {body}"));
        assert_eq!(error.to_string(), "HTTP status 404 NoSuchBucket: The bucket does not exist");
        assert_eq!(advice(&error), format!("make the bucket, or correct --store or {ADDRESS}"));
        // A missing bucket is not a missing file.
        assert_eq!(error.kind(), ErrorKind::Other);
        let error = explained("Server returned non-2xx status code: 403 Forbidden: <Code>InvalidAccessKeyId</Code>");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(advice(&error).contains("AWS_ACCESS_KEY_ID") && error.to_string().contains("403"), "{error}");
        assert!(advice(&explained("Server returned non-2xx status code: 503 Slow Down: ")).contains("several attempts"));
        let error = explained("error sending request for url (http://10.0.0.1/lab?list-type=2): operation timed out");
        assert_eq!(error.to_string(), SILENT);
        let error = explained("error sending request: tcp connect error: Connection refused (os error 111)");
        assert!(advice(&error).contains("AWS_ENDPOINT_URL") && error.to_string().contains("Connection refused"), "{error}");
    }

    #[test]
    fn addresses_lose_their_passwords() {
        let text = "GET https://me:hunter2@minio.org:9000/a@b (via http://u@proxy) and s3://lab/é@x";
        assert_eq!(without_passwords(text), "GET https://minio.org:9000/a@b (via http://proxy) and s3://lab/é@x");
        assert_eq!(without_passwords("://@"), "://");
    }

    #[test]
    fn any_text_is_accepted() {
        for text in
            ["", "status code: ", "status code: 4é", "status code: 99999", "<Code>", "</Code><Code>", "<Message></Message>"]
        {
            assert!(!explained(text).to_string().is_empty(), "{text}");
        }
    }

    #[test]
    fn texts_stay_in_one_line() {
        assert!(explained(&"word\n".repeat(500)).to_string().lines().count() == 1);
        assert_eq!(shortened(&"é ".repeat(400)).chars().count(), 241);
    }
}
