//! Command lines for a shell: what in them is a secret, and words put into them.

use url::Url;

use crate::secrets::{MASK, is_secret, mask_url};

/// A command line with its secrets masked, and what was masked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Masked {
    pub text: String,
    /// To be kept out of what the command prints; a `$NAME` also as its value.
    pub secrets: Vec<String>,
}

/// Masks values of flags and variables with secret names (`--api-key K`,
/// `HF_TOKEN=K`), headers, user and password of URLs, and words that begin as keys
/// of well-known services do. What stands in quotes is looked at too. Rather too
/// much is masked than too little.
pub(crate) fn mask(command: &str) -> Masked {
    let mut masker = Masker::default();
    let text = masker.line(command);
    let mut secrets = masker.secrets;
    let values = secrets.iter().filter_map(|secret| {
        let name = secret.strip_prefix('$')?.trim_matches(['{', '}']);
        std::env::var(name).ok()
    });
    let values: Vec<String> = values.collect();
    secrets.extend(values);
    // Shorter ones would blot out every other word of a log.
    secrets.retain(|secret| secret.len() >= 4 && secret != MASK);
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.dedup();
    Masked { text, secrets }
}

/// `command` with its secrets masked, to be shown and recorded.
#[must_use]
pub fn masked(command: &str) -> String {
    mask(command).text
}

/// Words that stand between the name of a header and its secret.
const SCHEMES: [&str; 3] = ["Bearer", "Basic", "Token"];
/// How keys of well-known services begin.
const KEY_STARTS: [&str; 3] = ["sk-", "hf_", "ghp_"];
/// A line that goes on: no word of its own.
const CONTINUED: &str = "\\\n";
/// Quotes within quotes are followed so deep.
const DEEPEST: u8 = 4;

#[derive(Default)]
struct Masker {
    secrets: Vec<String>,
    /// The next word is the value of a secret name.
    expected: bool,
    depth: u8,
}

impl Masker {
    fn line(&mut self, text: &str) -> String {
        let mut masked = String::new();
        let mut rest = text;
        while !rest.is_empty() {
            let word = rest.trim_start_matches(|c: char| c.is_whitespace());
            let word = word.strip_prefix(CONTINUED).unwrap_or(word);
            let blank = rest.len() - word.len();
            if blank > 0 {
                masked.push_str(&rest[..blank]);
                rest = word;
                continue;
            }
            let (word, after) = rest.split_at(end_of_word(rest));
            masked.push_str(&self.word(word));
            rest = after;
        }
        masked
    }

    fn word(&mut self, word: &str) -> String {
        let (open, inner, close) = unquoted(word);
        if self.expected {
            if SCHEMES.iter().any(|s| s.eq_ignore_ascii_case(inner)) {
                return word.to_owned();
            }
            self.expected = false;
            if !inner.starts_with('-') && !inner.is_empty() {
                return format!("{open}{}{close}", self.secret(inner));
            }
        }
        if !open.is_empty() && inner.contains(char::is_whitespace) {
            let inside = self.quoted(inner);
            self.expected = false;
            return format!("{open}{inside}{close}");
        }
        format!("{open}{}{close}", self.bare(inner))
    }

    /// Several words in one pair of quotes: a header, or a command of its own.
    fn quoted(&mut self, inner: &str) -> String {
        if let Some((name, value)) = inner.split_once(':')
            && is_secret_name(name)
            && !name.contains(char::is_whitespace)
        {
            return format!("{name}: {}", self.secret(value.trim()));
        }
        if self.depth == DEEPEST {
            return self.secret(inner);
        }
        self.depth += 1;
        let inside = self.line(inner);
        self.depth -= 1;
        inside
    }

