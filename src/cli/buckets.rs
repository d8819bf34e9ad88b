//! `tollgate buckets`: one customer helped, now. Works on Redis itself, or by the admin API where buckets are in a service.

use std::{process::ExitCode, sync::Arc, time::Duration};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    admin_client::AdminClientArgs,
    explain::{Entries, parse_descriptor, question_descriptor},
    home::{HomeArgs, Output},
};
use crate::{
    bucket_admin::{BucketAdmin, BucketError, BucketView, Deed},
    explain::Question,
    home::AuditLog,
    limiter::Limiter,
    proto::tollgate::admin::v1::{self as pb, bucket_service_client::BucketServiceClient},
    server::connect_store,
    settings::StoreChoice,
    store::redis::RedisSettings,
};

/// Flags of `buckets`.
#[derive(Debug, Args)]
pub struct BucketsArgs {
    #[command(subcommand)]
    command: BucketsCommand,
}

#[derive(Debug, Subcommand)]
enum BucketsCommand {
    /// Show what buckets hold
    Show(NamedArgs),
    /// Make buckets full, and end penalties
    Reset(NamedArgs),
    /// Give tokens to buckets, at most up to full
    Grant(GrantArgs),
}

#[derive(Debug, Args)]
struct GrantArgs {
    /// How many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    hits: u64,
    #[command(flatten)]
    named: NamedArgs,
}

#[derive(Debug, Args)]
struct NamedArgs {
    /// Domain of the request [default: that of the plans, if they have one]
    #[arg(long)]
    domain: Option<String>,
    /// One descriptor as Envoy sends it, key=value pairs with commas between, such as api_key=ID; repeatable
    #[arg(long = "descriptor", value_name = "KEY=VALUE,…", required = true, value_parser = parse_descriptor)]
    descriptors: Vec<Entries>,
    #[command(flatten)]
    admin: AdminClientArgs,
    #[command(flatten)]
    home: HomeArgs,
}

/// Why there is no answer.
enum Failure {
    /// It was not done.
    No(String),
    /// It is not known whether it could be, or was.
    CannotTell(String),
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self::CannotTell(message)
    }
}

impl From<BucketError> for Failure {
    fn from(error: BucketError) -> Self {
        match error {
            BucketError::Unsure | BucketError::Audit(_) => Self::CannotTell(error.to_string()),
            _ => Self::No(error.to_string()),
        }
    }
}

/// Exit 0 if it was done, 1 if it was not and why, 2 if that could not be told.
pub async fn run(args: BucketsArgs) -> ExitCode {
    let (named, deed) = match args.command {
        BucketsCommand::Show(named) => (named, Deed::Show),
        BucketsCommand::Reset(named) => (named, Deed::Reset),
        BucketsCommand::Grant(GrantArgs { hits, named }) => (named, Deed::Grant(hits)),
    };
    match act(&named, deed).await {
        Ok(views) => {
            let text = match named.home.output {
                Output::Json => format!("{:#}", json!(views)),
                Output::Text => table(&views, deed),
            };
            super::answer(text, ExitCode::SUCCESS)
        }
        Err(Failure::No(message)) => {
            super::say(format_args!("error: {message}"));
            ExitCode::FAILURE
        }
        Err(Failure::CannotTell(message)) => super::fail(&message),
    }
}

async fn act(args: &NamedArgs, deed: Deed) -> Result<Vec<BucketView>, Failure> {
    match args.home.served.place.choice()? {
        StoreChoice::Redis(_) if !args.admin.named() => on_redis(args, deed).await,
        _ => by_admin_api(args, deed).await,
    }
}

async fn on_redis(args: &NamedArgs, deed: Deed) -> Result<Vec<BucketView>, Failure> {
    let served = &args.home.served;
    let (choice, place) = (served.place.choice()?, served.place.place()?);
    let plans = served.plans_and_keys().await?;
    let question = Question {
        domain: super::domain(args.domain.as_ref(), &plans.load())?,
        descriptors: args.descriptors.iter().map(question_descriptor).collect(),
        hits_addend: 0,
    };
    let timeout = Duration::from_secs(5);
    // It decides nothing that a replica would.
    let apart = |redis| RedisSettings {
        timeout,
        looks_only: true,
        ..redis
    };
    let store = connect_store(&choice, 1_000, apart).await;
    let limiter = Arc::new(Limiter::new(plans, Arc::new(store)));
    let audit = place.map(|place| Arc::new(AuditLog::of(place)));
    let buckets = BucketAdmin::new(limiter, audit);
    Ok(buckets.act(&args.home.actor(), &question, deed).await?)
}

async fn by_admin_api(args: &NamedArgs, deed: Deed) -> Result<Vec<BucketView>, Failure> {
    let domain = match &args.domain {
        Some(domain) => domain.clone(),
        None => super::domain(None, &args.home.served.plans().await?.load())?,
    };
    let descriptors = args.descriptors.iter().map(|entries| pb::BucketDescriptor {
        entries: entries
            .iter()
            .cloned()
            .map(|(key, value)| pb::BucketEntry { key, value })
            .collect(),
    });
    let mut message = pb::BucketsRequest {
        domain,
        descriptors: descriptors.collect(),
        hits: 0,
    };
    let mut client = BucketServiceClient::new(args.admin.connect().await?);
    let answer = match deed {
        Deed::Show => client.show_buckets(args.admin.request(message)?).await,
        Deed::Reset => client.reset_buckets(args.admin.request(message)?).await,
        Deed::Grant(hits) => {
            message.hits = hits;
            client.grant_buckets(args.admin.request(message)?).await
        }
    };
    let answer = answer.map_err(|status| match status.code() {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Unknown => {
            Failure::CannotTell(status.message().to_owned())
        }
        _ => Failure::No(status.message().to_owned()),
    })?;
    let buckets = answer.into_inner().buckets.into_iter();
    Ok(buckets.map(view).collect())
}

fn view(bucket: pb::Bucket) -> BucketView {
    BucketView {
        descriptor: bucket.descriptor,
        rule: bucket.rule,
        limit: bucket.limit,
        capacity: bucket.capacity,
        before: bucket.before,
        remaining: bucket.remaining,
        reset_after_seconds: bucket.reset_after_seconds,
        penalised_seconds: bucket.penalised_seconds,
    }
}

fn table(views: &[BucketView], deed: Deed) -> String {
    let lines = views.iter().map(|view| {
        let BucketView {
            descriptor,
            rule,
            limit,
            capacity,
            before,
            remaining,
            reset_after_seconds,
            penalised_seconds,
        } = view;
        let was = match deed {
            Deed::Show => String::new(),
            _ => format!(", {before} before"),
        };
        let full = match reset_after_seconds {
            0.0 => "full".to_owned(),
            seconds => format!("full in {seconds} s"),
        };
        let penalty = match penalised_seconds {
            0.0 => String::new(),
            seconds => format!("; refused by its penalty for {seconds} s"),
        };
        format!(
            "({descriptor}) → {rule}: {limit}: {remaining} of {capacity} left{was}; {full}{penalty}"
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}
