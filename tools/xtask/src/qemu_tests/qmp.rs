//! A client of QMP, the QEMU Machine Protocol (QEMU: interop/qmp-spec): commands, their results, and events.
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// A connection to a QEMU or a qemu-storage-daemon.
pub(super) struct Qmp {
    stream: BufReader<UnixStream>,
    /// Events that came while something else was waited for.
    events: VecDeque<Value>,
    /// The part of a line that has come so far.
    partial: Vec<u8>,
}

const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

impl Qmp {
    /// Connects to a socket that may yet have to be made, and leaves the negotiation mode.
    ///
    /// # Errors
    /// Nobody listens there in time, or it speaks something else.
    pub(super) fn connect(path: &Path) -> Result<Self, String> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > CONNECT_LIMIT => return Err(format!("{}: {error}", path.display())),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        };
        let tick = stream.set_read_timeout(Some(Duration::from_millis(100)));
        tick.map_err(|error| format!("QMP: {error}"))?;
        let mut qmp = Qmp { stream: BufReader::new(stream), events: VecDeque::new(), partial: Vec::new() };
        qmp.message("QMP's greeting", Instant::now() + ANSWER_LIMIT)?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its result.
    ///
    /// # Errors
    /// The command failed, with QEMU's words, or QEMU has gone.
    pub(super) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}").map_err(|error| format!("QMP {command}: {error}"))?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            let mut message = self.message(command, deadline)?;
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
            if message.get("error").is_some() {
                return Err(format!("QMP {command}: {}", message["error"]["desc"]));
            }
            self.events.push_back(message);
        }
    }

    /// Waits for an event with this name whose data has these members, and forgets those before it.
    ///
    /// # Errors
    /// It did not come in time.
    pub(super) fn wait_event(&mut self, name: &str, data: &Value, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        loop {
            let message = match self.events.pop_front() {
                Some(event) => event,
                None => self.message(name, deadline)?,
            };
            let has = |(key, value): (&String, &Value)| message["data"].get(key) == Some(value);
            if message["event"] == name && data.as_object().into_iter().flatten().all(has) {
                return Ok(());
            }
        }
    }

    /// The next message of any kind.
    fn message(&mut self, awaited: &str, deadline: Instant) -> Result<Value, String> {
        loop {
            match self.stream.read_until(b'\n', &mut self.partial) {
                Ok(0) => return Err(format!("QMP: QEMU has gone; {awaited} was awaited")),
                Ok(_) if self.partial.ends_with(b"\n") => {
                    let message = serde_json::from_slice(&self.partial);
                    self.partial.clear();
                    return message.map_err(|error| format!("QMP: {error}"));
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(format!("QMP: {error}; {awaited} was awaited")),
            }
            if Instant::now() > deadline {
                return Err(format!("QMP: {awaited} did not come in time"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A server that greets, then for each line it reads sends the next answer.
    fn connected(name: &str, answers: &'static [&str]) -> Qmp {
        let path = std::env::temp_dir().join(format!("xtask-qmp-{}-{name}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a socket in the temporary folder");
        let server = thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().expect("a client").0);
            stream.get_mut().write_all(b"{\"QMP\": {}}\n").expect("a client that reads");
            for answer in [&["{\"return\": {}}\n"], answers].concat() {
                stream.read_line(&mut String::new()).expect("a command");
                stream.get_mut().write_all(answer.as_bytes()).expect("a client that reads");
            }
        });
        let qmp = Qmp::connect(&path).expect("a server that greets");
        std::fs::remove_file(&path).expect("the socket");
        drop(server);
        qmp
    }

    #[test]
    fn events_before_a_result_are_kept_and_told_apart_by_their_data() {
        let answers = &["{\"event\": \"GONE\", \"data\": {\"device\": \"a\"}}\n{\"event\": \"GONE\", \"data\": \
             {\"device\": \"b\"}}\n{\"return\": 7}\n"];
        let mut qmp = connected("events", answers);
        assert_eq!(qmp.execute("count", &json!({})), Ok(json!(7)));
        assert_eq!(qmp.wait_event("GONE", &json!({ "device": "b" }), ANSWER_LIMIT), Ok(()));
        let gone = qmp.wait_event("GONE", &json!({ "device": "a" }), Duration::ZERO).expect_err("it was before b's");
        assert!(gone.contains("GONE"), "{gone}");
    }

    #[test]
    fn an_error_has_the_words_of_qemu() {
        let mut qmp = connected("error", &["{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such bus\"}}\n"]);
        assert_eq!(qmp.execute("device_add", &json!({})), Err("QMP device_add: \"no such bus\"".to_owned()));
    }
}