    fn bare(&mut self, word: &str) -> String {
        if let Some(at) = word.find(['\'', '"'])
            && at > 0
            && !unquoted(&word[at..]).0.is_empty()
            && !word[..at].contains('=')
        {
            // As in -H"Name: value".
            return format!("{}{}", &word[..at], self.word(&word[at..]));
        }
        if let Some((name, value)) = word.split_once('=')
            && !name.contains(['/', ':', '?'])
        {
            if is_secret_name(name) {
                let (open, inner, close) = unquoted(value);
                return format!("{name}={open}{}{close}", self.secret(inner));
            }
            return format!("{name}={}", self.word(value));
        }
        let is_flag = word.starts_with('-') && is_secret_name(word);
        let is_header = word.strip_suffix(':').is_some_and(is_secret_name);
        let is_scheme = SCHEMES[0].eq_ignore_ascii_case(word);
        if is_flag || is_header || is_scheme {
            self.expected = true;
            return word.to_owned();
        }
        if KEY_STARTS.iter().any(|start| word.starts_with(start)) {
            return self.secret(word);
        }
        if word.contains("://") && word.contains(['@', '?']) {
            if let Ok(url) = Url::parse(word) {
                let parts = [Some(url.username()), url.password()];
                self.secrets
                    .extend(parts.into_iter().flatten().map(str::to_owned));
                let pairs = url.query_pairs().filter(|(name, _)| is_secret(name));
                self.secrets
                    .extend(pairs.map(|(_, value)| value.into_owned()));
            }
            return mask_url(word);
        }
        word.to_owned()
    }

    fn secret(&mut self, value: &str) -> String {
        self.secrets.push(value.to_owned());
        MASK.to_owned()
    }
}

/// As [`is_secret`], but for numbers of tokens and for tokenizers, which every
/// server has flags of.
fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    is_secret(&name.replace("tokenizer", "").replace("tokens", ""))
}

/// Where the first word of `text` ends: at white space outside of quotes.
fn end_of_word(text: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (None | Some('"'), '\\') => escaped = true,
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, c) if c.is_whitespace() => return at,
            _ => {}
        }
    }
    text.len()
}

/// A word without the one pair of quotes around it.
fn unquoted(word: &str) -> (&str, &str, &str) {
    for quote in ['\'', '"'] {
        let inner = word.strip_prefix(quote).and_then(|w| w.strip_suffix(quote));
        if let Some(inner) = inner {
            return (&word[..1], inner, &word[word.len() - 1..]);
        }
    }
    ("", word, "")
}

/// `word` as one word of a shell.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// `template` with the value of each name in place of `{name}`; other braces stay.
#[must_use]
pub fn fill<'a>(template: &str, values: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    values
        .into_iter()
        .fold(template.to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{name}}}"), value)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_survives_in_a_server_command() {
        let line = r#"HF_TOKEN=pw01 VLLM_API_KEY="pw02 x" vllm serve m --api-key pw03 --api-key=pw04 \
            --api-key 'pw05' -H 'Authorization: Bearer pw06' -H"X-Gate-Key: pw07" \
            sh -c 'curl -H "Authorization: Bearer pw08" --hf-token pw09 http://me:pw10@h/x?key=pw11' \
            --url=http://me:pw12@h/ sk-pw13 Authorization: Bearer pw14 --ssl-key "pw15 z" \
            --auth='{"password": "pw16"}' hf_pw17 --api-key \
            pw18"#;
        let masked = mask(line);
        for i in 1..=18 {
            let secret = format!("pw{i:02}");
            assert!(!masked.text.contains(&secret), "{secret}: {}", masked.text);
            let known = masked.secrets.iter().any(|s| s.contains(&secret));
            assert!(known, "{secret}: {:?}", masked.secrets);
        }
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        let line = "vllm serve /m/x --port 8000 --max-num-batched-tokens 8192 --max-tokens=3 \
            --tokenizer-path /t  --tokenizer '/a b' --chat-template '{\"a\": 1}' A=1 \
            && sh -c 'sleep 1; x --flag y' http://h/p?x=1";
        let masked = mask(line);
        assert_eq!(masked.text, line);
        assert!(masked.secrets.is_empty());
    }

    #[test]
    fn words_survive_a_shell() {
        for word in [
            "plain/x-1.gguf",
            "a b",
            "it's",
            "$(reboot)",
            "",
            "*",
            "é\n\"x\"",
        ] {
            let script = format!("printf %s {}", quote(word));
            let output = std::process::Command::new("sh")
                .args(["-c", &script])
                .output();
            assert_eq!(output.unwrap().stdout, word.as_bytes(), "{word}");
        }
    }

    #[test]
    fn only_known_names_are_filled_in() {
        let filled = fill(
            "s --tp {tp} -p {port} '{\"a\":{b}}'",
            [("tp", "2"), ("port", "9")],
        );
        assert_eq!(filled, "s --tp 2 -p 9 '{\"a\":{b}}'");
    }
}
