//! What the demo prints when everything is ready: lines to paste, and what they answer.

use std::{
    env,
    path::{Path, PathBuf},
};

use super::{Addresses, Home, ports::reachable};

/// The plan file of the demo's domain, in a folder of plans.
const PLANS: &str = "stats-api.yaml";

/// The story with the addresses of this run in it.
pub fn tell(at: &Addresses, home: &Home, logs: &Path) -> String {
    let [edge, stats, http, admin] = [at.edge, at.stats, at.http, at.admin].map(reachable);
    let (grpc, api) = (at.grpc, reachable(at.admin_api));
    let token = quoted(&home.token.to_string_lossy());
    let (store, logs) = (&home.store, logs.display());
    let (tollgate, plans) = (program(), plan_file(home));
    let flags: Vec<_> = home
        .flags()
        .iter()
        .map(|flag| quoted(&flag.to_string_lossy()))
        .collect();
    let flags = flags.join(" ");
    // curl shows its progress in parallel mode even when told to be silent.
    let many = r"curl -s -o /dev/null -w '%{http_code}\n' --no-progress-meter -Z --parallel-immediate --parallel-max";
    format!(
        "\
Envoy http://{edge} -> stats service http://{stats}, limited by Tollgate (gRPC {grpc}, store {store})
Tollgate's side: http://{http}/metrics and /plans; Envoy's: http://{admin}; logs: {logs}

No key, or a wrong one: 403 {{\"message\":\"Forbidden\"}}
  curl -iw '\\n' http://{edge}/secure/stats
  curl -iw '\\n' -H 'x-api-key: wrong' http://{edge}/secure/stats

The free tier, 1 request a second: 200, and at once again 429 {{\"message\":\"Too Many Requests\"}}
  for i in 1 2; do curl -iw '\\n' -H 'x-api-key: demo-free-key' http://{edge}/secure/stats; done

The premium tier, 10 a second with a burst of 100: of 150 about 100 are 200, and the rest 429
  {many} 10 -H 'x-api-key: demo-premium-key' 'http://{edge}/secure/stats?[1-150]' | sort | uniq -c

By address without a key, 50 a minute: 50 are 200 and 10 are 429; another address has 50 of its own
  {many} 10 'http://{edge}/public/stats/3?[1-60]' | sort | uniq -c
  curl -iw '\\n' --interface 127.0.0.2 http://{edge}/public/stats/3

A quota of 5 a day: five are 200, the sixth 429 {{\"message\":\"Limit Exceeded\"}}
  for i in 1 2 3 4 5 6; do curl -iw '\\n' -H 'x-api-key: demo-quota-key' http://{edge}/secure/stats; done

The quota raised while all runs: within a second the same call is 200 again
  sed 's|5/day|50/day|' {plans} | {tollgate} plans put - {flags}; sleep 1
  curl -iw '\\n' -H 'x-api-key: demo-quota-key' http://{edge}/secure/stats

A key of your own: 200; and 403 within a second of its end
  KEY=$({tollgate} keys create --tier free --owner me --id mine {flags} | sed -n 's/^secret *//p'); sleep 1
  curl -iw '\\n' -H \"x-api-key: $KEY\" http://{edge}/secure/stats
  {tollgate} keys revoke mine {flags}; sleep 1
  curl -iw '\\n' -H \"x-api-key: $KEY\" http://{edge}/secure/stats

Who changed what: the audit log, by the admin API, which has a token of this run
  curl -s -H \"authorization: Bearer $(sed 's/.* //' {token})\" http://{api}/v1/audit

No limit of Tollgate's: only the service's own, 20 at once; more get 500 {{\"message\":\"Internal server error\"}}
  {many} 60 'http://{edge}/unsecure/stats?[1-60]' | sort | uniq -c

A match as it is played (Ctrl-C ends it)
  curl -N http://{edge}/unsecure/stats/3/events

Ctrl-C here stops everything."
    )
}

/// This program as a shell here finds it.
fn program() -> String {
    let own = env::current_exe().unwrap_or_else(|_| "tollgate".into());
    let here = env::current_dir().ok();
    let near = here.and_then(|here| own.strip_prefix(here).ok().map(Path::to_path_buf));
    quoted(&near.unwrap_or(own).to_string_lossy())
}

fn plan_file(home: &Home) -> String {
    let mut files = home.config.iter().map(|path| match path.is_dir() {
        true => path.join(PLANS),
        false => path.clone(),
    });
    let file = files.next().unwrap_or_else(|| PathBuf::from(PLANS));
    quoted(&file.to_string_lossy())
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    // No path and no argument has a NUL in it, which is all that cannot be quoted.
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_to_paste_goes_to_the_edge_of_this_run() {
        let local = |port| std::net::SocketAddr::from(([0, 0, 0, 0], port));
        let at = Addresses {
            edge: local(1),
            stats: local(2),
            grpc: local(3),
            http: local(4),
            admin: local(5),
            admin_api: local(6),
        };
        let home = Home::new(&["config".into()], "memory", Path::new("/logs"));
        let story = tell(&at, &home, Path::new("/logs"));
        let lines: Vec<_> = story
            .lines()
            .filter(|line| line.contains("curl ") && !line.contains("/v1/audit"))
            .collect();
        assert_eq!(lines.len(), 12);
        for line in lines {
            assert!(line.contains("http://127.0.0.1:1/"), "{line}");
        }
    }
}
