//! Data sets and tokenizers by name, from a hub or its mirror, through a cache.
//!
//! `hf:owner/name[/file][@revision]` and `modelscope:owner/name[/file][@revision]`.
//! What is in the cache is used as it is, without asking; what is not is downloaded
//! beside its place and renamed into it when it is whole.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use url::Url;

use crate::download::{Client, Source};

/// Whose files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hub {
    HuggingFace,
    ModelScope,
}

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Dataset,
    Model,
}

/// A file on a hub, or the only one of its kind in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub hub: Hub,
    /// `owner/name`.
    pub repository: String,
    pub file: Option<String>,
    pub revision: Option<String>,
}

/// Where files come from and where they are kept.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// Instead of the hub's own variable.
    pub url: Option<String>,
    /// Instead of the user's cache folder.
    pub cache: Option<PathBuf>,
    /// Only what is in the cache.
    pub offline: bool,
    /// No progress bar.
    pub quiet: bool,
}

/// A file that is here now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub path: PathBuf,
    /// The file's full name on its hub.
    pub name: String,
    /// As the hub told when it was downloaded.
    pub etag: Option<String>,
    pub commit: Option<String>,
}

impl Hub {
    const ALL: [Self; 2] = [Self::HuggingFace, Self::ModelScope];

    fn prefix(self) -> &'static str {
        match self {
            Self::HuggingFace => "hf",
            Self::ModelScope => "modelscope",
        }
    }

    /// The variables that name the hub's address; users of its own client know them.
    fn address_variables(self) -> &'static [&'static str] {
        match self {
            Self::HuggingFace => &["HF_ENDPOINT"],
            Self::ModelScope => &["MODELSCOPE_ENDPOINT", "MODELSCOPE_DOMAIN"],
        }
    }

    pub(crate) fn token_variable(self) -> &'static str {
        match self {
            Self::HuggingFace => "HF_TOKEN",
            Self::ModelScope => "MODELSCOPE_API_TOKEN",
        }
    }

    fn default_revision(self) -> &'static str {
        match self {
            Self::HuggingFace => "main",
            Self::ModelScope => "master",
        }
    }

    /// The address of the hub; never one of our own choosing.
    fn address(self, options: &HubOptions) -> Result<Url> {
        let variables = self.address_variables();
        let own = variables.iter().find_map(|name| std::env::var(name).ok());
        let named = options.url.clone().or(own).filter(|url| !url.is_empty());
        let Some(mut address) = named else {
            bail!(
                "nobody says where {}: is\nhint: set {} to the address of the hub or of a mirror, or give --hub-url",
                self.prefix(),
                variables[0]
            );
        };
        if !address.contains("://") {
            address = format!("https://{address}");
        }
        let url = Url::parse(&address)
            .ok()
            .filter(|url| !url.cannot_be_a_base());
        url.context("the address of the hub is no URL\nhint: https://host, or http://host:port for a mirror")
    }

    /// `file` of `repository`, ready to be downloaded.
    fn file_path(self, kind: Kind, repository: &str, revision: &str, file: &str) -> String {
        match (self, kind) {
            (Self::HuggingFace, Kind::Dataset) => {
                format!(
                    "datasets/{repository}/resolve/{}/{}",
                    escaped(revision, false),
                    escaped(file, true)
                )
            }
            (Self::HuggingFace, Kind::Model) => {
                format!(
                    "{repository}/resolve/{}/{}",
                    escaped(revision, false),
                    escaped(file, true)
                )
            }
            (Self::ModelScope, kind) => format!(
                "api/v1/{}/{repository}/repo?Source=SDK&Revision={}&FilePath={}",
                kind.folder(),
                escaped(revision, false),
                escaped(file, false)
            ),
        }
    }

    /// The list of the files of a repository.
    fn list_path(self, kind: Kind, repository: &str, revision: &str) -> String {
        let (folder, revision) = (kind.folder(), escaped(revision, false));
        match self {
            Self::HuggingFace => format!("api/{folder}/{repository}/revision/{revision}"),
            Self::ModelScope => {
                format!("api/v1/{folder}/{repository}/repo/tree?Recursive=True&Revision={revision}")
            }
        }
    }

    fn listed(self, answer: &Value) -> Vec<String> {
        let (list, name) = match self {
            Self::HuggingFace => ("/siblings", "rfilename"),
            Self::ModelScope => ("/Data/Files", "Path"),
        };
        let files = answer.pointer(list).and_then(Value::as_array);
        let names = files.into_iter().flatten().filter_map(|f| f[name].as_str());
        names.map(str::to_owned).collect()
    }
}

