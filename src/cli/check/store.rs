//! `tollgate check --store`: is this Redis fit for limits?

use std::process::ExitCode;

use super::super::{answer, fail};
use crate::{
    plan::Plans,
    settings::StoreChoice,
    store::redis::checks::{Examined, Needs},
};

/// Asks every server that `url` stands for, and tells what may harm, in view of `plans` if there are any. Exit 0 if nothing
/// has to be changed or nobody is strict, 1 if something has, 2 if a server does not answer.
pub fn run(url: &str, plans: Option<&Plans>, strict: bool) -> ExitCode {
    // Not clap's to read: it repeats a value that it refuses, and this one may hold a password.
    let redis = match url.parse() {
        Ok(StoreChoice::Redis(redis)) => redis.main,
        Ok(StoreChoice::Memory) => return fail("--store: there is nothing to check in `memory`"),
        Err(error) => return fail(&format!("--store: {error}")),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the runtime: {error}")),
    };
    let needs = plans.map(Needs::of).unwrap_or_default();
    match runtime.block_on(redis.examine(needs)) {
        Ok(servers) => {
            let warns = |server: &Examined| server.findings.iter().any(|found| found.check.warns());
            let code = match strict && servers.iter().any(warns) {
                true => ExitCode::FAILURE,
                false => ExitCode::SUCCESS,
            };
            let lines: Vec<String> = servers.iter().flat_map(lines).collect();
            answer(lines.join("\n"), code)
        }
        Err(error) => fail(&format!("cannot check {redis}: {error}")),
    }
}

fn lines(server: &Examined) -> Vec<String> {
    let node = &server.node;
    let findings = server.findings.iter().map(|found| {
        let word = if found.check.warns() {
            "warning"
        } else {
            "note"
        };
        format!("{word}: {node}: {found}")
    });
    let mut lines: Vec<String> = findings.collect();
    lines.push(format!("store: {node}: {}", server.server));
    lines
}
