//! A program that runs beside the test: its output line by line, in a log too, and its end.
use crate::process::{Progress, lines_of};
use std::{
    fs::File,
    io::{self, PipeReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A running program. It is killed when dropped.
pub(super) struct Service {
    /// What messages call it.
    label: String,
    child: Child,
    input: Option<ChildStdin>,
    /// Lines that no wait has looked at.
    output: Receiver<String>,
    reader: Option<JoinHandle<()>>,
    echo: bool,
}

/// How often waits look at other things than output.
const TICK: Duration = Duration::from_millis(50);

impl Service {
    /// Starts a program with its arguments. The log is added to if there is one.
    ///
    /// # Errors
    /// It cannot be started, or the log not be written.
    pub(super) fn start(label: &str, program: &Command, log: &Path, echo: bool) -> Result<Self, String> {
        // It must not outlive these tests, even if they are killed: emulation takes whole processors.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        // Whoever runs the tests may have these ignored, as nohup does, and they would stay so.
        command.args(["env", "--default-signal=HUP,INT,QUIT,TERM"]);
        command.arg(program.get_program()).args(program.get_args());
        let mut start = || -> io::Result<Self> {
            let log = File::options().create(true).append(true).open(log)?;
            let (reader, writer) = io::pipe()?;
            let mut child = command.stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer).spawn()?;
            // The command keeps its ends of the pipe open, which would hide the end of the output.
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let input = child.stdin.take();
            let (reader, output) = follow(reader, log, echo);
            Ok(Service { label: label.to_owned(), child, input, output, reader: Some(reader), echo })
        };
        start().map_err(|error| format!("cannot run {}: {error}", program.get_program().display()))
    }

    /// Waits for a line that `wanted` takes, which also looks at those before it and may refuse one as an error.
    ///
    /// # Errors
    /// A line was refused, the program ended, or it took longer than the limit.
    pub(super) fn wait_line<T>(
        &mut self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&str) -> Result<Option<T>, String>,
    ) -> Result<T, String> {
        let start = Instant::now();
        let label = format!("{}: waiting for {what}", self.label);
        let mut progress = Progress::new(&label, !self.echo);
        let result = loop {
            let ended = match self.output.recv_timeout(TICK) {
                Ok(line) => {
                    progress.line(&line);
                    match wanted(&line) {
                        Ok(None) => false,
                        Ok(Some(found)) => break Ok(found),
                        Err(why) => break Err(why),
                    }
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            progress.tick();
            if ended || start.elapsed() > limit {
                let ending = if ended { "it ended" } else { "it took too long" };
                let seconds = start.elapsed().as_secs();
                break Err(format!("{}: waited {seconds} s for {what}, but {ending}", self.label));
            }
        };
        progress.clear();
        result
    }

    /// The lines so far that no wait has looked at.
    pub(super) fn unread(&mut self) -> Vec<String> {
        self.output.try_iter().collect()
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// It took longer than the limit.
    pub(super) fn wait_exit(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
                self.join();
                return Ok(status);
            }
            thread::sleep(TICK);
        }
        Err(format!("{}: still running {} s after it was to end", self.label, limit.as_secs()))
    }

    /// Its process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn say(&mut self, line: &str) -> Result<(), String> {
        let input = self.input.as_mut().ok_or("its input is closed")?;
        writeln!(input, "{line}").and_then(|()| input.flush()).map_err(|error| format!("{}: {error}", self.label))
    }

    /// Sends a signal by name, such as `TERM`.
    ///
    /// # Errors
    /// `kill` cannot be run or failed.
    pub(super) fn signal(&self, name: &str) -> Result<(), String> {
        let mut kill = Command::new("kill");
        let status = kill.arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("kill -{name} {}: {status}", self.label)),
            Err(error) => Err(format!("kill: {error}")),
        }
    }

    /// Ends it by SIGKILL, at once.
    ///
    /// # Errors
    /// The system refuses.
    pub(super) fn kill(&mut self) -> Result<(), String> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).map_err(|error| format!("{}: {error}", self.label))
    }

    /// Waits until its last words are in the log.
    fn join(&mut self) {
        // The thread ends with the output: these programs leave nothing behind that would hold it open.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // One that has ended already is no error here.
        let _ = self.kill();
        self.join();
    }
}

/// Writes a program's output to its log, whether or not somebody waits for a line of it.
fn follow(reader: PipeReader, mut log: File, echo: bool) -> (JoinHandle<()>, Receiver<String>) {
    let (sender, output) = mpsc::channel();
    let thread = thread::spawn(move || {
        for line in lines_of(reader) {
            if let Err(error) = writeln!(log, "{line}") {
                println!("warning: a log cannot be written: {error}");
            }
            if echo {
                println!("{line}");
            }
            // Nobody waits any more once the service is being dropped.
            let _ = sender.send(line);
        }
    });
    (thread, output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> (Service, std::path::PathBuf) {
        let log = std::env::temp_dir().join(format!("xtask-service-{}-{script:.6}", std::process::id()));
        let service = Service::start("it", Command::new("sh").args(["-c", script]), &log, false);
        (service.expect("sh runs"), log)
    }

    #[test]
    fn lines_are_waited_for_in_their_order_and_all_are_in_the_log() {
        let (mut service, log) = shell("read word; echo one; echo \"$word\"; echo three; exit 3");
        service.say("two").expect("it reads");
        let limit = Duration::from_secs(60);
        let wanted = |line: &str| Ok((line == "two").then_some(()));
        assert_eq!(service.wait_line("two", limit, wanted), Ok(()));
        let why = service.wait_line("two", limit, wanted).expect_err("there is one only");
        assert!(why.contains("it ended"), "{why}");
        assert_eq!(service.wait_exit(limit).expect("it ends").code(), Some(3));
        assert_eq!(std::fs::read_to_string(&log).expect("a log"), "one\ntwo\nthree\n");
        std::fs::remove_file(log).expect("a log");
    }

    #[test]
    fn a_wait_ends_in_time_and_the_program_with_its_owner() {
        let (mut service, log) = shell("exec sleep 600");
        assert!(service.is_running());
        let why =
            service.wait_line("more", Duration::from_millis(200), |_| Ok(None::<()>)).expect_err("it says nothing");
        assert!(why.contains("took too long"), "{why}");
        service.signal("TERM").expect("it runs");
        assert_eq!(service.wait_exit(Duration::from_secs(60)).expect("it ends").code(), None);
        std::fs::remove_file(log).expect("a log");
    }
}
