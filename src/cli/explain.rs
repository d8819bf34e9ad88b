//! `tollgate explain`: how would this request be decided, and why?

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};

use super::{home::ServedArgs, pair::pair};
use crate::{
    explain::{Explanation, Question, QuestionDescriptor, QuestionEntry},
    limiter::Limiter,
    server::connect_store,
    store::redis::RedisSettings,
};

/// Flags of `explain`.
#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// Domain of the request [default: that of the plans, if they have one]
    #[arg(long)]
    domain: Option<String>,
    /// One descriptor, key=value pairs with commas between; repeatable
    #[arg(long = "descriptor", value_name = "KEY=VALUE,…", required = true, value_parser = parse_descriptor)]
    descriptors: Vec<Entries>,
    /// Hits of the request
    #[arg(long, default_value = "1")]
    hits: u32,
    #[command(flatten)]
    served: ServedArgs,
    /// How the answer looks
    #[arg(long, default_value = "text")]
    output: Output,
}

/// The entries of a descriptor.
pub(super) type Entries = Vec<(String, String)>;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    Text,
    Json,
}

pub(super) fn parse_descriptor(text: &str) -> Result<Entries, String> {
    text.split(',').map(pair).collect()
}

/// Exit 0 if the request would pass, 1 if not, 2 if that could not be told.
pub async fn run(args: ExplainArgs) -> ExitCode {
    match explain(&args).await {
        Ok(explanation) => {
            let code = match explanation.code {
                "OK" => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            };
            match args.output {
                Output::Json => super::answer(serde_json::json!(explanation), code),
                Output::Text => super::answer(text(&explanation).trim_end(), code),
            }
        }
        Err(message) => super::fail(&message),
    }
}

async fn explain(args: &ExplainArgs) -> Result<Explanation, String> {
    let choice = args.served.place.choice()?;
    let plans = args.served.plans_and_keys().await?;
    let question = Question {
        domain: super::domain(args.domain.as_ref(), &plans.load())?,
        descriptors: args.descriptors.iter().map(question_descriptor).collect(),
        hits_addend: args.hits,
    };
    let timeout = Duration::from_secs(1);
    let looking = |redis| RedisSettings {
        timeout,
        looks_only: true,
        ..redis
    };
    let store = connect_store(&choice, 1_000, looking).await;
    let limiter = Limiter::new(plans, Arc::new(store));
    let explanation = crate::explain::explain(&limiter, &question, Instant::now() + timeout)
        .await
        .map_err(|error| error.to_string())?;
    if explanation.degraded {
        return Err(format!("the store, {choice}, did not answer"));
    }
    Ok(explanation)
}

pub(super) fn question_descriptor(entries: &Entries) -> QuestionDescriptor {
    let entries = entries
        .iter()
        .map(|(key, value)| QuestionEntry {
            key: key.clone(),
            value: value.clone(),
        })
        .collect();
    QuestionDescriptor {
        entries,
        hits_addend: None,
    }
}

fn text(explanation: &Explanation) -> String {
    let mut text = format!("{}: {}\n", explanation.code, explanation.why);
    match explanation.retry_after_seconds {
        Some(seconds) => text += &format!("would pass in {seconds} s\n"),
        None if explanation.code == "OK" => {}
        None => text += "would not pass, however long it waited\n",
    }
    for descriptor in &explanation.descriptors {
        let rule = descriptor.rule.as_deref().unwrap_or("no rule");
        text += &format!("({}) → {rule}: {}\n", descriptor.entries, descriptor.why);
        for limit in &descriptor.limits {
            let fits = match (limit.fits, limit.delay_seconds, limit.retry_after_seconds) {
                (true, Some(delay), _) => &*format!("fits after {delay} s"),
                (true, None, _) => "fits",
                (false, _, _) if limit.penalised => "penalised",
                (false, _, Some(_)) => "full up",
                (false, _, None) => "never fits",
            };
            text += &format!("    {}: {fits}, {} left", limit.limit, limit.remaining);
            if let Some(lease) = &limit.lease {
                text += &format!("; each replica takes {lease}");
            }
            text.push('\n');
        }
    }
    text
}
