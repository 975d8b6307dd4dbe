//! What is put around every prompt of a data set: a template, a system prompt,
//! images, a salt.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::error::WorkloadError;
use crate::prompts::{Item, Prompt, message, user};
use crate::sessions::messages_of;
use crate::tokens::{self, Encoder};

/// Largest image that is put into a body; base64 makes it a third larger.
pub const MAX_IMAGE_BYTES: u64 = 20 << 20;

/// Distinct prompts that a salt makes of a smaller data set, at most: they lie in
/// memory, and a longer run sends them again.
pub const MAX_SALTED_PROMPTS: usize = 100_000;

/// Text around a prompt for servers that put none around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template {
    /// The server's own: prompts go out as they are.
    Auto,
    /// `User:…` and `Assistant:`.
    Default,
    Qwen,
    Yi,
}

impl Template {
    /// As typed, and as it stands in a manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Default => "default",
            Self::Qwen => "qwen",
            Self::Yi => "yi",
        }
    }

    /// Byzer's formats; Qwen and Yi both speak ChatML.
    fn render(self, system: Option<&str>, text: &str) -> Option<String> {
        let system = |before: &str, behind: &str| {
            system.map_or_else(String::new, |s| format!("{before}{s}{behind}"))
        };
        match self {
            Self::Auto => None,
            Self::Default => Some(format!("{}User:{text}\nAssistant:", system("", "\n"))),
            Self::Qwen | Self::Yi => Some(format!(
                "{}<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
                system("<|im_start|>system\n", "<|im_end|>\n")
            )),
        }
    }
}

/// What is put around every prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Shaping {
    pub template: Template,
    /// Said first, unless a conversation has a system message of its own.
    pub system_prompt: Option<String>,
    /// URLs, or files that become `data:` URLs, behind the text of the prompt.
    pub images: Vec<String>,
    /// Makes the beginning of every prompt its own, so that no prefix cache holds
    /// it: 16 hex digits of the salt and the prompt's place, and a line feed.
    pub salt: Option<String>,
}

impl Default for Shaping {
    fn default() -> Self {
        Self {
            template: Template::Auto,
            system_prompt: None,
            images: Vec::new(),
            salt: None,
        }
    }
}

impl Shaping {
    /// Shapes all of `prompts`; with a salt there are `limit` of them, where a
    /// smaller data set would be sent again and again. Returns whether any changed.
    ///
    /// # Errors
    /// When an image cannot be read.
    pub(crate) fn apply(
        &self,
        prompts: &mut Vec<Prompt>,
        limit: Option<usize>,
    ) -> Result<bool, WorkloadError> {
        if *self == Self::default() {
            return Ok(false);
        }
        let images: Vec<Value> = image_parts(&self.images, None)?;
        for prompt in prompts.iter_mut() {
            self.shape(&mut prompt.item, &images);
        }
        if let Some(salt) = &self.salt {
            let wanted = limit.unwrap_or(0).min(MAX_SALTED_PROMPTS);
            let own = prompts.len();
            for index in own..wanted {
                prompts.push(prompts[index % own].clone());
            }
            for (index, prompt) in prompts.iter_mut().enumerate() {
                season(&mut prompt.item, &grain(salt, index));
            }
        }
        Ok(true)
    }

    fn shape(&self, item: &mut Item, images: &[Value]) {
        let system = self.system_prompt.as_deref();
        if let Item::Text(text) = item {
            if let Some(rendered) = self.template.render(system, text) {
                *text = rendered;
                return add_images(item, images);
            }
            if let Some(system) = system {
                let text = std::mem::take(text);
                *item = Item::Messages(vec![message("system", system), user(text)]);
            }
        } else if let (Some(system), Some(messages)) = (system, messages_of(item)) {
            let is_system = |m: &Value| matches!(m["role"].as_str(), Some("system" | "developer"));
            if !messages.first().is_some_and(is_system) {
                messages.insert(0, message("system", system));
            }
        }
        add_images(item, images);
    }
}

/// What a salt puts before the prompt at `index`.
fn grain(salt: &str, index: usize) -> String {
    let hash = blake3::hash(format!("salt {salt} {index}").as_bytes());
    format!("{}\n", &hash.to_hex()[..16])
}

/// The digits that all prompts of trial `trial` begin with, from 0: equal for equal
/// seeds and salts, other ones for any other trial, so that no prefix cache knows a
/// trial's prompts from the trials before it.
#[must_use]
pub fn trial_salt(seed: u64, salt: Option<&str>, trial: usize) -> String {
    let salt = salt.unwrap_or_default();
    let hash = blake3::hash(format!("trial {trial} {seed} {salt}").as_bytes());
    hash.to_hex()[..16].to_owned()
}

