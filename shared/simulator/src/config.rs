//! What the simulated server is like.

use url::form_urlencoded;

/// The longest `ttft_ms` and `itl_ms`: an hour. Keeps every instant far inside i64.
const MAX_DURATION_MS: f64 = 3_600_000.0;
/// The steepest slope: a full batch a thousand times slower than a lone request.
const MAX_SLOPE: f64 = 1_000.0;
/// The largest batch. Every running request costs about half a KiB.
const MAX_SLOTS: u32 = 65_536;
/// The longest queue of waiting requests.
const MAX_QUEUE: u32 = 1_048_576;
/// The longest output of one choice, whatever a request asks for: a context window.
pub const MAX_OUTPUT_TOKENS: u32 = 1_048_576;

/// One simulated server. The crate's documentation has the formulas.
#[derive(Debug, Clone, PartialEq)]
pub struct SimConfig {
    /// Prefill of an empty prompt on an idle server, ms.
    pub ttft_ms: f64,
    /// Gap between tokens of a lone request, ms.
    pub itl_ms: f64,
    /// Output tokens where the request does not cap them.
    pub tokens: u32,
    /// Largest batch.
    pub slots: u32,
    /// Most requests waiting for a slot; one more is answered 429.
    pub queue: u32,
    /// Half width of the jitter on every duration, 0 to 1.
    pub jitter: f64,
    /// Half width of the jitter on the output length, 0 to 1.
    pub tokens_jitter: f64,
    /// A prompt of this many tokens doubles the prefill.
    pub prefill_tokens: u32,
    /// Growth of the prefill when the whole batch is in prefill; 1 doubles it.
    pub prefill_slope: f64,
    /// Growth of the step when the batch is full; 1 doubles it.
    pub decode_slope: f64,
    /// Share of requests answered 500, 0 to 1.
    pub error_rate: f64,
    /// Share of requests that fail in the middle of their output, 0 to 1.
    pub stream_error_rate: f64,
    /// Governs every draw.
    pub seed: u64,
    /// The name `/v1/models` gives; requests may name any model.
    pub model: String,
}

/// A configuration that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "`{url}` is not a simulator url\nhint: write sim:?ttft_ms=200&itl_ms=20&tokens=100&slots=64"
    )]
    NotSim { url: String },
    #[error("unknown simulator setting `{key}`\nhint: the settings are {}", SimConfig::KEYS.join(" "))]
    UnknownKey { key: String },
    #[error("simulator setting `{key}` is given twice")]
    Repeated { key: &'static str },
    #[error("simulator setting `{key}` needs {expected}, not `{value}`")]
    BadValue {
        key: &'static str,
        expected: String,
        value: String,
    },
}