impl Kind {
    fn folder(self) -> &'static str {
        match self {
            Self::Dataset => "datasets",
            Self::Model => "models",
        }
    }
}

impl Reference {
    /// What `text` names, where it begins like a name on a hub.
    ///
    /// # Errors
    /// When it does, and goes on otherwise.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let found = Hub::ALL
            .into_iter()
            .find_map(|hub| Some((hub, text.strip_prefix(hub.prefix())?.strip_prefix(':')?)));
        let Some((hub, rest)) = found else {
            return Ok(None);
        };
        let (rest, revision) = match rest.rsplit_once('@') {
            Some((rest, revision)) => (rest, Some(revision.to_owned())),
            None => (rest, None),
        };
        let mut parts = rest.splitn(3, '/');
        let (owner, name) = (
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
        let file = parts.next().map(str::to_owned);
        let named = [
            Some(owner),
            Some(name),
            file.as_deref(),
            revision.as_deref(),
        ];
        if !named.into_iter().flatten().all(is_safe) {
            bail!(
                "{text:?} is no name on a hub\nhint: {}:OWNER/NAME, with /FILE and @REVISION if need be",
                hub.prefix()
            );
        }
        Ok(Some(Self {
            hub,
            repository: format!("{owner}/{name}"),
            file,
            revision,
        }))
    }

    /// `owner/name` on Hugging Face, as other tools take it, unless a file of that
    /// name is here.
    #[must_use]
    pub fn of_model(text: &str) -> Option<Self> {
        let (owner, name) = text.split_once('/')?;
        let is_name = is_safe(owner) && is_safe(name) && !name.contains('/');
        (is_name && !Path::new(text).exists()).then(|| Self {
            hub: Hub::HuggingFace,
            repository: text.to_owned(),
            file: None,
            revision: None,
        })
    }

    fn revision(&self) -> &str {
        self.revision
            .as_deref()
            .unwrap_or_else(|| self.hub.default_revision())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.hub.prefix(), self.repository)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        write!(f, "@{}", self.revision())
    }
}

/// Whether `text` may be part of a path on this disk and in a URL: relative, no
/// way up, nothing that a terminal or a shell would take for something else.
fn is_safe(text: &str) -> bool {
    let is_plain = |c: char| c.is_alphanumeric() || "-_.+=/ ".contains(c);
    let normal = |part: Component<'_>| matches!(part, Component::Normal(_));
    !text.is_empty()
        && text.len() <= 512
        && !text.ends_with('/')
        && text.chars().all(is_plain)
        && Path::new(text).components().all(normal)
}

/// `text` for a URL; `keeps_slashes` in a path, not in a single part of it.
fn escaped(text: &str, keeps_slashes: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if is_plain || (keeps_slashes && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// The file that `reference` names, from the cache or from its hub.
///
/// # Errors
/// When it is nowhere, is not the only one of its kind, or cannot be downloaded.
pub fn fetch(reference: &Reference, kind: Kind, options: &HubOptions) -> Result<Fetched> {
    let folder = cache_folder(options)?
        .join(reference.hub.prefix())
        .join(kind.folder())
        .join(reference.repository.replace('/', "--"))
        .join(reference.revision().replace('/', "--"));
    let mut client = Client::new(reference.hub, options.quiet)?;
    let mut reference = reference.clone();
    if reference.file.is_none() {
        reference.file = Some(match kind {
            Kind::Model => TOKENIZER_FILE.to_owned(),
            Kind::Dataset => only_data_file(&reference, &folder, &mut client, options)?,
        });
    }
    let file = reference.file.as_deref().unwrap_or_default();
    let path = folder.join(file);
    if !path.is_file() {
        if options.offline {
            return Err(not_cached(&reference, &folder));
        }
        let address = reference.hub.address(options)?;
        let at = reference
            .hub
            .file_path(kind, &reference.repository, reference.revision(), file);
        let source = Source::new(&address, &at, &reference.to_string())?;
        client.download(&source, &path)?;
    }
    let told = crate::download::told_of(&path);
    Ok(Fetched {
        path,
        name: reference.to_string(),
        etag: told.etag,
        commit: told.commit,
    })
}

fn not_cached(reference: &Reference, folder: &Path) -> anyhow::Error {
    anyhow!(
        "{reference} is not in the cache {}, and nothing is downloaded offline\nhint: without --offline (and HF_HUB_OFFLINE) it is",
        folder.display()
    )
}

fn cache_folder(options: &HubOptions) -> Result<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    options
        .cache
        .clone()
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("tapedeck/hub")))
        .or_else(|| Some(variable("HOME")?.join(".cache/tapedeck/hub")))
        .context("there is no folder for downloads\nhint: --hub-cache DIR")
}

