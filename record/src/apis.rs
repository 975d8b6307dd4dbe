//! `record apis`: what `--api` knows.

use std::io::{ErrorKind, Write};

use anyhow::{Context, Result, bail};
use tapedeck_run::ending::Ending;
use tapedeck_wire::dialect::Api;

use crate::cli::ApisArgs;

/// Carries out `record apis`.
///
/// # Errors
/// When there is no such API, or stdout cannot be written.
pub(crate) fn run(args: &ApisArgs) -> Result<Ending> {
    let text = match &args.name {
        None => list(),
        Some(name) => match Api::built_in().find(|row| row.answers_to(name)) {
            Some(row) => row.text.to_owned(),
            None => bail!("no built-in API is called {name}\nhint: `record apis` lists them"),
        },
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // A reader that has seen enough is no error.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
        written => written.context("cannot write the APIs")?,
    }
    Ok(Ending::Fine)
}

/// One line an API: name, path, what it is.
fn list() -> String {
    let mut text = String::new();
    for row in Api::built_in() {
        let dialect = row.dialect();
        let (path, about) = (&dialect.request.path, &dialect.about);
        text.push_str(&format!("{:<21} {path:<52} {about}\n", row.name));
    }
    text.push_str(
        "\n`record apis NAME` prints one as the file it is. --api takes your own: change a copy, or write\n\
         version = 1, extends = \"NAME\" and what differs.\n",
    );
    text
}
