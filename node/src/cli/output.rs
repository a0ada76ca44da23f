//! Standard output as text for people or JSON for machines, and notes on standard error.

use crate::cli::error::CliError;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// Where a command says what it found.
#[derive(Debug, Clone)]
pub struct Output {
    json: bool,
    quiet: bool,
    styled: bool,
}

impl Output {
    /// The output of a command with `--json` and `--quiet` or without.
    pub fn new(json: bool, quiet: bool) -> Output {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Output { json, quiet, styled: !json && !no_color && io::stdout().is_terminal() }
    }

    /// Whether machines read it.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether notes and progress are wanted.
    pub fn is_chatty(&self) -> bool {
        !self.json && !self.quiet
    }

    /// Writes a JSON document, on one line: one for a command, or one a line for a stream.
    pub fn json<T: Serialize>(&self, value: &T) -> Result<(), CliError> {
        let mut line = serde_json::to_vec(value).map_err(|error| CliError::Failed(format!("cannot write JSON: {error}")))?;
        line.push(b'\n');
        write_out(&line)
    }

    /// Writes text for people, with a line end.
    pub fn text(&self, text: impl Display) -> Result<(), CliError> {
        write_out(format!("{text}\n").as_bytes())
    }

    /// Writes text as it is.
    pub fn raw(&self, text: &[u8]) -> Result<(), CliError> {
        write_out(text)
    }

    /// Either of the two: what machines get, or what people get.
    pub fn either<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> Result<(), CliError> {
        if self.json { self.json(value) } else { self.text(text()) }
    }

    /// Says something by the way, on standard error.
    pub fn note(&self, text: impl Display) {
        if self.is_chatty() {
            let _ = writeln!(io::stderr(), "{text}"); // nobody may be there to read it
        }
    }

    /// Says what must be known even with `--quiet`, on standard error; machines find it in the JSON document.
    pub fn warning(&self, text: impl Display) {
        if !self.json {
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Says why a command failed, on standard error.
    pub fn error(&self, error: &CliError) {
        let mut stderr = io::stderr();
        // When standard error is closed, the exit code is all that can be said.
        let _ = if self.json {
            let document = serde_json::to_string(&error.document()).unwrap_or_default();
            writeln!(stderr, "{document}")
        } else {
            writeln!(stderr, "ragged: {error}")
        };
        if let (Some(hint), false) = (error.hint(), self.json) {
            let _ = writeln!(stderr, "{hint}");
        }
    }

    /// Makes text stand out, where the terminal can.
    pub fn bold(&self, text: &str) -> String {
        if self.styled { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Makes text stand back, where the terminal can.
    pub fn dim(&self, text: &str) -> String {
        if self.styled { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// An empty table with these headings. Columns wrap on a terminal; elsewhere a row is a line.
    pub fn table(&self, headings: &[&str]) -> Table {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        if io::stdout().is_terminal() {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        let attribute = if self.styled { Attribute::Bold } else { Attribute::NoBold };
        let cell = |heading: &&str| {
            // A heading with capitals of its own, such as nDCG, is written as it is.
            let as_it_is = heading.chars().any(char::is_uppercase);
            let cell = Cell::new(if as_it_is { heading.to_string() } else { heading.to_uppercase() });
            if self.styled { cell.add_attribute(attribute) } else { cell }
        };
        table.set_header(headings.iter().map(cell));
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table
    }
}

/// A number in a table.
pub fn number(value: impl Display) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// A number with what it counts: `1 file`, `2 files`.
pub fn count(number: u64, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// A table as text, without the blanks that it pads the last column with.
pub fn render(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Text from documents as it may be printed: control characters could command the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

fn write_out(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::BrokenPipe,
        _ => CliError::io("cannot write to standard output", error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_off_a_terminal_has_a_line_for_each_row_and_no_trailing_blanks() {
        let mut table = Output::new(false, false).table(&["name", "documents"]);
        table.add_row(vec![Cell::new("a long name of something"), number(7)]);
        table.add_row(vec![Cell::new("b"), number(12345)]);
        let text = render(&table);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].contains("NAME") && lines[0].contains("DOCUMENTS"));
        assert!(lines[1].ends_with("7") && lines[2].ends_with("12345"), "{text}");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[31mb\nc\u{9b}d"), "a [31mb c d");
    }
}
