//! Real processes for tests: Tollgate itself and what stands around it. Each dies when its handle is dropped.

#![allow(dead_code, reason = "every test target uses a part of it")]

pub mod home;

use std::{
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use tollgate::proto::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor},
    service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse, rate_limit_service_client::RateLimitServiceClient,
    },
};
use tonic::{Status, transport::Channel};

/// Nothing here takes longer, however busy the machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `probe` gives something.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The same, for a probe that asks over the network.
pub async fn wait_until(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !probe().await {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A port that nobody listened on a moment ago. Only for programs that cannot pick one themselves.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

/// The lines that a process wrote so far.
type Lines = Arc<Mutex<Vec<String>>>;

/// A child process and what it wrote.
pub struct Process {
    child: Child,
    log: Lines,
    output: Lines,
}

fn collect(from: impl Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let sink = lines.clone();
    thread::spawn(move || {
        BufReader::new(from)
            .lines()
            .map_while(Result::ok)
            .for_each(|line| sink.lock().unwrap().push(line))
    });
    lines
}

impl Process {
    /// Starts `command`, whose stderr and stdout are collected.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let log = collect(child.stderr.take().expect("piped"));
        let output = collect(child.stdout.take().expect("piped"));
        Self { child, log, output }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// What it has written to stdout so far.
    pub fn output(&self) -> String {
        self.output.lock().unwrap().join("\n")
    }

    /// The first line that holds `text`, waited for.
    pub fn line_with(&mut self, text: &str) -> String {
        wait_for(text, || {
            let found = self
                .log
                .lock()
                .unwrap()
                .iter()
                .find(|line| line.contains(text))
                .cloned();
            if found.is_none() {
                let ended = self.child.try_wait().expect("a child");
                assert!(
                    ended.is_none(),
                    "it ended ({ended:?}) without `{text}`:\n{}",
                    self.log()
                );
            }
            found
        })
    }

    /// The same of a process that has ended.
    pub fn line_with_after_end(&self, text: &str) -> String {
        wait_for(text, || {
            let log = self.log.lock().unwrap();
            log.iter().find(|line| line.contains(text)).cloned()
        })
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, signal).expect("alive");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Waits for the end; the exit code, or none if a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        wait_for("the end of a process", || {
            self.child.try_wait().expect("a child")
        })
        .code()
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A running Tollgate with ports of its own choice.
pub struct Tollgate {
    pub process: Process,
    /// host:port of gRPC (the first listener).
    pub grpc: String,
    /// host:port of HTTP.
    pub http: String,
}

impl Tollgate {
    /// Starts `tollgate serve --config CONFIG ARGS…` on free ports.
    pub fn start(config: &Path, args: &[&str]) -> Self {
        let mut command = tollgate_command();
        command.arg("serve").arg("--config").arg(config);
        if !args.contains(&"--grpc-listen") {
            command.args(["--grpc-listen", "127.0.0.1:0"]);
        }
        if !args.contains(&"--drain-delay") {
            command.args(["--drain-delay", "0s"]);
        }
        command.args(["--http-listen", "127.0.0.1:0"]).args(args);
        Self::from_process(Process::start(&mut command))
    }

    pub fn from_process(mut process: Process) -> Self {
        let last_word = |line: String| line.rsplit(' ').next().expect("a word").to_owned();
        let grpc = last_word(
            process
                .line_with("(gRPC) on ")
                .split(',')
                .next()
                .expect("one")
                .to_owned(),
        );
        let http = last_word(process.line_with("(HTTP) on "));
        process.line_with("try:");
        Self {
            process,
            grpc,
            http,
        }
    }

    pub async fn client(&self) -> RateLimitServiceClient<Channel> {
        client(&self.grpc).await
    }

    /// The body of an HTTP page.
    pub fn page(&self, path: &str) -> String {
        http(&self.http, "GET", path, "").1
    }

    /// The value of a metric's only sample, or of the one whose line begins so.
    pub fn metric(&self, name: &str) -> f64 {
        let page = self.page("/metrics");
        let line = page.lines().find(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{page}"));
        line.rsplit(' ')
            .next()
            .and_then(|value| value.parse().ok())
            .expect("a number")
    }
}

/// The built binary, or the one of $TOLLGATE_TEST_BINARY, with nothing of the tester's environment that could change what it does.
pub fn tollgate_command() -> Command {
    let told = std::env::var_os("TOLLGATE_TEST_BINARY");
    let mut command = Command::new(told.unwrap_or_else(|| env!("CARGO_BIN_EXE_tollgate").into()));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TOLLGATE_")) {
        command.env_remove(name);
    }
    command
}

/// The same started as envoyproxy/ratelimit is, by variables alone: on free ports, without StatsD, with a Redis that is not there.
pub fn ratelimit_command() -> Command {
    let mut command = tollgate_command();
    command.arg("ratelimit").env_clear();
    command.envs(["HOST", "GRPC_HOST", "DEBUG_HOST"].map(|host| (host, "127.0.0.1")));
    command.envs(["PORT", "GRPC_PORT", "DEBUG_PORT"].map(|port| (port, "0")));
    command.envs([
        ("USE_STATSD", "false"),
        ("REDIS_SOCKET_TYPE", "tcp"),
        ("REDIS_URL", "127.0.0.1:1"),
    ]);
    command
}

pub async fn client(address: &str) -> RateLimitServiceClient<Channel> {
    let uri = if address.starts_with("unix:") {
        address.to_owned()
    } else {
        format!("http://{address}")
    };
    let endpoint = tonic::transport::Endpoint::from_shared(uri).expect("a URI");
    RateLimitServiceClient::new(endpoint.connect().await.expect("it listens"))
}

/// One HTTP/1.1 request over a connection of its own: status and body.
pub fn http(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .expect("a status");
    (status, body.to_owned())
}

/// A request of the domain with these descriptors.
pub fn request(domain: &str, descriptors: &[&[(&str, &str)]]) -> RateLimitRequest {
    RateLimitRequest {
        domain: domain.to_owned(),
        descriptors: descriptors
            .iter()
            .map(|entries| descriptor(entries))
            .collect(),
        hits_addend: 0,
    }
}

pub fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entries = entries
        .iter()
        .map(|(key, value)| rate_limit_descriptor::Entry {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        })
        .collect();
    RateLimitDescriptor {
        entries,
        ..Default::default()
    }
}

pub async fn ask(
    client: &mut RateLimitServiceClient<Channel>,
    request: RateLimitRequest,
) -> Result<RateLimitResponse, Status> {
    client
        .should_rate_limit(request)
        .await
        .map(tonic::Response::into_inner)
}

/// A folder with one plan file.
pub fn plans(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("plans.yaml"), text).expect("writable");
    let path = folder.path().to_owned();
    (folder, path)
}

/// A codec that sends bytes as they are, for messages that no client library would write.
#[derive(Debug, Clone, Copy, Default)]
pub struct RawCodec;

impl tonic::codec::Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(
        &mut self,
        item: Vec<u8>,
        into: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), Status> {
        bytes::BufMut::put_slice(into, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(
        &mut self,
        from: &mut tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<Vec<u8>>, Status> {
        let length = bytes::Buf::remaining(from);
        Ok(Some(bytes::Buf::copy_to_bytes(from, length).to_vec()))
    }
}
