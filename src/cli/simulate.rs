//! `tollgate simulate`: who would have been refused?

mod show;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};

use super::counting::CountingArgs;
use crate::{
    envoy::{EnvoyConfig, Manager},
    plan::Plans,
    replay::{
        Replay,
        lines::{LONGEST, Line, Lines},
        reader::{Read, Reader},
        report::Report,
        template::Template,
    },
};

/// Flags of `simulate`.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Access logs of one JSON object per line, plain or gzipped, in the order of time; `-` for standard input
    #[arg(required = true, value_name = "LOG")]
    logs: Vec<PathBuf>,
    /// Plan file or folder to try; repeatable
    #[arg(long, value_name = "PATH", required = true)]
    plans: Vec<PathBuf>,
    /// Plan file or folder to compare with; repeatable
    #[arg(long, value_name = "PATH")]
    old: Vec<PathBuf>,
    /// Envoy's configuration: its routes say what is asked about a request, its access log's format what the log tells [default: envoy/envoy.yaml, unless there are descriptors]
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["descriptors", "domain"]
    )]
    envoy: Option<PathBuf>,
    /// The listener whose log it is, where Envoy's configuration has several that ask about limits
    #[arg(long, value_name = "NAME", conflicts_with = "descriptors")]
    listener: Option<String>,
    /// One descriptor, with fields of the log as %{NAME}, %{OUTER.INNER} or %{NAME|DEFAULT}; repeatable
    #[arg(long = "descriptor", value_name = "KEY=VALUE,…")]
    descriptors: Vec<Template>,
    /// Domain that the descriptors belong to [default: that of the plans, if they have one]
    #[arg(long)]
    domain: Option<String>,
    /// Field of the log that says when a request came [default: Envoy's %START_TIME%; else time, start_time, timestamp or @timestamp]
    #[arg(long, value_name = "FIELD")]
    time: Option<String>,
    /// How many of those refused are told, most refused first
    #[arg(long, value_name = "N", default_value = "20")]
    top: usize,
    /// Buckets that are kept in memory
    #[arg(long, value_name = "N", default_value = "1000000")]
    max_buckets: usize,
    #[command(flatten)]
    counting: CountingArgs,
    /// How the answer looks
    #[arg(long, default_value = "table")]
    output: Output,
}

/// Envoy's configuration where none is named: that of the demo.
const ENVOY: &str = "envoy/envoy.yaml";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// Everything.
    Json,
    /// One row per who was refused by what.
    Csv,
}

/// Exit 0 if nobody would be refused (with --old: nobody who was not before), 1 if somebody would, 2 if that could not be told.
pub async fn run(args: SimulateArgs) -> ExitCode {
    let report = match simulate(&args).await {
        Ok(report) => report,
        Err(message) => return super::fail(&message),
    };
    let refused = match &report.old {
        Some(versus) => versus.newly_refused,
        None => report.refused,
    };
    let code = match (refused, report.unjudged()) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(super::CANNOT_TELL),
        _ => ExitCode::FAILURE,
    };
    match args.output {
        Output::Table => super::answer(show::table(&report).trim_end(), code),
        Output::Json => super::answer(serde_json::json!(report), code),
        Output::Csv => super::answer(show::csv(&report).trim_end(), code),
    }
}

async fn simulate(args: &SimulateArgs) -> Result<Report, String> {
    let new = load(&args.plans, "--plans", &args.counting)?;
    let old = match args.old.is_empty() {
        true => None,
        false => Some(load(&args.old, "--old", &args.counting)?),
    };
    let reader = reader(args, &new)?;
    let mut replay = Replay::new(new, old, args.max_buckets);
    for log in &args.logs {
        read(log, &reader, &mut replay).await?;
    }
    let report = replay.finish(args.top).await;
    usable(&report)?;
    Ok(report)
}

