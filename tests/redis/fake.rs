//! A server that says of itself what none here would. It decides nothing.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// What it says; the rest is well.
#[derive(Debug, Clone)]
pub struct Says {
    pub version: &'static str,
    pub clustered: bool,
    pub cluster_state: &'static str,
    /// Seconds that its clock is ahead.
    pub ahead_s: i64,
    /// Commands that it does not know.
    pub unknown: &'static [&'static str],
}

impl Default for Says {
    fn default() -> Self {
        Self {
            version: "7.2.4",
            clustered: false,
            cluster_state: "ok",
            ahead_s: 0,
            unknown: &[],
        }
    }
}

/// Ends when it is dropped.
pub struct Fake {
    port: u16,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let says = Arc::new(says);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, says.clone()));
            }
        });
        Self { port, task }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

async fn serve(client: TcpStream, says: Arc<Says>) {
    let port = client.local_addr().expect("connected").port();
    let mut client = BufReader::new(client);
    while let Some(words) = command(&mut client).await {
        let answer = says.answer(&words, port);
        if client.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The words of the next command; none at the end.
async fn command(from: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let mut words = Vec::new();
    for _ in 0..number(from).await? {
        let length = number(from).await?;
        let mut word = vec![0; length + 2];
        from.read_exact(&mut word).await.ok()?;
        words.push(String::from_utf8(word[..length].to_vec()).ok()?);
    }
    Some(words)
}

/// A line such as `*3` or `$5`.
async fn number(from: &mut BufReader<TcpStream>) -> Option<usize> {
    let mut line = String::new();
    from.read_line(&mut line).await.ok()?;
    line.trim().get(1..)?.parse().ok()
}

impl Says {
    fn answer(&self, words: &[String], port: u16) -> String {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            [name, ..] if self.unknown.contains(&name) => {
                format!("-ERR unknown command '{name}', with args beginning with: \r\n")
            }
            ["INFO", ..] => text(&format!(
                "redis_version:{}\r\nrole:master\r\nconnected_slaves:0\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\ncluster_enabled:{}\r\n",
                self.version,
                u8::from(self.clustered)
            )),
            ["CLUSTER", "INFO"] => text(&format!("cluster_state:{}\r\n", self.cluster_state)),
            // A node without a host is where it was asked.
            ["CLUSTER", "SLOTS"] => {
                format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$0\r\n\r\n:{port}\r\n")
            }
            ["TIME"] => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                let now = now.expect("after 1970").as_secs();
                let now = now.saturating_add_signed(self.ahead_s).to_string();
                format!("*2\r\n{}{}", text(&now), text("0"))
            }
            _ => "+OK\r\n".to_owned(),
        }
    }
}

fn text(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}
