//! Tables in containerlab's style: rounded corners, a rule between all rows, cells of several lines.

/// A table: the header's cells, and rows of cells, each cell a list of lines.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The header.
    pub header: Vec<String>,
    /// The rows; each has as many cells as the header.
    pub rows: Vec<Vec<Vec<String>>>,
    /// Columns (by number) in which equal neighbours share one cell.
    pub merged: Vec<usize>,
}

impl Table {
    /// The table as text, with a bold header where wanted.
    #[must_use]
    pub fn render(&self, bold: bool) -> String {
        let widths: Vec<usize> = (0..self.header.len()).map(|column| self.width(column)).collect();
        let mut head = vec![border(&widths, &[], ['╭', '─', '┬', '╮'])];
        let cells: Vec<String> = self
            .header
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!(" {} ", centred(cell, *width)))
            .collect();
        head.push(format!("│{}│", cells.join("│")));
        head.push(border(&widths, &[], ['├', '─', '┼', '┤']));
        if bold {
            head = head.iter().map(|line| embolden(line)).collect();
        }
        let mut text = String::new();
        for line in &head {
            text.push_str(line);
            text.push('\n');
        }
        for (index, row) in self.rows.iter().enumerate() {
            let shared = self.shared_with_previous(index);
            if index > 0 {
                text.push_str(&border(&widths, &shared, ['├', '─', '┼', '┤']));
                text.push('\n');
            }
            let height = row.iter().map(Vec::len).max().unwrap_or(1);
            for line in 0..height {
                for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                    let content = if shared.contains(&column) { None } else { cell.get(line) };
                    let content = content.map_or("", String::as_str);
                    text.push_str(&format!(
                        "│ {content}{} ",
                        " ".repeat(width.saturating_sub(count(content)))
                    ));
                }
                text.push_str("│\n");
            }
        }
        text.push_str(&border(&widths, &[], ['╰', '─', '┴', '╯']));
        text.push('\n');
        text
    }

    fn width(&self, column: usize) -> usize {
        let body = self.rows.iter().filter_map(|row| row.get(column)).flatten();
        self.header.get(column).into_iter().chain(body).map(|text| count(text)).max().unwrap_or(0)
    }

    fn shared_with_previous(&self, index: usize) -> Vec<usize> {
        let Some(previous) = index.checked_sub(1).and_then(|index| self.rows.get(index)) else {
            return Vec::new();
        };
        let same = |column: &&usize| {
            self.rows.get(index).is_some_and(|row| row.get(**column) == previous.get(**column))
        };
        self.merged.iter().filter(same).copied().collect()
    }
}

fn count(text: &str) -> usize {
    text.chars().count()
}

/// In the middle; an odd space goes to the left.
fn centred(text: &str, width: usize) -> String {
    let space = width.saturating_sub(count(text));
    let right = space / 2;
    format!("{}{text}{}", " ".repeat(space - right), " ".repeat(right))
}

fn border(widths: &[usize], open: &[usize], [left, line, cross, right]: [char; 4]) -> String {
    let mut text = String::new();
    for (column, width) in widths.iter().enumerate() {
        let is_open = open.contains(&column);
        let was_open = column.checked_sub(1).is_some_and(|before| open.contains(&before));
        text.push(match (column, was_open, is_open) {
            (0, _, true) => '│',
            (0, _, false) => left,
            (_, true, true) => '│',
            (_, true, false) => '├',
            (_, false, true) => '┤',
            (_, false, false) => cross,
        });
        let fill = if is_open { ' ' } else { line };
        text.extend(std::iter::repeat_n(fill, width + 2));
    }
    text.push(if widths.len().checked_sub(1).is_some_and(|last| open.contains(&last)) {
        '│'
    } else {
        right
    });
    text
}

/// Bold: each border character and each cell by itself.
fn embolden(line: &str) -> String {
    let is_border = |character: char| ('\u{2500}'..='\u{257f}').contains(&character);
    let mut text = String::new();
    let mut cell = String::new();
    let flush = |cell: &mut String, text: &mut String| {
        if !cell.is_empty() {
            text.push_str(&format!("\x1b[1m{cell}\x1b[0m"));
            cell.clear();
        }
    };
    for character in line.chars() {
        if is_border(character) {
            flush(&mut cell, &mut text);
            text.push_str(&format!("\x1b[1m{character}\x1b[0m"));
        } else {
            cell.push(character);
        }
    }
    flush(&mut cell, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_neighbours_share_a_cell() {
        let cell = |text: &str| vec![text.to_owned()];
        let table = Table {
            header: vec!["Lab".into(), "Name".into()],
            rows: vec![vec![cell("x"), cell("a")], vec![cell("x"), cell("bb")]],
            merged: vec![0],
        };
        let expected = "\
╭─────┬──────╮
│ Lab │ Name │
├─────┼──────┤
│ x   │ a    │
│     ├──────┤
│     │ bb   │
╰─────┴──────╯
";
        assert_eq!(table.render(false), expected);
        assert!(table.render(true).starts_with("\x1b[1m╭\x1b[0m\x1b[1m─\x1b[0m"));
    }
}
