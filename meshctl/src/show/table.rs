//! Tables: columns as wide as they must be, two spaces apart.

use crate::terminal::{Paint, Style};

/// One cell.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), paint: Paint::Plain }
    }

    pub(crate) fn paint(self, paint: Paint) -> Self {
        Self { paint, ..self }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text)
    }
}

/// What stands where there is no value.
pub(crate) const NONE: &str = "-";

/// A cell for a value that may be absent.
pub(crate) fn or_none<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> Cell {
    value.map_or_else(|| Cell::new(NONE).paint(Paint::Dim), |value| Cell::new(text(value)))
}

/// Rows under a heading. A heading that starts with `>` aligns its column to the right.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        assert_eq!(N, self.headings.len(), "a cell for each heading");
        self.rows.push(cells.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table, or `empty` if it has no rows.
    pub(crate) fn render_or(&self, empty: &str, style: Style) -> String {
        if self.is_empty() { format!("{empty}\n") } else { self.render(style) }
    }

    pub(crate) fn render(&self, style: Style) -> String {
        let headings: Vec<Cell> =
            self.headings.iter().map(|heading| Cell::new(heading.trim_start_matches('>')).paint(Paint::Dim)).collect();
        let lines = || std::iter::once(&headings).chain(&self.rows);
        let width = |column: usize| lines().map(|line| line[column].text.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..headings.len()).map(width).collect();
        let mut text = String::new();
        for cells in lines() {
            let mut line = String::new();
            for (column, cell) in cells.iter().enumerate() {
                let padding = " ".repeat(widths[column] - cell.text.chars().count());
                let painted = style.paint(cell.paint, &cell.text);
                let (before, after) =
                    if self.headings[column].starts_with('>') { (padding, "".into()) } else { ("".into(), padding) };
                line.push_str(&format!("{before}{painted}{after}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_spaces() {
        let mut table = Table::new(&["NAME", ">SENT", "NOTE"]);
        table.row(["a".into(), "512 B".into(), "x".into()]);
        table.row(["berlin1".into(), "3.2 MB".into(), "".into()]);
        assert_eq!(table.render(Style::new(false)), "NAME       SENT  NOTE\na         512 B  x\nberlin1  3.2 MB\n");
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let mut table = Table::new(&["A", "B"]);
        table.row([Cell::new("x").paint(Paint::Bad), "1".into()]);
        table.row(["long".into(), "2".into()]);
        let plain = table.render(Style::new(false));
        let colored = table.render(Style::new(true));
        let stripped =
            ["\u{1b}[1;31m", "\u{1b}[2m", "\u{1b}[0m"].iter().fold(colored, |text, code| text.replace(code, ""));
        assert_eq!(stripped, plain);
    }

    #[test]
    fn empty_table_says_so() {
        assert_eq!(Table::new(&["A"]).render_or("nothing", Style::new(false)), "nothing\n");
    }
}
