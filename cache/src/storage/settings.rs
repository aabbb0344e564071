//! The `AWS_*` variables, as the library takes them: trimmed, and refused in words where it would panic or print a password.

use crate::error::Refusal;
use object_store::ClientConfigKey;
use object_store::aws::AmazonS3ConfigKey;
use std::ffi::OsString;
use std::time::Duration;

/// Settings of the library, with their values.
#[derive(Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) values: Vec<(AmazonS3ConfigKey, String)>,
    /// Whether the server's address begins with `http://`: who writes that wants a plain connection.
    pub(super) is_plain: bool,
    /// How long the server may be silent, if a variable says so.
    pub(super) silence: Option<Duration>,
}

/// The settings among `variables`; other variables and empty ones are passed over.
///
/// # Errors
/// Names the variable whose value cannot be used; its value is not repeated, since it may be a secret.
pub(super) fn read(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Settings, Refusal> {
    let mut settings = Settings { values: Vec::new(), is_plain: false, silence: None };
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with("AWS_")) else { continue };
        let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() else { continue };
        let refused = |what: &str, advice: &str| Refusal { answer: format!("{name} {what}"), advice: advice.into() };
        let text = value.to_str().ok_or_else(|| refused("is not text", "set it again"))?.trim();
        if text.is_empty() {
            continue;
        }
        if key == AmazonS3ConfigKey::Client(ClientConfigKey::ReadTimeout) {
            let silence = humantime::parse_duration(text).ok().filter(|silence| !silence.is_zero());
            settings.silence = Some(silence.ok_or_else(|| refused("is not a time", "write it as `20 seconds`"))?);
            continue;
        }
        let is_address = matches!(key, AmazonS3ConfigKey::Endpoint | AmazonS3ConfigKey::S3Endpoint);
        if text.contains(char::is_control) || !is_address && !text.is_ascii() {
            return Err(refused("holds a character that it cannot have, such as a line break", "set it again"));
        }
        if is_address && text.contains('@') {
            let advice = "remove them, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead";
            return Err(refused("holds a user name or a password", advice));
        }
        let text = if is_address { text.trim_end_matches('/') } else { text };
        settings.values.push((key, text.into()));
    }
    let address = |wanted: AmazonS3ConfigKey| settings.values.iter().find(|(key, _)| *key == wanted).map(|(_, value)| value);
    // The library, too, prefers the address that is only for S3.
    let address = address(AmazonS3ConfigKey::S3Endpoint).or_else(|| address(AmazonS3ConfigKey::Endpoint));
    settings.is_plain = address.is_some_and(|address| address.to_ascii_lowercase().starts_with("http://"));
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variables = variables.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        read(variables).map_err(|refusal| format!("{}; {}", refusal.answer, refusal.advice))
    }

    #[test]
    fn values_are_trimmed_and_the_address_for_s3_rules() {
        let settings =
            of(&[("AWS_REGION", "eu-central-1\n"), ("HOME", "/root"), ("AWS_PROFILE", "x"), ("AWS_ENDPOINT_URL", " ")]);
        assert_eq!(settings.unwrap().values, [(AmazonS3ConfigKey::Region, "eu-central-1".to_string())]);
        let (general, own) = (("AWS_ENDPOINT_URL", "https://a.org/"), ("AWS_ENDPOINT_URL_S3", "HTTP://b.org:9000\r\n"));
        assert!(of(&[general, own]).unwrap().is_plain && of(&[own]).unwrap().is_plain);
        assert!(!of(&[general]).unwrap().is_plain && of(&[("AWS_ENDPOINT_URL", "http://a.org")]).unwrap().is_plain);
        assert_eq!(of(&[general]).unwrap().values[0].1, "https://a.org");
    }

    #[test]
    fn the_time_of_silence_is_read() {
        assert_eq!(of(&[("AWS_READ_TIMEOUT", "90 seconds\n")]).unwrap().silence, Some(Duration::from_secs(90)));
        assert_eq!(of(&[("AWS_TIMEOUT", "90 seconds")]).unwrap().silence, None);
        for wrong in ["90", "0s", "soon"] {
            assert!(of(&[("AWS_READ_TIMEOUT", wrong)]).unwrap_err().contains("AWS_READ_TIMEOUT is not a time"), "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_named_and_not_repeated() {
        for (name, value) in [
            ("AWS_ENDPOINT_URL", "http://user:hunter2@minio.org"),
            ("AWS_ENDPOINT_URL_S3", "http://user:hun/ter2@minio.org"),
            ("AWS_SECRET_ACCESS_KEY", "hunter\n2"),
            ("AWS_SESSION_TOKEN", "hunter2é"),
        ] {
            let said = of(&[(name, value)]).unwrap_err();
            assert!(said.starts_with(name) && !said.contains("hun"), "{said}");
        }
    }
}
