//! What must not reach a recording, a log line or a message.

use serde_json::Value;
use tapedeck_wire::dialect::Api;
use url::Url;

use crate::shell;

pub(crate) const MASK: &str = "***";

/// Parts of a name that mark its value as a secret.
const SECRET_PARTS: &[&str] = &[
    "key",
    "token",
    "secret",
    "sig",
    "auth",
    "pass",
    "credential",
    "cookie",
    "session",
];

pub(crate) fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_PARTS.iter().any(|part| name.contains(part))
}

/// A query string with the values of secret parameters masked.
#[must_use]
pub fn mask_query(query: &str) -> String {
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}={MASK}"),
        _ => pair.to_owned(),
    });
    pairs.collect::<Vec<_>>().join("&")
}

/// A URL without user, password and secret parameters.
#[must_use]
pub fn mask_url(text: &str) -> String {
    // The simulator's settings are no secrets, `tokens` least of all.
    if text.starts_with("sim:") {
        return text.to_owned();
    }
    let parsed = Url::parse(text).ok().filter(|url| !url.cannot_be_a_base());
    let Some(mut url) = parsed else {
        // Not a URL: what stands before an `@` may still be a password.
        return match text.rsplit_once('@') {
            Some((_, rest)) => format!("{MASK}@{rest}"),
            None => text.to_owned(),
        };
    };
    if url.password().is_some() || !url.username().is_empty() {
        // Fails only for URLs that cannot have a user, which have none to hide.
        url.set_username("").ok();
        url.set_password(None).ok();
    }
    if let Some(query) = url.query().map(mask_query) {
        url.set_query(Some(&query));
    }
    url.to_string()
}

/// Flags whose value is a secret whatever it says.
const SECRET_FLAGS: &[&str] = &["--api-key", "--wandb-api-key", "--swanlab-api-key"];
/// Flags whose value is `name=secret`.
const PAIR_FLAGS: &[&str] = &["--header", "--headers"];
/// Flags whose value is a command line.
const COMMAND_FLAGS: &[&str] = &["--launch", "--local-args", "--dataset-command"];
const ENDPOINT_FLAG: &str = "--endpoint";
const URL_FLAGS: &[&str] = &[
    "--url",
    "--base-url",
    "--server-url",
    "--upstream",
    "--hub-url",
    "--server-metrics",
];

/// A command line with its secrets masked. Header values are always masked: a
/// name does not tell whether its value is harmless.
#[must_use]
pub fn mask_command(arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut flag = String::new();
    let mut masked = Vec::new();
    let mut is_command = false;
    for argument in arguments {
        if std::mem::take(&mut is_command) {
            // It may begin as a flag does.
            masked.push(mask_value(&flag, &argument));
            continue;
        }
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value)),
            _ if argument.starts_with("--") => (argument.clone(), None),
            _ => {
                masked.push(mask_value(&flag, &argument));
                continue;
            }
        };
        flag.clone_from(&name);
        is_command = value.is_none() && COMMAND_FLAGS.contains(&name.as_str());
        masked.push(match value {
            Some(value) => format!("{name}={}", mask_value(&name, value)),
            None => name,
        });
    }
    masked
}

/// `api` as the settings of a manifest keep it, so that a recording can be read and
/// replayed where its file is not; null for the two that every version knows. Header
/// values of a user's own are left out: a
/// name does not tell whether its value is harmless.
#[must_use]
pub fn recorded_dialect(api: Api) -> Value {
    if matches!(api, Api::OpenAiChat | Api::OpenAiCompletions) {
        return Value::Null;
    }
    let mut recorded = api.dialect().recorded.clone();
    let ours = |name: &str, value: &Value| {
        Api::built_in().any(|row| {
            let request = &row.dialect().request;
            let mut headers = request.headers.iter().chain(&request.stream_headers);
            headers.any(|header| header.0 == name && value == header.1)
        })
    };
    for table in ["headers", "stream_headers"] {
        let headers = recorded.pointer_mut(&format!("/request/{table}"));
        if let Some(headers) = headers.and_then(Value::as_object_mut) {
            headers.retain(|name, value| ours(name, value));
        }
    }
    recorded
}

/// Flags whose values are, or may hold, what is sent to a model.
const TEXT_FLAGS: &[&str] = &[
    "--prompt",
    "--system-prompt",
    "--image",
    "--stop",
    "--extra-body",
    "--extra-args",
    "--extra-request-body",
    "--additional-sampling-params",
    "--query-template",
    // It may print a text that stands in it.
    "--dataset-command",
    "--redact",
    "--where",
];

