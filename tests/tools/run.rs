//! Runs the built binary to its end.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use crate::common::tollgate_command;

/// A file of these tests.
pub fn file(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools");
    folder.join(name)
}

/// What a command did.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Its answer is word for word the file `name`, and its exit status `code`.
    pub fn answers(&self, code: i32, name: &str) {
        let wanted = fs::read_to_string(file(name)).unwrap_or_default();
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        assert!(
            self.out == wanted,
            "not what {name} says:\n{}\n{}",
            self.out,
            self.err
        );
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

/// `tollgate ARGS…`, run in the folder of these tests.
pub fn tollgate(args: &[&str]) -> Ran {
    tollgate_reading(args, b"")
}

/// The same, with `input` on its standard input.
pub fn tollgate_reading(args: &[&str], input: &[u8]) -> Ran {
    let mut child = tollgate_command()
        .current_dir(file(""))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary is built");
    let mut stdin = child.stdin.take().expect("piped");
    // It may end before it has read everything.
    let _ = stdin.write_all(input);
    drop(stdin);
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().expect("a child");
    Ran {
        code: status.code().expect("no signal"),
        out: String::from_utf8(stdout).expect("text"),
        err: String::from_utf8(stderr).expect("text"),
    }
}
