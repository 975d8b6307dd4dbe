//! A load on one launched server after the other.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::cli::LoadArgs;

/// Each cell launches a server: hours, where models are large.
const MAX_CELLS: usize = 256;
/// Folders of one name that are told apart by a number.
const MAX_FOLDERS: u32 = 10_000;
/// Names that a command has anyway.
const TAKEN: [&str; 2] = ["port", "model"];

/// A name and the values that stand for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Axis {
    name: String,
    values: Vec<String>,
}

impl Axis {
    /// What stands in braces in the command.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, values) = text.split_once('=').ok_or("expected NAME=VALUE,VALUE")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            return Err("a name has letters, digits, - and _ only".to_owned());
        }
        if TAKEN.contains(&name) {
            return Err(format!("{{{name}}} has a meaning of its own"));
        }
        let values: Vec<String> = values.split(',').map(str::to_owned).collect();
        if values.iter().any(String::is_empty) {
            return Err("a value is empty".to_owned());
        }
        let name = name.to_owned();
        Ok(Self { name, values })
    }
}

/// One value of each axis.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cell {
    values: Vec<(String, String)>,
}

impl Cell {
    /// Names and values in the order of the axes.
    pub fn values(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(n, v)| (n.as_str(), v.as_str()))
    }

    /// As in `tp=2 dtype=fp8`.
    fn text(&self) -> String {
        let words = self.values().map(|(name, value)| format!("{name}={value}"));
        words.collect::<Vec<_>>().join(" ")
    }

    /// A JSON object of it.
    #[must_use]
    pub fn json(&self) -> Value {
        self.values()
            .map(|(n, v)| (n.to_owned(), json!(v)))
            .collect()
    }

    /// Name of its folder: `tp-2-dtype-fp8`.
    fn folder(&self) -> String {
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let words = self.values().map(|(name, value)| format!("{name}-{value}"));
        let name = words.collect::<Vec<_>>().join("-");
        name.chars()
            .map(|c| if safe(c) { c } else { '-' })
            .collect()
    }
}

/// Every combination of the values of `axes`, the last axis changing fastest.
///
/// # Errors
/// When there are too many, an axis comes twice, or `template` names one nowhere.
fn cells(axes: &[Axis], template: &str) -> Result<Vec<Cell>> {
    let mut cells = vec![Cell::default()];
    for (at, axis) in axes.iter().enumerate() {
        let name = &axis.name;
        if axes[..at].iter().any(|other| other.name == *name) {
            bail!("--matrix names {name} twice\nhint: give all its values at once: {name}=A,B");
        }
        if !template.contains(&format!("{{{name}}}")) {
            bail!("--matrix has {name}, and neither --launch nor --local-args has {{{name}}}");
        }
        if cells.len() * axis.values.len() > MAX_CELLS {
            bail!("--matrix makes more than {MAX_CELLS} cells");
        }
        let with = |cell: &Cell, value: &String| {
            let mut cell = cell.clone();
            cell.values.push((name.clone(), value.clone()));
            cell
        };
        let wider = cells
            .iter()
            .flat_map(|c| axis.values.iter().map(move |v| with(c, v)));
        cells = wider.collect();
    }
    Ok(cells)
}

/// A cell that could not be carried out.
#[derive(Debug)]
pub struct FailedCell {
    pub cell: Cell,
    pub error: anyhow::Error,
}

/// The cells of `--matrix`, each with its folder and the arguments of its load;
/// `None` where there is no matrix.
///
/// # Errors
/// As [`cells`], and when nothing is to be launched.
pub fn plan(args: &LoadArgs) -> Result<Option<Vec<(Cell, LoadArgs)>>> {
    if args.launch.matrix.is_empty() {
        return Ok(None);
    }
    let Some(template) = args.launch.template() else {
        bail!(
            "--matrix needs a server to launch\nhint: --launch 'COMMAND {{tp}}', or --local SERVER --local-args '{{tp}}'"
        );
    };
    let cells = cells(&args.launch.matrix, &template)?.into_iter();
    let planned = cells.map(|cell| {
        let mut args = args.clone();
        let labels = cell.values().map(|(n, v)| (n.to_owned(), v.to_owned()));
        args.output.labels.extend(labels);
        (cell, args)
    });
    Ok(Some(planned.collect()))
}

/// Carries out `run` for each of `planned` in a folder of its own below `root`.
/// Says which of them fail, and returns those.
pub fn each(
    root: &Path,
    planned: &[(Cell, LoadArgs)],
    is_stopped: impl Fn() -> bool,
    mut run: impl FnMut(&Cell, &LoadArgs, &Path) -> Result<()>,
) -> Vec<FailedCell> {
    let mut failed = Vec::new();
    let count = planned.len();
    for (number, (cell, args)) in (1..).zip(planned) {
        if is_stopped() {
            break;
        }
        eprintln!("cell {number} of {count}: {}", cell.text());
        let ran = fresh_folder(root, &cell.folder()).and_then(|dir| run(cell, args, &dir));
        if let Err(error) = ran {
            let message = tapedeck_run::ending::message(&error);
            eprintln!("cell {} failed: {message}", cell.text());
            let cell = cell.clone();
            failed.push(FailedCell { cell, error });
        }
    }
    failed
}

/// `root/name`, or with a number behind it where that holds something already.
fn fresh_folder(root: &Path, name: &str) -> Result<PathBuf> {
    let numbered = (2..MAX_FOLDERS).map(|n| root.join(format!("{name}.{n}")));
    let mut folders = std::iter::once(root.join(name)).chain(numbered);
    let is_free = |dir: &PathBuf| !dir.exists() && !tapedeck_run::launch::log_path(dir).exists();
    match folders.find(is_free) {
        Some(dir) => Ok(dir),
        None => bail!("{} has no room for another {name}", root.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes(texts: &[&str]) -> Vec<Axis> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn cells_are_all_combinations_in_order() {
        let axes = axes(&["tp=1,2", "dtype=auto,fp8/x"]);
        let cells = cells(&axes, "s {tp} {dtype}").unwrap();
        let folders: Vec<String> = cells.iter().map(Cell::folder).collect();
        let expected = [
            "tp-1-dtype-auto",
            "tp-1-dtype-fp8-x",
            "tp-2-dtype-auto",
            "tp-2-dtype-fp8-x",
        ];
        assert_eq!(folders, expected);
        assert_eq!(cells[3].json(), json!({"tp": "2", "dtype": "fp8/x"}));
    }

    #[test]
    fn a_matrix_that_says_nothing_or_too_much_is_refused() {
        for (texts, template, message) in [
            (&["a=1", "a=2"][..], "{a}", "twice"),
            (&["a=1"], "{b}", "has {a}"),
            (
                &["a=1,2,3,4,5,6,7,8", "b=1,2,3,4,5,6,7,8", "c=1,2,3,4,5"],
                "{a}{b}{c}",
                "256",
            ),
        ] {
            let error = cells(&axes(texts), template).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        for bad in ["a", "=1", "a=", "a=1,,2", "a b=1", "port=1", "{a}=1"] {
            assert!(bad.parse::<Axis>().is_err(), "{bad}");
        }
    }
}