/// A command line with `hide` applied to the texts in it.
#[must_use]
pub fn mask_texts(arguments: Vec<String>, hide: impl Fn(&str) -> String) -> Vec<String> {
    let mut in_text = false;
    let mask = |argument: String| {
        let name = argument.split('=').next().unwrap_or_default();
        if !argument.starts_with("--") {
            return if in_text { hide(&argument) } else { argument };
        }
        in_text = TEXT_FLAGS.contains(&name);
        match argument.split_once('=') {
            Some((name, text)) if in_text => format!("{name}={}", hide(text)),
            _ => argument,
        }
    };
    arguments.into_iter().map(mask).collect()
}

fn mask_value(flag: &str, value: &str) -> String {
    if SECRET_FLAGS.contains(&flag) {
        MASK.to_owned()
    } else if PAIR_FLAGS.contains(&flag) {
        // Without a separator it may be a bare secret.
        let name = value.split_once(['=', ':']).map_or("", |(name, _)| name);
        format!("{name}={MASK}")
    } else if COMMAND_FLAGS.contains(&flag) {
        shell::mask(value).text
    } else if flag == ENDPOINT_FLAG {
        match value.split_once('?') {
            Some((path, query)) => format!("{path}?{}", mask_query(query)),
            None => value.to_owned(),
        }
    } else if URL_FLAGS.contains(&flag) {
        mask_url(value)
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_hidden_wherever_a_command_line_has_them() {
        let line = "load --prompt=TEXT --stop TEXT TEXT --url http://h --prompt TEXT --model m";
        let words = line.split_whitespace().map(str::to_owned).collect();
        let masked = mask_texts(words, |text| text.len().to_string()).join(" ");
        let expected = "load --prompt=4 --stop 4 4 --url http://h --prompt 4 --model m";
        assert_eq!(masked, expected);
    }

    #[test]
    fn a_recorded_dialect_has_only_headers_that_we_brought() {
        use tapedeck_wire::dialect::Dialect;

        let text = "version = 1\nextends = \"anthropic-messages\"\n\
            [request.headers]\nX-Gate = \"pw\"\n[request.stream_headers]\nX-Api-Key = \"pw\"";
        let api = Api::of(Dialect::parse(text, "own.toml", "own").unwrap());
        let recorded = recorded_dialect(api);
        assert!(!recorded.to_string().contains("pw"), "{recorded}");
        assert_eq!(
            recorded["request"]["headers"]["anthropic-version"],
            "2023-06-01"
        );
        assert_eq!(Dialect::from_recorded(&recorded).unwrap().name, "own");
    }

    #[test]
    fn no_secret_survives_in_a_command_line() {
        let line = "record load --url http://me:pw1@h/p?api-key=pw2&x=1 --api-key pw3 \
            --api-key=pw4 --header Authorization=pw5 x-api-key=pw6 --headers=Cookie=pw7 \
            --endpoint /v1?key=pw8 --base-url me:pw9@h:80 --server-metrics http://h/m?token=pw10 --server-url http://me:pw11@h \
            --wandb-api-key pw12 --model m";
        let masked = mask_command(line.split_whitespace().map(str::to_owned)).join(" ");
        for i in 1..=12 {
            assert!(!masked.contains(&format!("pw{i}")), "{masked}");
        }
        assert!(masked.contains("x=1") && masked.contains("--model m"));
    }

    #[test]
    fn a_command_within_a_command_line_is_masked_as_one() {
        let words = [
            "load",
            "--launch",
            "HF_TOKEN=pw1 serve --api-key pw2",
            "--local-args",
            "--api-key pw3",
            "--local-args=--hf-token pw4",
            "--dataset-command",
            "curl -H 'Authorization: Bearer pw5' http://h/x",
            "--model",
            "m",
        ];
        let masked = mask_command(words.map(str::to_owned));
        let expected = [
            "load",
            "--launch",
            "HF_TOKEN=*** serve --api-key ***",
            "--local-args",
            "--api-key ***",
            "--local-args=--hf-token ***",
            "--dataset-command",
            "curl -H 'Authorization: ***' http://h/x",
            "--model",
            "m",
        ];
        assert_eq!(masked, expected);
    }
}
