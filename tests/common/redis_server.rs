//! A redis-server of the test's own, on a free port. It dies with the test, however the test ends.

#![allow(dead_code, reason = "every test target uses a part of it")]

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Starts the server and waits for the end of its own input: the kernel closes that when the test dies.
const GUARD: &str =
    r#""$@" </dev/null >/dev/null 2>&1 & echo $!; cat >/dev/null; kill -9 $!; wait $!"#;

/// A running (or killed) Redis.
pub struct RedisServer {
    port: u16,
    folder: TempDir,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    guard: Option<(Child, ChildStdin)>,
    pid: i32,
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

impl RedisServer {
    /// Starts one.
    pub fn start() -> Self {
        let mut server = Self::reserve();
        server.restart();
        server
    }

    /// Starts one with more `arguments`, which may speak of its folder.
    pub fn start_with<S: Into<String>>(arguments: impl FnOnce(&Path) -> Vec<S>) -> Self {
        let mut server = Self::reserve();
        let more = arguments(server.folder.path());
        server.arguments.extend(more.into_iter().map(S::into));
        server.restart();
        server
    }

    /// Starts one whose replicas follow at once, not in five seconds.
    pub fn start_primary() -> Self {
        Self::start_with(|_| vec!["--repl-diskless-sync-delay", "0"])
    }

    /// Starts one that replicates `primary`.
    pub fn start_replica(primary: &Self) -> Self {
        let primary = primary.port.to_string();
        Self::start_with(|_| vec!["--replicaof".to_owned(), "127.0.0.1".to_owned(), primary])
    }

    /// Starts a sentinel that watches `primary` as `service`, alone or together with others of its `quorum`.
    pub fn start_sentinel(service: &str, primary: &Self, quorum: u32) -> Self {
        let mut sentinel = Self::reserve();
        let file = sentinel.folder.path().join("sentinel.conf");
        let (port, primary) = (sentinel.port, primary.port);
        let text = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor {service} 127.0.0.1 {primary} {quorum}\n\
             sentinel down-after-milliseconds {service} 500\nsentinel failover-timeout {service} 3000\n"
        );
        fs::write(&file, text).expect("the folder is there");
        sentinel.arguments = vec![file.display().to_string(), "--sentinel".to_owned()];
        sentinel.restart();
        sentinel
    }

    /// Chooses an address only.
    pub fn reserve() -> Self {
        Self::reserve_at(0, &[])
    }

    /// The same for a certain port, unless that is 0, and with more `arguments`.
    pub fn reserve_at(port: u16, arguments: &[&str]) -> Self {
        let port = if port == 0 { free_port() } else { port };
        let mut server = Self::reserve_port(port);
        server.add_arguments(arguments);
        server
    }

    fn reserve_port(port: u16) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let arguments = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
        arguments.extend(["--port".to_owned(), port.to_string(), "--dir".to_owned()]);
        arguments.push(folder.path().display().to_string());
        Self {
            port,
            folder,
            arguments,
            environment: Vec::new(),
            guard: None,
            pid: 0,
        }
    }

    /// More arguments from its next start on.
    pub fn add_arguments(&mut self, arguments: &[&str]) {
        let arguments = arguments.iter().map(|word| (*word).to_owned());
        self.arguments.extend(arguments);
    }

    /// Its environment from its next start on, beside the test's.
    pub fn set_environment(&mut self, environment: &[(&str, &str)]) {
        let environment = environment.iter();
        self.environment = environment
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
    }

    /// Where it keeps its files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts it, at the same address as before and with nothing in it.
    pub fn restart(&mut self) {
        self.kill();
        let program = env::var("REDIS_SERVER_BIN").unwrap_or_else(|_| "redis-server".to_owned());
        let found = Command::new(&program).arg("--version").output();
        assert!(
            found.is_ok_and(|output| output.status.success()),
            "`{program}` does not run: install redis-server or set REDIS_SERVER_BIN"
        );
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard", &program])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let mut pid = String::new();
        let output = guard.stdout.as_mut().expect("piped");
        BufReader::new(output).read_line(&mut pid).expect("a pid");
        self.pid = pid.trim().parse().expect("a pid");
        let input = guard.stdin.take().expect("piped");
        self.guard = Some((guard, input));
        self.wait_until_up();
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        if let Some((mut guard, input)) = self.guard.take() {
            drop(input);
            guard.wait().expect("the guard ends");
        }
    }

    /// Waits until it has all that its primary has.
    pub fn wait_until_it_follows(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        while !self.info("replication").contains("master_link_status:up") {
            assert!(Instant::now() < end, "the replica does not follow");
            sleep(Duration::from_millis(10));
        }
    }

    /// Waits until a replica has what is written now, and gets what is written from now on as it comes: the first second's writes may
    /// come with the copy that it began with.
    pub fn wait_until_followed(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        let mut both = redis::pipe();
        // A key that the first node of a cluster has.
        both.cmd("SET").arg("b").arg("").ignore();
        both.cmd("WAIT").arg(1).arg(10);
        let mut admin = self.admin();
        loop {
            let (reached,): (u64,) = both.query(&mut admin).expect("a primary");
            if reached > 0 {
                return;
            }
            assert!(Instant::now() < end, "no replica follows");
        }
    }

    /// Stops it, or lets it go on.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        nix::sys::signal::kill(pid, signal).expect("alive");
    }

    /// A section of INFO.
    pub fn info(&self, section: &str) -> String {
        redis::from_redis_value(self.send(&format!("INFO {section}"))).expect("text")
    }

    /// `redis://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A connection beside those under test.
    pub fn admin(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).expect("a URL");
        client.get_connection().expect("Redis is up")
    }

    /// Sends one command: words separated by spaces.
    pub fn send(&self, command: &str) -> redis::Value {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().expect("a command"));
        for word in words {
            cmd.arg(word);
        }
        cmd.query(&mut self.admin()).expect("Redis does it")
    }

    /// How often `command` has run, inside scripts too.
    pub fn calls(&self, command: &str) -> u64 {
        self.statistic("commandstats", &format!("cmdstat_{command}:calls="))
    }

    /// How often Redis has answered with the error `code`.
    pub fn errors(&self, code: &str) -> u64 {
        self.statistic("errorstats", &format!("errorstat_{code}:count="))
    }

    fn statistic(&self, section: &str, prefix: &str) -> u64 {
        let mut command = redis::cmd("INFO");
        let info: String = command
            .arg(section)
            .query(&mut self.admin())
            .expect("Redis says");
        let found = |line: &str| line.strip_prefix(prefix)?.split(',').next()?.parse().ok();
        info.lines().find_map(found).unwrap_or(0)
    }

    fn wait_until_up(&self) {
        let client = redis::Client::open(self.url()).expect("a URL");
        let end = Instant::now() + Duration::from_secs(10);
        while client.get_connection().is_err() {
            assert!(Instant::now() < end, "redis-server did not come up");
            sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
