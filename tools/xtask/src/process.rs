//! Running other programs: their output in a log, a line of progress on a terminal, an end if they take too long.
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, IsTerminal, PipeReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

/// How to run a program.
pub(crate) struct Run<'a> {
    /// What a user reads while it runs.
    pub(crate) label: &'a str,
    /// Where its output goes.
    pub(crate) log: PathBuf,
    /// When it is ended.
    pub(crate) limit: Duration,
    /// Also print its output as it comes.
    pub(crate) echo: bool,
}

/// What came of a program.
pub(crate) struct Finished {
    /// Its exit status; `None` if a signal or its time limit ended it.
    pub(crate) code: Option<i32>,
    /// Whether its time limit ended it.
    pub(crate) timed_out: bool,
    /// Standard output and error, as they came; without carriage returns.
    pub(crate) output: String,
    /// The same, in a file.
    pub(crate) log: PathBuf,
}

impl Finished {
    pub(crate) fn succeeded(&self) -> bool {
        self.code == Some(0)
    }

    /// Why it failed, in a few words.
    pub(crate) fn ending(&self) -> String {
        match self.code {
            _ if self.timed_out => "it took too long and was ended".to_owned(),
            Some(code) => format!("exit status {code}"),
            None => "ended by a signal".to_owned(),
        }
    }

    /// The last lines of the output, indented, and where all of it is.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let all: Vec<&str> = self.output.lines().collect();
        let kept = &all[all.len().saturating_sub(lines)..];
        let mut text = String::new();
        if kept.len() < all.len() {
            text += &format!("    [{} lines before these]\n", all.len() - kept.len());
        }
        for line in kept {
            text += &format!("    {line}\n");
        }
        text + &format!("    [all of it: {}]", self.log.display())
    }
}

/// How long the output of a program that has ended must be silent to be all of it.
const LAST_LINES: Duration = Duration::from_secs(2);

impl Run<'_> {
    /// Runs a program to its end.
    ///
    /// # Errors
    /// It cannot be started, or the log cannot be written.
    pub(crate) fn run(self, command: &mut Command) -> Result<Finished, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        self.run_to_end(command).map_err(|error| format!("{name}: {error}"))
    }

    fn run_to_end(self, command: &mut Command) -> io::Result<Finished> {
        let mut log = File::create(&self.log)?;
        let (reader, writer) = io::pipe()?;
        let start = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).spawn()?;
        // The command keeps its ends of the pipe open, which would hide the end of the output.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let lines = lines_of(reader);
        let mut progress = Progress::new(self.label, !self.echo);
        let (mut output, mut timed_out, mut ended) = (String::new(), false, None);
        let status = loop {
            match lines.recv_timeout(if ended.is_some() { LAST_LINES } else { Duration::from_millis(200) }) {
                Ok(line) => {
                    writeln!(log, "{line}")?;
                    if self.echo {
                        println!("{line}");
                    }
                    progress.line(&line);
                    output.push_str(&line);
                    output.push('\n');
                }
                Err(RecvTimeoutError::Disconnected) => break wait(&mut child, start, self.limit, &mut timed_out)?,
                Err(RecvTimeoutError::Timeout) => match ended {
                    // Something that the program left behind holds the pipe open.
                    Some(status) => break status,
                    // Its last lines may still be on their way.
                    None => ended = child.try_wait()?,
                },
            }
            progress.tick();
            if start.elapsed() > self.limit && !timed_out {
                timed_out = true;
                end(&mut child)?;
            }
        };
        progress.clear();
        let code = if timed_out { None } else { status.code() };
        Ok(Finished { code, timed_out, output, log: self.log })
    }
}

/// Waits for a program that has closed its output.
fn wait(child: &mut Child, start: Instant, limit: Duration, timed_out: &mut bool) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if start.elapsed() > limit && !*timed_out {
            *timed_out = true;
            end(child)?;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The lines that come through a pipe, as text.
pub(crate) fn lines_of(reader: PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').replace('\r', "");
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

/// Ends a program and all that it has started.
fn end(child: &mut Child) -> io::Result<()> {
    let doomed = descendants(child.id());
    child.kill()?;
    if !doomed.is_empty() {
        let mut kill = Command::new("kill");
        kill.arg("-KILL").args(doomed.iter().map(u32::to_string)).stderr(Stdio::null()).status()?;
    }
    Ok(())
}

/// The processes below one.
fn descendants(ancestor: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            Some((process, parent(process)?))
        })
        .collect();
    let mut family = vec![ancestor];
    let mut next = 0;
    while let Some(elder) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, parent)| *parent == elder).map(|(process, _)| *process));
        next += 1;
    }
    family.split_off(1)
}

fn parent(process: u32) -> Option<u32> {
    let status = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// One line on the terminal that tells what runs, for how long, and what it said last. Nothing in a pipe.
pub(crate) struct Progress<'a> {
    label: &'a str,
    shown: bool,
    start: Instant,
    last: String,
}

const COLUMNS: usize = 79;

impl<'a> Progress<'a> {
    pub(crate) fn new(label: &'a str, wanted: bool) -> Self {
        Progress { label, shown: wanted && io::stderr().is_terminal(), start: Instant::now(), last: String::new() }
    }

    pub(crate) fn line(&mut self, line: &str) {
        if self.shown && !line.trim().is_empty() {
            self.last = line.chars().filter(|character| !character.is_control()).collect();
        }
    }

    pub(crate) fn tick(&self) {
        if self.shown {
            let text = format!("{} ({} s) {}", self.label, self.start.elapsed().as_secs(), self.last.trim());
            let text: String = text.chars().take(COLUMNS).collect();
            eprint!("\r\x1b[K{text}");
        }
    }

    pub(crate) fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limit: Duration) -> Finished {
        let log = std::env::temp_dir().join(format!("xtask-test-{}-{script:.9}", std::process::id()).replace('/', "-"));
        let run = Run { label: "test", log: log.clone(), limit, echo: false };
        let finished = run.run(Command::new("sh").args(["-c", script])).expect("sh runs");
        fs::remove_file(log).expect("a log was written");
        finished
    }

    #[test]
    fn both_outputs_and_the_status_are_kept() {
        let finished = run("echo one; echo two >&2; exit 3", Duration::from_secs(60));
        assert_eq!((finished.code, finished.output.as_str()), (Some(3), "one\ntwo\n"));
        assert_eq!(finished.ending(), "exit status 3");
    }

    #[test]
    fn what_a_program_says_last_is_kept_whenever_it_ends() {
        // Around the first look, 0.2 s after its start.
        for milliseconds in (190..210).step_by(2) {
            let finished = run(&format!("sleep 0.{milliseconds}; echo last"), Duration::from_secs(60));
            assert_eq!((finished.code, finished.output.as_str()), (Some(0), "last\n"));
        }
    }

    #[test]
    fn a_program_and_its_children_end_when_their_time_is_over() {
        let start = Instant::now();
        let finished = run("echo up; sleep 600 | sleep 600; echo no", Duration::from_millis(300));
        assert!(finished.timed_out && !finished.succeeded());
        assert_eq!(finished.output, "up\n");
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn what_a_program_leaves_behind_does_not_hold_it_up() {
        let start = Instant::now();
        let finished = run("sleep 20 & echo up", Duration::from_secs(60));
        assert_eq!((finished.code, finished.output.as_str()), (Some(0), "up\n"));
        assert!(start.elapsed() < Duration::from_secs(15));
    }
}
