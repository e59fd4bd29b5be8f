//! Commands that are run and waited for, and programs that run beside.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What can go wrong around the thing that is measured.
#[derive(Debug, thiserror::Error)]
pub enum PerfError {
    /// A command failed.
    #[error("`{command}` failed ({status}): {said}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        said: String,
    },
    /// The system refused.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A condition did not come true.
    #[error("waited {seconds} s for {what}")]
    Timeout {
        /// The condition.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// A program ended that should run.
    #[error("{program} ended ({status}): {said}")]
    Ended {
        /// The program.
        program: String,
        /// How.
        status: String,
        /// What it said.
        said: String,
    },
    /// What was seen is not what should be.
    #[error("{0}")]
    Wrong(String),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
    /// Bytes that are not what they should be.
    #[error("{what} cannot be read: {why}")]
    Malformed {
        /// What.
        what: String,
        /// Why.
        why: String,
    },
}

impl PerfError {
    /// An error of the system around `what`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> PerfError {
        let what = what.into();
        move |source| PerfError::Io { what, source }
    }
}

/// A report for machines.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn json_text(what: &str, report: &impl Serialize) -> Result<String, PerfError> {
    serde_json::to_string_pretty(report).map_err(|error| PerfError::Malformed {
        what: what.into(),
        why: error.to_string(),
    })
}

/// Set by Ctrl-C and SIGTERM once [`watch_signals`] was called.
fn interrupted() -> &'static Arc<AtomicBool> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(Arc::default)
}

/// From here on Ctrl-C and SIGTERM end waiting with [`PerfError::Interrupted`], so that everything is cleaned up.
///
/// # Errors
/// If the handlers cannot be installed.
pub fn watch_signals() -> Result<(), PerfError> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(interrupted()))
            .map_err(PerfError::io("signal handlers"))?;
    }
    Ok(())
}

/// Fails if a signal came.
///
/// # Errors
/// [`PerfError::Interrupted`].
pub fn check_interrupted() -> Result<(), PerfError> {
    if interrupted().load(Ordering::Relaxed) {
        Err(PerfError::Interrupted)
    } else {
        Ok(())
    }
}

/// Waits until `condition` gives something.
///
/// # Errors
/// If it fails, if a signal comes, or if it takes longer than `limit`.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>, PerfError>,
) -> Result<T, PerfError> {
    let end = Instant::now() + limit;
    loop {
        check_interrupted()?;
        if let Some(found) = condition()? {
            return Ok(found);
        }
        if Instant::now() > end {
            return Err(PerfError::Timeout {
                what: what.to_owned(),
                seconds: limit.as_secs(),
            });
        }
        std::thread::sleep(LOOK);
    }
}

/// The CPUs that this process may run on; at least one.
///
/// # Errors
/// If the system does not say.
pub fn cpus() -> Result<Vec<usize>, PerfError> {
    let set = rustix::thread::sched_getaffinity(None)
        .map_err(|error| PerfError::io("the CPUs of this process")(error.into()))?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| set.is_set(*cpu))
        .collect())
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs a command to its end; gives what it wrote.
///
/// # Errors
/// If it fails.
pub fn run(command: &mut Command) -> Result<String, PerfError> {
    let line = line_of(command);
    let done = command
        .stdin(Stdio::null())
        .output()
        .map_err(PerfError::io(format!("`{line}`")))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if done.status.success() {
        Ok(text(&done.stdout))
    } else {
        let said = format!("{} {}", text(&done.stdout), text(&done.stderr))
            .trim()
            .to_owned();
        Err(PerfError::Command {
            command: line,
            status: done.status.to_string(),
            said,
        })
    }
}

/// Runs a line of words; gives what it wrote.
///
/// # Errors
/// If it fails.
pub fn run_line(line: &str) -> Result<String, PerfError> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or_default());
    run(command.args(words))
}

/// A program that runs beside, ended when dropped. What it writes goes to files, so that it never waits for a reader.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    output: PathBuf,
    errors: PathBuf,
    status: Option<ExitStatus>,
}

impl Running {
    /// Starts a program whose output goes into `directory`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(name: &str, directory: &Path, command: &mut Command) -> Result<Self, PerfError> {
        let failed = || PerfError::io(format!("`{}`", line_of(command)));
        let file = |kind: &str| {
            let path = directory.join(format!("{name}.{kind}"));
            File::create(&path).map(|file| (path, file))
        };
        let (output, stdout) = file("out").map_err(failed())?;
        let (errors, errors_file) = file("err").map_err(failed())?;
        let child = {
            let failed = failed();
            command
                .stdin(Stdio::null())
                .stdout(stdout)
                .stderr(errors_file)
                .spawn()
                .map_err(failed)?
        };
        Ok(Self {
            name: name.to_owned(),
            child,
            output,
            errors,
            status: None,
        })
    }

    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    #[must_use]
    pub fn output(&mut self) -> String {
        // By its name: the program's own descriptor stays where it writes.
        std::fs::read_to_string(&self.output).unwrap_or_default()
    }

    /// What it has written to standard error so far.
    #[must_use]
    pub fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// Removes the files that it writes to.
    pub fn remove_output(&self) {
        for path in [&self.output, &self.errors] {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// [`PerfError::Ended`].
    pub fn check_runs(&mut self) -> Result<(), PerfError> {
        match self.try_status()? {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    /// Waits until it has ended well; gives what it wrote.
    ///
    /// # Errors
    /// If it ends badly or takes longer than `limit`.
    pub fn finish(&mut self, limit: Duration) -> Result<String, PerfError> {
        let name = self.name.clone();
        let status = wait_for(&format!("the end of {name}"), limit, || self.try_status())?;
        if status.success() {
            Ok(self.output())
        } else {
            Err(self.ended(status))
        }
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        if self.status.is_none()
            && let Some(pid) = Pid::from_raw(self.child.id() as i32)
        {
            // It may have ended in between.
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
    }

    fn try_status(&mut self) -> Result<Option<ExitStatus>, PerfError> {
        if self.status.is_none() {
            self.status = self.child.try_wait().map_err(PerfError::io(self.name.clone()))?;
        }
        Ok(self.status)
    }

    fn ended(&mut self, status: ExitStatus) -> PerfError {
        let said = format!("{}{}", self.output(), self.errors()).trim().to_owned();
        PerfError::Ended {
            program: self.name.clone(),
            status: status.to_string(),
            said,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
