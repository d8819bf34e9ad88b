//! `tollgate check --envoy`: which limits apply to which routes.

use std::{path::Path, process::ExitCode};

use serde_json::json;

use super::Output;
use crate::{
    cli,
    coverage::{Coverage, DescriptorCoverage, METHODS, RouteCoverage, State, coverage},
    envoy::EnvoyConfig,
    plan::Plans,
};

/// Exit 0, or 1 under `strict` if there is a warning; 2 if the configuration cannot be read.
pub(super) fn run(config: &Path, plans: &Plans, strict: bool, output: Output) -> ExitCode {
    let config = match EnvoyConfig::read(config) {
        Ok(config) => config,
        Err(error) => return cli::fail(&error.to_string()),
    };
    let coverage = coverage(&config, plans);
    let code = match strict && !coverage.warnings.is_empty() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    };
    match output {
        Output::Text => cli::answer(text(&coverage).trim_end(), code),
        Output::Json => cli::answer(json!(coverage), code),
    }
}

fn text(coverage: &Coverage) -> String {
    let mut text = String::new();
    let mut place = None;
    for route in &coverage.routes {
        if place.replace((&route.listener, &route.virtual_host))
            != Some((&route.listener, &route.virtual_host))
        {
            text += &format!("{}, virtual host {}\n", route.listener, route.virtual_host);
        }
        text += &self::route(route);
    }
    for elsewhere in &coverage.elsewhere {
        text += &format!("note: {elsewhere}\n");
    }
    for warning in &coverage.warnings {
        text += &format!("warning: {warning}\n");
    }
    text
}

fn route(route: &RouteCoverage) -> String {
    let state = match route.state {
        State::Limited => "limited",
        State::Partly => "partly limited",
        State::Without => "NO LIMIT",
        State::SwitchedOff | State::AnsweredByEnvoy => "no limit",
    };
    let name = match route.route.as_str() {
        "" => String::new(),
        name => format!("{name}: "),
    };
    let why = route.why.as_ref();
    let why = why.map_or(String::new(), |why| format!(", {why}"));
    let (all, some, none) = (&route.limited, &route.partly, &route.without);
    let methods: Vec<&str> = [all, some, none].into_iter().flatten().copied().collect();
    let methods = match methods.len() {
        0 => String::new(),
        count if count == METHODS.len() => String::new(),
        _ => format!("{} ", methods.join(", ")),
    };
    let mut text = format!("  {name}{methods}{} — {state}{why}\n", route.matches);
    let kinds = [all, some, none]
        .iter()
        .filter(|methods| !methods.is_empty())
        .count();
    if kinds > 1 {
        for (methods, state) in [
            (all, "limited"),
            (some, "partly limited"),
            (none, "NO LIMIT"),
        ] {
            if !methods.is_empty() {
                text += &format!("      {}: {state}\n", methods.join(", "));
            }
        }
    }
    text.extend(route.descriptors.iter().map(descriptor));
    text
}

fn descriptor(descriptor: &DescriptorCoverage) -> String {
    let only_if = match descriptor.only_if.is_empty() {
        true => String::new(),
        false => format!(", only if {}", descriptor.only_if.join(" and ")),
    };
    let mut text = format!("    ({}){only_if}\n", descriptor.entries);
    for rule in &descriptor.rules {
        text += &format!("      {} → {}\n", rule.rule, rule.allows);
    }
    match (descriptor.rules.is_empty(), descriptor.every_value) {
        (true, _) => text += "      no rule\n",
        (false, false) => text += "      other values → no rule\n",
        (false, true) => {}
    }
    text
}
