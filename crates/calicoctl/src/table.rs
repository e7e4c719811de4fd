//! The two table styles: ruled for `ipam`, spaced for `get`.

use tabled::builder::Builder;
use tabled::settings::object::{Columns, Object as _, Rows};
use tabled::settings::style::HorizontalLine;
use tabled::settings::{Alignment, Style};

/// A table with rules above and below its header and at its end; headers left-aligned, the columns from
/// `right_from` on right-aligned below them.
pub(crate) fn ruled(header: &[&str], rows: Vec<Vec<String>>, right_from: usize) -> String {
    let mut builder = Builder::default();
    builder.push_record(header.iter().copied());
    let empty = rows.is_empty();
    for row in rows {
        builder.push_record(row);
    }
    let mut table = builder.build();
    let ascii = Style::ascii();
    table.with(ascii.remove_horizontal().horizontals([(1, HorizontalLine::inherit(Style::ascii()))]));
    table.with(Alignment::left());
    table.modify(Rows::new(1..).intersect(Columns::new(right_from..)), Alignment::right());
    let mut text = table.to_string();
    // Without rows the header's rule and the last one are the same line; Calico's table has both.
    if empty && let Some(rule) = text.lines().next().map(str::to_owned) {
        let header_end = text.matches('\n').count();
        for _ in header_end..3 {
            text.push('\n');
            text.push_str(&rule);
        }
    }
    text.push('\n');
    text
}

/// A table of `get`: each column as wide as its widest cell and three spaces, at least five and three; a blank line after.
pub(crate) fn spaced(header: &[&str], rows: &[Vec<String>]) -> String {
    /// Narrowest a cell may be.
    const MIN_WIDTH: usize = 5;
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .chain([title.chars().count(), MIN_WIDTH])
                .max()
                .unwrap_or(MIN_WIDTH)
        })
        .collect();
    let mut text = String::new();
    let mut line = |cells: Vec<&str>| {
        for (cell, width) in cells.into_iter().zip(&widths) {
            text.push_str(&format!("{cell:<width$}   "));
        }
        text.push('\n');
    };
    line(header.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ruled_table_without_rows_is_its_header_between_rules() {
        assert_eq!(ruled(&["A", "BC"], Vec::new(), 1), "+---+----+\n| A | BC |\n+---+----+\n+---+----+\n");
    }

    #[test]
    fn numbers_stand_on_the_right_and_headers_on_the_left() {
        let rows = vec![vec!["Block".to_owned(), "64".to_owned()]];
        assert_eq!(
            ruled(&["GROUPING", "IPS TOTAL"], rows, 1),
            "+----------+-----------+\n| GROUPING | IPS TOTAL |\n+----------+-----------+\n| Block    |        64 |\n+----------+-----------+\n"
        );
    }

    #[test]
    fn every_cell_of_a_spaced_table_is_padded() {
        let rows = [
            vec!["default-ipv4-ippool".to_owned(), "192.168.0.0/16".to_owned(), "all()".to_owned()],
            vec!["zone-b".to_owned(), "10.1.0.0/24".to_owned(), "zone == \"b\"".to_owned()],
        ];
        assert_eq!(
            spaced(&["NAME", "CIDR", "SELECTOR"], &rows),
            "NAME                  CIDR             SELECTOR      \n\
             default-ipv4-ippool   192.168.0.0/16   all()         \n\
             zone-b                10.1.0.0/24      zone == \"b\"   \n\n"
        );
    }
}