impl SimConfig {
    /// Every setting, by the name it has in a `sim:` url.
    pub const KEYS: &'static [&'static str] = &[
        "ttft_ms",
        "itl_ms",
        "tokens",
        "slots",
        "queue",
        "jitter",
        "tokens_jitter",
        "prefill_tokens",
        "prefill_slope",
        "decode_slope",
        "error_rate",
        "stream_error_rate",
        "seed",
        "model",
    ];

    /// The server behind a bare `sim:`.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            ttft_ms: 200.0,
            itl_ms: 20.0,
            tokens: 100,
            slots: 64,
            queue: 4096,
            jitter: 0.1,
            tokens_jitter: 0.0,
            prefill_tokens: 4096,
            prefill_slope: 1.0,
            decode_slope: 1.0,
            error_rate: 0.0,
            stream_error_rate: 0.0,
            seed: 0,
            model: "sim".to_owned(),
        }
    }

    /// Reads `sim:` or `sim:?key=value&…`.
    ///
    /// # Errors
    /// Another scheme, an unknown or repeated key, a value out of range.
    pub fn from_url(url: &str) -> Result<Self, ConfigError> {
        let rest = url.strip_prefix("sim:").unwrap_or("not a query");
        match rest.strip_prefix('?') {
            Some(query) => Self::from_query(query),
            None if rest.is_empty() => Ok(Self::standard()),
            None => Err(ConfigError::NotSim {
                url: url.to_owned(),
            }),
        }
    }

    /// Reads `key=value&…` over the standard settings.
    ///
    /// # Errors
    /// An unknown or repeated key, a value out of range.
    pub fn from_query(query: &str) -> Result<Self, ConfigError> {
        let mut config = Self::standard();
        let mut seen = Vec::with_capacity(Self::KEYS.len());
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            let key = known_key(&key)?;
            if seen.contains(&key) {
                return Err(ConfigError::Repeated { key });
            }
            seen.push(key);
            config.set(key, &value)?;
        }
        Ok(config)
    }

    /// Sets one setting by its name, as a command-line flag does.
    ///
    /// # Errors
    /// An unknown key, a value out of range.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let key = known_key(key)?;
        match key {
            "ttft_ms" => self.ttft_ms = real(key, value, MAX_DURATION_MS)?,
            "itl_ms" => self.itl_ms = real(key, value, MAX_DURATION_MS)?,
            "tokens" => self.tokens = whole(key, value, 1, MAX_OUTPUT_TOKENS)?,
            "slots" => self.slots = whole(key, value, 1, MAX_SLOTS)?,
            "queue" => self.queue = whole(key, value, 0, MAX_QUEUE)?,
            "jitter" => self.jitter = real(key, value, 1.0)?,
            "tokens_jitter" => self.tokens_jitter = real(key, value, 1.0)?,
            "prefill_tokens" => self.prefill_tokens = whole(key, value, 1, u32::MAX)?,
            "prefill_slope" => self.prefill_slope = real(key, value, MAX_SLOPE)?,
            "decode_slope" => self.decode_slope = real(key, value, MAX_SLOPE)?,
            "error_rate" => self.error_rate = real(key, value, 1.0)?,
            "stream_error_rate" => self.stream_error_rate = real(key, value, 1.0)?,
            "seed" => self.seed = seed(key, value)?,
            _ => self.model = name(key, value)?,
        }
        Ok(())
    }

    /// Checks settings that were assigned rather than parsed.
    ///
    /// # Errors
    /// The first setting out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        Self::from_query(&self.to_query()).map(|_| ())
    }

    /// All settings as [`Self::from_query`] reads them, for a manifest.
    #[must_use]
    pub fn to_query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for key in Self::KEYS {
            query.append_pair(key, &self.get(key));
        }
        query.finish()
    }

    fn get(&self, key: &str) -> String {
        match key {
            "ttft_ms" => self.ttft_ms.to_string(),
            "itl_ms" => self.itl_ms.to_string(),
            "tokens" => self.tokens.to_string(),
            "slots" => self.slots.to_string(),
            "queue" => self.queue.to_string(),
            "jitter" => self.jitter.to_string(),
            "tokens_jitter" => self.tokens_jitter.to_string(),
            "prefill_tokens" => self.prefill_tokens.to_string(),
            "prefill_slope" => self.prefill_slope.to_string(),
            "decode_slope" => self.decode_slope.to_string(),
            "error_rate" => self.error_rate.to_string(),
            "stream_error_rate" => self.stream_error_rate.to_string(),
            "seed" => self.seed.to_string(),
            _ => self.model.clone(),
        }
    }
}

fn known_key(key: &str) -> Result<&'static str, ConfigError> {
    SimConfig::KEYS
        .iter()
        .copied()
        .find(|known| *known == key)
        .ok_or_else(|| ConfigError::UnknownKey {
            key: key.to_owned(),
        })
}

fn bad(key: &'static str, value: &str, expected: String) -> ConfigError {
    ConfigError::BadValue {
        key,
        expected,
        value: value.to_owned(),
    }
}

