//! What the command line says.
use super::{part::Part, work::Work};
use std::{path::PathBuf, time::Duration};

/// The arguments.
#[derive(Clone, Debug)]
pub(crate) struct Arguments {
    /// How often each is measured.
    pub(crate) rounds: u32,
    /// How long each measurement of a server takes.
    pub(crate) duration: Duration,
    pub(crate) parts: Vec<Part>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) html: Option<PathBuf>,
    /// `-` is standard output.
    pub(crate) markdown: Option<PathBuf>,
    /// Whether it is run as a test.
    pub(crate) is_test: bool,
}

/// Why nothing is measured.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Help(String),
    Wrong(String),
}

fn help() -> String {
    let names: Vec<&str> = Part::all().into_iter().map(Part::name).collect();
    format!(
        "cargo bench -p pollux-benches --bench side_by_side -- [NAME]... [OPTION]...\n\n\
         NAME is one of {}; by default all are measured.\n\n\
         --rounds N         measure everything N times (5)\n\
         --milliseconds N   length of each measurement of a server (500)\n\
         --json FILE        write everything that was measured\n\
         --html FILE        write a page with the table and plots; it needs no network\n\
         --markdown FILE    write the table in Markdown; - is standard output\n",
        names.join(", ")
    )
}

impl Arguments {
    /// As a test: one short round.
    fn test() -> Self {
        Arguments {
            rounds: 1,
            duration: Duration::from_millis(20),
            parts: vec![Part::Work(Work::Null)],
            json: None,
            html: None,
            markdown: None,
            is_test: true,
        }
    }

    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, Refusal> {
        let mut arguments = Arguments {
            rounds: 5,
            duration: Duration::from_millis(500),
            parts: Vec::new(),
            is_test: true,
            ..Self::test()
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| Refusal::Wrong(format!("{word} needs a value")));
            match word.as_str() {
                // What cargo says to a benchmark, and not to a test.
                "--bench" => arguments.is_test = false,
                "--rounds" => arguments.rounds = number(&word, &value()?)?,
                "--milliseconds" => {
                    arguments.duration = Duration::from_millis(number(&word, &value()?)?.into());
                }
                "--json" => arguments.json = Some(value()?.into()),
                "--html" => arguments.html = Some(value()?.into()),
                "--markdown" => arguments.markdown = Some(value()?.into()),
                "--help" | "-h" => return Err(Refusal::Help(help())),
                name => match Part::all().into_iter().find(|part| part.name() == name) {
                    Some(part) if arguments.parts.contains(&part) => {}
                    Some(part) => arguments.parts.push(part),
                    None => return Err(Refusal::Wrong(format!("{name} is nothing to measure\n\n{}", help()))),
                },
            }
        }
        if arguments.is_test {
            return Ok(Self::test());
        }
        if arguments.parts.is_empty() {
            arguments.parts = Part::all();
        }
        Ok(arguments)
    }
}

fn number(option: &str, text: &str) -> Result<u32, Refusal> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err(Refusal::Wrong(format!("{option} takes a number from 1 on, not {text:?}"))),
    }
}
