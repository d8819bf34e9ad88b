//! Plans and where what is made at run time is kept, the commands and services that work on both, and the admin API.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{PATIENCE, Tollgate, plans, tollgate_command};

/// Plan files, a state directory or Redis beside them, and a folder for drafts.
pub struct Home {
    _folder: TempDir,
    /// The folder of plan files; `plans.yaml` is the only one.
    pub config: PathBuf,
    state: TempDir,
    drafts: TempDir,
    redis: Option<String>,
}

impl Home {
    /// With a state directory.
    pub fn new(text: &str) -> Self {
        let (folder, config) = plans(text);
        Self {
            _folder: folder,
            config,
            state: tempfile::tempdir().unwrap(),
            drafts: tempfile::tempdir().unwrap(),
            redis: None,
        }
    }

    /// In the Redis of that URL.
    pub fn in_redis(text: &str, url: &str) -> Self {
        Self {
            redis: Some(url.to_owned()),
            ..Self::new(text)
        }
    }

    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// Writes a file that is no plan file of it; where it is.
    pub fn draft(&self, name: &str, text: &str) -> String {
        let path = self.drafts.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn place(&self) -> [&str; 2] {
        match &self.redis {
            Some(url) => ["--store", url],
            None => ["--state-dir", self.state.path().to_str().unwrap()],
        }
    }

    /// `tollgate ARGS…` on it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = tollgate_command();
        command.args(args).arg("--config").arg(&self.config);
        command.args(self.place()).env("USER", "tester");
        command
    }

    /// The same to its end.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        finished(&mut self.command(args))
    }

    /// The same, which must succeed and answer in JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let (code, out, err) = self.run(&[args, &["--output", "json"]].concat());
        assert_eq!(code, 0, "{args:?}: {out}{err}");
        serde_json::from_str(&out).unwrap()
    }

    pub fn serve(&self, args: &[&str]) -> Tollgate {
        let patient: &[&str] = match self.redis {
            Some(_) => &["--store-timeout", "2s"],
            None => &[],
        };
        Tollgate::start(&self.config, &[&self.place(), patient, args].concat())
    }

    /// A service with the admin API on, which these tokens open, and where.
    pub fn serve_admin(&self, tokens: &str, args: &[&str]) -> (Tollgate, String) {
        let file = self.draft("token", tokens);
        let flags = ["--admin-token-file", &file, "--admin-listen", "127.0.0.1:0"];
        let mut tollgate = self.serve(&[&flags, args].concat());
        let address = admin_address(&mut tollgate);
        (tollgate, address)
    }

    /// The file of the tokens that the admin API was started with.
    pub fn token_file(&self) -> String {
        self.drafts.path().join("token").display().to_string()
    }
}

/// Exit status, stdout and stderr.
pub fn finished(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

/// Where the admin API of a service is.
pub fn admin_address(tollgate: &mut Tollgate) -> String {
    let line = tollgate.process.line_with("the admin API on ");
    line.rsplit(' ').next().unwrap().to_owned()
}

/// One question to the HTTP twin of the admin API, like `GET /v1/keys`: head and body of the answer.
pub fn exchange(
    address: &str,
    headers: &[(&str, &str)],
    line: &str,
    body: &str,
) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers = headers.iter();
    let headers: String = headers.map(|(n, v)| format!("{n}: {v}\r\n")).collect();
    let length = body.len();
    // A body that is refused for its length is not read to its end, and the connection may end before it is written.
    let _ = write!(
        stream,
        "{line} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
    );
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{line}: {read:?}: {answer}"));
    (head.to_owned(), body.to_owned())
}

/// The same: status and body, as JSON if it is some.
pub fn call(address: &str, headers: &[(&str, &str)], line: &str, body: &str) -> (u16, Value) {
    let (head, body) = exchange(address, headers, line, body);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let json = serde_json::from_str(&body);
    (status, json.unwrap_or(Value::String(body)))
}

/// The same with a token.
pub fn call_as(address: &str, token: Option<&str>, line: &str, body: &str) -> (u16, Value) {
    let value = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<_> = value
        .iter()
        .map(|v| ("authorization", v.as_str()))
        .collect();
    call(address, &headers, line, body)
}