/// Begins all of `prompts` with a line of `salt`. What they begin with in common they
/// still have in common. Returns how many had a place for it: a whole body whose
/// prompt is not found stays as it is.
///
/// # Errors
/// When `encoder`, which counts them anew, refuses a prompt.
pub fn salt_alike(
    prompts: &mut [Prompt],
    salt: &str,
    encoder: Option<&Encoder>,
) -> Result<usize, WorkloadError> {
    let grain = format!("{salt}\n");
    let mut salted = 0;
    for prompt in prompts.iter_mut() {
        salted += usize::from(season(&mut prompt.item, &grain));
    }
    if let Some(encoder) = encoder {
        tokens::recount(encoder, prompts)?;
    }
    Ok(salted)
}

/// Puts `grain` before all that `item` says; false where its beginning is not found.
fn season(item: &mut Item, grain: &str) -> bool {
    let prepend = |text: &mut String| {
        text.insert_str(0, grain);
        true
    };
    match item {
        Item::Text(text) => return prepend(text),
        Item::Body(body) => {
            if let Some(Value::String(prompt)) = body.get_mut("prompt") {
                return prepend(prompt);
            }
        }
        Item::Messages(_) => {}
    }
    let first = messages_of(item).and_then(|m| m.first_mut());
    match first.and_then(|m| m.get_mut("content")) {
        Some(Value::String(text)) => prepend(text),
        Some(Value::Array(parts)) => {
            parts.insert(0, json!({"type": "text", "text": grain}));
            true
        }
        _ => false,
    }
}

/// Adds image parts to the last message of the user's.
pub(crate) fn add_images(item: &mut Item, images: &[Value]) {
    if images.is_empty() {
        return;
    }
    if let Item::Text(text) = item {
        let text = std::mem::take(text);
        *item = Item::Messages(vec![user(text)]);
    }
    let Some(messages) = messages_of(item) else {
        return;
    };
    let last = messages.iter_mut().rev().find(|m| m["role"] == "user");
    let Some(content) = last.and_then(|m| m.get_mut("content")) else {
        return;
    };
    if let Value::String(text) = content {
        *content = json!([{"type": "text", "text": text}]);
    }
    if let Value::Array(parts) = content {
        parts.extend_from_slice(images);
    }
}

/// Content parts of images: URLs as they are, files as `data:` URLs. Relative
/// paths count from `folder`.
///
/// # Errors
/// When a file cannot be read, is too large, or is no image that APIs take.
pub(crate) fn image_parts(
    images: &[String],
    folder: Option<&Path>,
) -> Result<Vec<Value>, WorkloadError> {
    let part = |image: &String| {
        let is_url = ["http://", "https://", "data:"]
            .iter()
            .any(|s| image.starts_with(s));
        let url = if is_url {
            image.clone()
        } else {
            let path = folder.map_or_else(|| image.into(), |folder| folder.join(image));
            data_url(&path)?
        };
        Ok(json!({"type": "image_url", "image_url": {"url": url}}))
    };
    images.iter().map(part).collect()
}

fn data_url(path: &Path) -> Result<String, WorkloadError> {
    let refused = |problem: String| WorkloadError::Image {
        path: path.to_owned(),
        problem,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| WorkloadError::read(path, source))?;
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        return Err(refused(format!("is over {MAX_IMAGE_BYTES} bytes")));
    }
    let kind = image_type(&bytes).ok_or_else(|| refused("is no PNG, JPEG, GIF or WebP".into()))?;
    Ok(format!("data:{kind};base64,{}", BASE64.encode(bytes)))
}