fn real(key: &'static str, value: &str, max: f64) -> Result<f64, ConfigError> {
    match value.parse::<f64>() {
        // A minus zero would print as a different query.
        Ok(number) if (0.0..=max).contains(&number) => Ok(number.abs()),
        _ => Err(bad(key, value, format!("a number from 0 to {max}"))),
    }
}

fn whole(key: &'static str, value: &str, min: u32, max: u32) -> Result<u32, ConfigError> {
    match value.parse::<u32>() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(bad(
            key,
            value,
            format!("a whole number from {min} to {max}"),
        )),
    }
}

fn seed(key: &'static str, value: &str) -> Result<u64, ConfigError> {
    value
        .parse()
        .map_err(|_| bad(key, value, format!("a whole number from 0 to {}", u64::MAX)))
}

fn name(key: &'static str, value: &str) -> Result<String, ConfigError> {
    if value.is_empty() {
        return Err(bad(key, value, "a name".to_owned()));
    }
    Ok(value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bare_url_is_the_standard_server() {
        assert_eq!(SimConfig::from_url("sim:"), Ok(SimConfig::standard()));
        assert_eq!(SimConfig::from_url("sim:?"), Ok(SimConfig::standard()));
    }

    #[test]
    fn a_url_overrides_what_it_names_and_nothing_else() {
        let config = SimConfig::from_url("sim:?ttft_ms=12.5&slots=3&model=a%20b").unwrap();
        let expected = SimConfig {
            ttft_ms: 12.5,
            slots: 3,
            model: "a b".to_owned(),
            ..SimConfig::standard()
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn every_key_is_settable_and_printed() {
        for key in SimConfig::KEYS {
            let mut config = SimConfig::standard();
            let value = if *key == "model" { "other" } else { "1" };
            config.set(key, value).unwrap();
            assert_eq!(config.get(key), value, "{key}");
        }
    }

    #[test]
    fn errors_name_the_setting_and_what_it_needs() {
        let text = |query: &str| SimConfig::from_query(query).unwrap_err().to_string();
        assert!(text("ttft=1").contains("unknown simulator setting `ttft`"));
        assert!(text("ttft=1").contains("hint: the settings are ttft_ms itl_ms"));
        assert!(text("jitter=1.5").contains("`jitter` needs a number from 0 to 1, not `1.5`"));
        assert!(text("slots=0").contains("from 1 to 65536"));
        assert!(text("slots=8&slots=9").contains("given twice"));
        assert!(text("model=").contains("needs a name"));
        for value in ["NaN", "inf", "-1", "1e9", "", "20ms"] {
            assert!(text(&format!("itl_ms={value}")).contains("`itl_ms` needs"));
        }
        assert!(SimConfig::from_url("sim:80").is_err());
        assert!(SimConfig::from_url("http://sim").is_err());
    }

    #[test]
    fn assigned_settings_are_checked_like_parsed_ones() {
        let mut config = SimConfig::standard();
        assert_eq!(config.validate(), Ok(()));
        config.jitter = f64::NAN;
        assert!(config.validate().is_err());
    }

    proptest! {
        /// For every valid configuration c, reading c's own query gives c.
        #[test]
        fn a_configuration_survives_its_query(
            ttft_ms in 0.0..1e6f64,
            jitter in 0.0..=1.0f64,
            tokens in 1..=MAX_OUTPUT_TOKENS,
            seed: u64,
            model in ".{1,20}",
        ) {
            let config = SimConfig { ttft_ms, jitter, tokens, seed, model, ..SimConfig::standard() };
            prop_assert_eq!(SimConfig::from_query(&config.to_query()), Ok(config));
        }

        /// Any text is a configuration or an error, never a panic.
        #[test]
        fn any_query_is_answered(query in ".*") {
            let parsed = SimConfig::from_query(&query);
            prop_assert!(parsed.is_ok() || parsed.is_err());
        }
    }
}
