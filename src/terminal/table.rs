//! Columns of text.

/// Space between two columns.
const GAP: &str = "  ";

/// Cells in columns that are as wide as they must be. Cells must be harmless and of one line.
#[derive(Debug)]
pub struct Table {
    header: bool,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with a heading, which may be empty.
    pub fn new(heading: &[&str]) -> Self {
        let rows = if heading.is_empty() {
            Vec::new()
        } else {
            vec![heading.iter().map(|cell| cell.to_uppercase()).collect()]
        };
        Self { header: !heading.is_empty(), rows }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as lines. Columns of numbers are aligned to the right.
    pub fn render(&self, indent: &str) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let body = &self.rows[usize::from(self.header)..];
        let layout: Vec<(usize, bool)> = (0..columns)
            .map(|column| {
                let width = |row: &Vec<String>| row.get(column).map_or(0, |cell| cell.chars().count());
                let numeric = |row: &Vec<String>| {
                    row.get(column).is_none_or(|cell| {
                        cell.is_empty()
                            || (cell.starts_with(|c: char| c.is_ascii_digit()) && !cell.contains('-'))
                    })
                };
                // The first column is what the rows are about.
                (self.rows.iter().map(width).max().unwrap_or(0), column > 0 && body.iter().all(numeric))
            })
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&layout).map(|(cell, (width, right))| {
                if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            });
            let line = cells.collect::<Vec<_>>().join(GAP);
            text.push_str(indent);
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
    fn columns_are_as_wide_as_they_must_be() {
        let mut table = Table::new(&["name", "size", "note"]);
        table.row(["é".to_owned(), "5".to_owned(), "x".to_owned()]);
        table.row(["longer".to_owned(), "12345".to_owned(), String::new()]);
        assert_eq!(table.render(""), "NAME     SIZE  NOTE\né           5  x\nlonger  12345\n");
    }
}
