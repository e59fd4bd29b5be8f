//! Tables for people: columns as wide as what is in them.

use serde_json::Value;

/// A head and a line for each row; what is last is as long as it likes.
pub(super) fn table(head: &[&str], rows: &[Value], cells: impl Fn(&Value) -> Vec<String>) -> String {
    let mut lines: Vec<Vec<String>> = vec![head.iter().map(|name| (*name).to_owned()).collect()];
    lines.extend(rows.iter().map(cells));
    let width = |column: usize| {
        let cells = lines.iter().filter_map(|line| line.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    lines.iter().fold(String::new(), |mut out, line| {
        let padded = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        out += padded.collect::<Vec<_>>().join("  ").trim_end();
        out.push('\n');
        out
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_stand_under_each_other() {
        let rows = [json!(["a", "long one"]), json!(["longer", "é"])];
        let cells = |row: &Value| {
            let cells = row.as_array().unwrap().iter();
            cells.map(|cell| cell.as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(
            table(&["n", "x"], &rows, cells),
            "n       x\na       long one\nlonger  é\n"
        );
    }
}
