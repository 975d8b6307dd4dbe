//! Prompts that no trial of a search has from another.

use anyhow::Result;
use tapedeck_workload::shaping::{salt_alike, trial_salt};
use tapedeck_workload::{Encoder, Prompt, encoder};

use crate::config::Level;
use crate::load::Load;

/// How the prompts of a trial come to be its own.
pub(super) enum Salting {
    /// They do not.
    No,
    /// Each begins with a line that is the trial's. The encoder counts them anew,
    /// where something counts them at all.
    Line(Option<Encoder>),
}

impl Salting {
    pub(super) fn new(load: &Load<'_>) -> Result<Self> {
        if load.args.find.find_same_prompts {
            return Ok(Self::No);
        }
        let tokenizer = load.source.spec.tokenizer_path.as_deref();
        Ok(Self::Line(match tokenizer {
            Some(path) => encoder(path)?,
            None => None,
        }))
    }

    /// The prompts of a trial at `level`, which is told how they are salted; `None`
    /// where they are those of every trial.
    pub(super) fn of(&self, load: &Load<'_>, level: &mut Level) -> Result<Option<Vec<Prompt>>> {
        let (Self::Line(encoder), Some(trial)) = (self, &mut level.trial) else {
            return Ok(None);
        };
        let workload = &load.args.workload;
        let salt = trial_salt(workload.seed, workload.around.salt.as_deref(), trial.number);
        let mut prompts = load.source.loaded.prompts.clone();
        let salted = salt_alike(&mut prompts, &salt, encoder.as_ref())?;
        if salted < prompts.len() && trial.number == 0 {
            eprintln!(
                "warning: {} of {} prompts are the same in every trial: they are whole bodies, and where their prompt begins is not known; a prefix cache has them from the second trial on",
                prompts.len() - salted,
                prompts.len()
            );
        }
        trial.salted_prompts = salted;
        trial.salt = (salted > 0).then_some(salt);
        Ok((salted > 0).then_some(prompts))
    }
}