/// By its first bytes: names lie.
fn image_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaped(shaping: &Shaping, item: Item) -> Item {
        let mut prompts = vec![item.into()];
        shaping.apply(&mut prompts, None).unwrap();
        prompts.remove(0).item
    }

    #[test]
    fn templates_are_those_of_byzer() {
        let render = |template, system: Option<&str>| {
            let shaping = Shaping {
                template,
                system_prompt: system.map(str::to_owned),
                ..Shaping::default()
            };
            shaped(&shaping, Item::Text("hi".into())).text()
        };
        let qwen = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(Template::Qwen, None), qwen);
        assert_eq!(
            render(Template::Yi, Some("s")),
            format!("<|im_start|>system\ns<|im_end|>\n{qwen}")
        );
        assert_eq!(render(Template::Default, None), "User:hi\nAssistant:");
        assert_eq!(render(Template::Auto, Some("s")), "s\nhi");
    }

    #[test]
    fn a_system_message_of_the_data_set_stays() {
        let shaping = Shaping {
            system_prompt: Some("ours".into()),
            ..Shaping::default()
        };
        let own = vec![message("system", "theirs"), user("x")];
        assert_eq!(shaped(&shaping, Item::Messages(own)).text(), "theirs\nx");
        assert_eq!(
            shaped(&shaping, Item::Messages(vec![user("x")])).text(),
            "ours\nx"
        );
    }

    #[test]
    fn salted_prompts_share_no_beginning_and_repeat_for_an_equal_salt() {
        let texts = |salt: &str| {
            let shaping = Shaping {
                salt: Some(salt.to_owned()),
                ..Shaping::default()
            };
            let mut prompts: Vec<Prompt> = vec![Item::Text("same".into()).into(); 2];
            shaping.apply(&mut prompts, Some(5)).unwrap();
            prompts.iter().map(|p| p.item.text()).collect::<Vec<_>>()
        };
        let first = texts("a");
        assert_eq!(first, texts("a"));
        let heads = |texts: &[String]| texts.iter().map(|t| t[..8].to_owned()).collect::<Vec<_>>();
        let mut all = heads(&first);
        all.extend(heads(&texts("b")));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 10);
        assert!(first.iter().all(|text| text.ends_with("\nsame")));
    }

    #[test]
    fn prompts_of_a_trial_begin_alike_and_unlike_those_of_any_other() {
        let salts: Vec<String> = (0..3)
            .flat_map(|trial| {
                [(1, None), (2, None), (1, Some("s"))]
                    .map(|(seed, salt)| trial_salt(seed, salt, trial))
            })
            .collect();
        let mut distinct = salts.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), salts.len());
        assert_eq!(trial_salt(1, Some("s"), 2), salts[8]);

        let body = |text: &str| match serde_json::from_str(text).unwrap() {
            Value::Object(body) => Item::Body(body),
            _ => unreachable!(),
        };
        let mut prompts: Vec<Prompt> = vec![
            Item::Text("a".into()).into(),
            Item::Messages(vec![message("system", "s"), user("b")]).into(),
            body(r#"{"prompt":"c"}"#).into(),
            body(r#"{"inputs":"d"}"#).into(),
        ];
        prompts[0].input_tokens = Some(1);
        let encoder = Encoder {
            encode: std::sync::Arc::new(|text| Some(vec![0; text.len()])),
            path: "t".into(),
            content_hash: String::new(),
        };
        assert_eq!(salt_alike(&mut prompts, "77", Some(&encoder)).unwrap(), 3);
        let texts: Vec<String> = prompts.iter().map(|p| p.item.text()).collect();
        assert_eq!(texts, ["77\na", "77\ns\nb", "77\nc", ""]);
        assert_eq!(prompts[0].input_tokens, Some(4));
        assert_eq!(prompts[3].item, body(r#"{"inputs":"d"}"#));
        encoder_that_refuses_is_an_error(prompts);
    }

    fn encoder_that_refuses_is_an_error(mut prompts: Vec<Prompt>) {
        let encoder = Encoder {
            encode: std::sync::Arc::new(|_| None),
            path: "t".into(),
            content_hash: String::new(),
        };
        assert!(salt_alike(&mut prompts, "77", Some(&encoder)).is_err());
    }

    #[test]
    fn images_are_urls_or_bounded_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dot.bin");
        std::fs::write(&path, [0x89, b'P', b'N', b'G', 1]).unwrap();
        let shaping = Shaping {
            images: vec!["https://host/x.png".into(), path.display().to_string()],
            ..Shaping::default()
        };
        let Item::Messages(messages) = shaped(&shaping, Item::Text("see".into())) else {
            unreachable!()
        };
        let parts = messages[0]["content"].as_array().unwrap();
        assert_eq!(parts[0], json!({"type": "text", "text": "see"}));
        assert_eq!(parts[1]["image_url"]["url"], "https://host/x.png");
        assert_eq!(
            parts[2]["image_url"]["url"],
            "data:image/png;base64,iVBORwE="
        );
        std::fs::write(&path, "text").unwrap();
        assert!(
            shaping
                .apply(&mut vec![Item::Text("x".into()).into()], None)
                .is_err()
        );
        let file = File::create(&path).unwrap();
        file.set_len(MAX_IMAGE_BYTES + 1).unwrap();
        let refused = shaping.apply(&mut vec![Item::Text("x".into()).into()], None);
        assert!(refused.unwrap_err().to_string().contains("is over"));
    }
}