/// File that a model's repository keeps its tokenizer in.
const TOKENIZER_FILE: &str = "tokenizer.json";

/// Ends of the names of files that hold records.
const DATA_ENDS: [&str; 5] = [".jsonl", ".json", ".csv", ".parquet", ".txt"];

/// Names with such an end that describe a data set instead.
const DESCRIPTIONS: [&str; 4] = [
    "dataset_infos.json",
    "dataset_info.json",
    "configuration.json",
    "dataset_meta.json",
];

fn is_data(name: &str) -> bool {
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    let base = plain.rsplit('/').next().unwrap_or_default();
    DATA_ENDS.iter().any(|end| plain.ends_with(end)) && !DESCRIPTIONS.contains(&base)
}

/// The one file of records in a repository: of the cache, else of the hub.
fn only_data_file(
    reference: &Reference,
    folder: &Path,
    client: &mut Client,
    options: &HubOptions,
) -> Result<String> {
    let cached = match crate::download::files_in(folder) {
        files if options.offline || files.len() == 1 => files,
        _ => Vec::new(),
    };
    if cached.is_empty() && options.offline {
        return Err(not_cached(reference, folder));
    }
    let names = if cached.is_empty() {
        let hub = reference.hub;
        let at = hub.list_path(Kind::Dataset, &reference.repository, reference.revision());
        let source = Source::new(&hub.address(options)?, &at, &reference.to_string())?;
        hub.listed(&client.json(&source)?)
    } else {
        cached
    };
    let mut data: Vec<String> = names.into_iter().filter(|name| is_data(name)).collect();
    match data.len() {
        1 => Ok(data.remove(0)),
        0 => {
            bail!("{reference} has no file of records\nhint: name one behind the repository: /FILE")
        }
        n => bail!(
            "{reference} has {n} files of records: {}\nhint: name one behind the repository: /FILE",
            data[..n.min(8)].join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_dangerous_ones_refused() {
        let parsed = Reference::parse("hf:o/n/data/x y.jsonl@v1.0")
            .unwrap()
            .unwrap();
        assert_eq!(parsed.repository, "o/n");
        assert_eq!(parsed.file.as_deref(), Some("data/x y.jsonl"));
        assert_eq!(parsed.to_string(), "hf:o/n/data/x y.jsonl@v1.0");
        let parsed = Reference::parse("modelscope:o/n").unwrap().unwrap();
        assert_eq!((parsed.revision(), &parsed.file), ("master", &None));
        assert!(Reference::parse("data.jsonl").unwrap().is_none());
        for bad in [
            "hf:",
            "hf:o",
            "hf:o/",
            "hf:o/..",
            "hf:o/n/../../x",
            "hf:o/n@../x",
            "hf:o/n/",
            "hf:o/n/a?b",
            "hf:o/n@",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_are_those_of_the_hubs() {
        let at = |hub: Hub, kind| hub.file_path(kind, "o/n", "refs/pr/1", "a b/c.json");
        assert_eq!(
            at(Hub::HuggingFace, Kind::Dataset),
            "datasets/o/n/resolve/refs%2Fpr%2F1/a%20b/c.json"
        );
        assert_eq!(
            at(Hub::HuggingFace, Kind::Model),
            "o/n/resolve/refs%2Fpr%2F1/a%20b/c.json"
        );
        assert_eq!(
            at(Hub::ModelScope, Kind::Model),
            "api/v1/models/o/n/repo?Source=SDK&Revision=refs%2Fpr%2F1&FilePath=a%20b%2Fc.json"
        );
    }
}
