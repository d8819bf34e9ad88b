//! CPU time of local processes, to the nanosecond.
//!
//! Reads the kernel's CPU clock of the whole process. It counts what every thread's `/proc/PID/task/*/schedstat` counts, is
//! up to date for threads running at that moment, and keeps the time of threads that have ended.

use std::{str::FromStr, time::Duration};

use nix::{
    errno::Errno,
    time::{ClockId, clock_getcpuclockid},
    unistd::Pid,
};

/// No process has this id or a larger one. Source: proc(5), pid_max.
const PID_MAX: i32 = 1 << 22;

/// A process to measure, written `PID` or `LABEL=PID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedProcess {
    /// Its name in the report; `server` unless given.
    pub label: String,
    /// Its process id on this machine.
    pub pid: i32,
}

/// Why a process cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The text of `--pid` is not one.
    #[error("`{text}` is not PID or LABEL=PID")]
    NotAPid {
        /// What was given.
        text: String,
    },
    /// No such process, or it ended while the load ran.
    #[error("cannot read the CPU clock of {label}, process {pid}")]
    Unreadable {
        /// The label it was given.
        label: String,
        /// The process asked for.
        pid: i32,
        /// What the kernel said.
        source: Errno,
    },
}

impl FromStr for WatchedProcess {
    type Err = CpuError;

    fn from_str(text: &str) -> Result<Self, CpuError> {
        let (label, pid) = text.split_once('=').unwrap_or(("server", text));
        match pid.parse() {
            // 0 would mean this process, and larger numbers lose bits where a clock's id holds the process id.
            Ok(pid) if (1..PID_MAX).contains(&pid) && !label.is_empty() => Ok(Self {
                label: label.to_owned(),
                pid,
            }),
            _ => Err(CpuError::NotAPid {
                text: text.to_owned(),
            }),
        }
    }
}

/// CPU time that one process used between start and stop.
#[derive(Debug, Clone)]
pub(super) struct CpuTime {
    pub(super) label: String,
    pub(super) used: Duration,
}

/// The CPU clocks of the watched processes and of this one (`client`), read at the start.
pub(super) struct Clocks(Vec<(WatchedProcess, ClockId, Duration)>);

impl Clocks {
    pub(super) fn start(processes: &[WatchedProcess]) -> Result<Self, CpuError> {
        let client = WatchedProcess {
            label: "client".to_owned(),
            pid: Pid::this().as_raw(),
        };
        let clock = |process: WatchedProcess| {
            let id =
                clock_getcpuclockid(Pid::from_raw(process.pid)).map_err(unreadable(&process))?;
            let now = read(id).map_err(unreadable(&process))?;
            Ok((process, id, now))
        };
        processes
            .iter()
            .cloned()
            .chain([client])
            .map(clock)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn stop(self) -> Result<Vec<CpuTime>, CpuError> {
        let used = |(process, id, start): (WatchedProcess, ClockId, Duration)| {
            let now = read(id).map_err(unreadable(&process))?;
            Ok(CpuTime {
                used: now.saturating_sub(start),
                label: process.label,
            })
        };
        self.0.into_iter().map(used).collect()
    }
}

fn read(clock: ClockId) -> Result<Duration, Errno> {
    clock.now().map(Duration::from)
}

fn unreadable(process: &WatchedProcess) -> impl FnOnce(Errno) -> CpuError + use<> {
    let WatchedProcess { label, pid } = process.clone();
    move |source| CpuError::Unreadable { label, pid, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_pid_with_and_without_a_label() {
        let process = |label: &str, pid| WatchedProcess {
            label: label.into(),
            pid,
        };
        assert_eq!(
            "12".parse::<WatchedProcess>().unwrap(),
            process("server", 12)
        );
        assert_eq!(
            "redis=7".parse::<WatchedProcess>().unwrap(),
            process("redis", 7)
        );
        for bad in ["", "redis", "redis=", "=7", "0", "-4", "a=b=3", "4194304"] {
            assert!(bad.parse::<WatchedProcess>().is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_the_work_of_threads_that_have_ended() {
        let clocks = Clocks::start(&[]).unwrap();
        let spin = || {
            let own = ClockId::CLOCK_THREAD_CPUTIME_ID;
            while read(own).unwrap() < Duration::from_millis(20) {}
        };
        std::thread::spawn(spin).join().unwrap();
        let used = clocks.stop().unwrap();
        assert_eq!(used[0].label, "client");
        assert!(used[0].used >= Duration::from_millis(20), "{used:?}");
    }

    #[test]
    fn names_a_process_that_is_not_there() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        child.wait().unwrap();
        let gone = WatchedProcess {
            label: "redis".into(),
            pid,
        };
        let error = Clocks::start(&[gone]).err().unwrap().to_string();
        assert_eq!(
            error,
            format!("cannot read the CPU clock of redis, process {pid}")
        );
    }
}