fn load(paths: &[PathBuf], flag: &str, counting: &CountingArgs) -> Result<Plans, String> {
    super::readable(paths, flag)?;
    Plans::load(&counting.sources(paths.to_vec()), None).map_err(|error| error.to_string())
}

fn reader(args: &SimulateArgs, plans: &Plans) -> Result<Reader, String> {
    let time = args.time.clone();
    if !args.descriptors.is_empty() {
        return Ok(Reader::Templates {
            domain: super::domain(args.domain.as_ref(), plans)?,
            templates: args.descriptors.clone(),
            time,
        });
    }
    let path = args.envoy.as_deref().unwrap_or(Path::new(ENVOY));
    let config = EnvoyConfig::read(path).map_err(|error| match args.envoy {
        Some(_) => error.to_string(),
        None => format!(
            "{error}; say by --envoy or --descriptor what is asked about a request of the log"
        ),
    })?;
    let manager = Box::new(manager(config, args.listener.as_deref())?);
    Ok(Reader::Envoy { manager, time })
}

/// The connection manager whose log is read.
fn manager(config: EnvoyConfig, listener: Option<&str>) -> Result<Manager, String> {
    let elsewhere = config.elsewhere.join("; ");
    let fits = |manager: &Manager| match listener {
        Some(name) => manager.name == name,
        None => !manager.filters.is_empty(),
    };
    let mut fitting: Vec<Manager> = config.managers.into_iter().filter(fits).collect();
    let names: Vec<&str> = fitting.iter().map(|manager| &*manager.name).collect();
    let manager = match names[..] {
        [_] => fitting.remove(0),
        [] => return Err("no listener of that Envoy configuration asks about limits".to_owned()),
        _ => return Err(format!("say --listener: {}", names.join(", "))),
    };
    if manager.access_log.is_none() {
        return Err(format!(
            "{} writes no access log in JSON, so its lines cannot be read by it: use --descriptor",
            manager.name
        ));
    }
    match manager.hosts.is_empty() {
        true => Err(format!("{} has no routes here: {elsewhere}", manager.name)),
        false => Ok(manager),
    }
}

async fn read(log: &Path, reader: &Reader, replay: &mut Replay) -> Result<(), String> {
    let name = log.display().to_string();
    let failed = |error: io::Error| format!("cannot read {name}: {error}");
    let mut lines = Lines::new(open(log).map_err(failed)?).map_err(failed)?;
    let mut number = 0_u64;
    while let Some(line) = lines.read().map_err(failed)? {
        number += 1;
        replay.report().lines += 1;
        let read = match line {
            Line::Text(text) if text.trim_ascii().is_empty() => continue,
            Line::Text(text) => reader.read(text),
            Line::TooLong => Err(format!("longer than {LONGEST} bytes")),
        };
        match read {
            Ok(Read::Request(request)) => replay.take(request).await,
            Ok(Read::NotAsked) => replay.report().not_asked += 1,
            Ok(Read::Unknown(missing)) => replay.report().unknown(missing),
            Err(why) => replay.report().bad_line(&format!("{name}:{number}"), &why),
        }
    }
    Ok(())
}

fn open(log: &Path) -> io::Result<Box<dyn io::Read>> {
    Ok(match log == Path::new("-") {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(log)?),
    })
}

/// Whether enough of the log was understood to tell anything.
fn usable(report: &Report) -> Result<(), String> {
    let understood = report.requests + report.not_asked;
    if understood == 0 && report.unjudged() > 0 {
        let mut message =
            "the log tells too little of every request; add to its format:".to_owned();
        for (what, count) in &report.not_judged {
            message += &format!("\n  {what} (for {count})");
        }
        return Err(message);
    }
    if understood == 0 {
        let mut message = match report.bad {
            0 => "the log is empty".to_owned(),
            _ => "the log is of another format; its first lines:".to_owned(),
        };
        for line in &report.bad_lines {
            message += &format!("\n  {line}");
        }
        return Err(message);
    }
    Ok(())
}
