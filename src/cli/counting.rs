//! Flags of every command that reads plans: how requests are counted where a plan file does not say it, and how files go together.

use std::path::PathBuf;

use clap::{
    Args,
    builder::{BoolishValueParser, PossibleValuesParser, TypedValueParser as _},
};

use crate::{
    limit::Algorithm,
    plan::{Charge, Counting, LoadOptions, Sources},
};

/// Flags of every command that reads plans.
#[derive(Debug, Clone, Args)]
pub struct CountingArgs {
    /// How limits count that do not say it themselves; plan files win
    #[arg(long, value_name = "HOW", env = "TOLLGATE_ALGORITHM", default_value = Algorithm::NAMES[0].0, value_parser = one_of(Algorithm::NAMES))]
    algorithm: Algorithm,
    /// When hits are charged; plan files win
    #[arg(long, value_name = "WHEN", env = "TOLLGATE_CHARGE", default_value = Charge::NAMES[0].0, value_parser = one_of(Charge::NAMES))]
    charge: Charge,
    /// Put the plan files of one domain together, in the order of their names
    #[arg(long, env = "TOLLGATE_MERGE_DOMAINS", value_parser = BoolishValueParser::new())]
    merge_domains: bool,
}

impl CountingArgs {
    pub(super) fn counting(&self) -> Counting {
        Counting {
            algorithm: self.algorithm,
            charge: self.charge,
            overdraw: false,
        }
    }

    /// Plans from `paths`, read so.
    pub(super) fn sources(&self, paths: Vec<PathBuf>) -> Sources {
        Sources {
            paths,
            options: LoadOptions {
                merge_domains: self.merge_domains,
                counting: self.counting(),
                ..LoadOptions::default()
            },
        }
    }
}

fn one_of<T: Copy + Send + Sync + 'static>(
    names: &'static [(&'static str, T)],
) -> impl clap::builder::TypedValueParser<Value = T> {
    PossibleValuesParser::new(names.iter().map(|(name, _)| *name)).map(|text| {
        let found = names.iter().find(|(name, _)| *name == text);
        found.expect("clap lets only these names through").1
    })
}
