//! Parts of a page for a browser: no script, nothing from any network.
use super::plot;
pub use super::text::escape;
use std::fmt::Write;

const STYLE: &str = include_str!("report.css");

/// A whole page around `body`, which is HTML.
pub fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title>\n\
         <style>\n{STYLE}</style></head>\n<body>\n\
         <h1>{title}</h1>\n{body}</body></html>\n"
    )
}

/// A table of text. `class` gives the class of the cell in a row and a column: `good`, `bad` or none.
pub fn table(headings: &[String], rows: &[Vec<String>], class: impl Fn(usize, usize) -> &'static str) -> String {
    let mut text = String::from("<table><thead><tr>");
    headings.iter().for_each(|heading| text += &format!("<th>{}</th>", escape(heading)));
    text += "</tr></thead><tbody>\n";
    for (row, cells) in rows.iter().enumerate() {
        text += "<tr>";
        for (column, cell) in cells.iter().enumerate() {
            let class = match class(row, column) {
                "" => String::new(),
                class => format!(" class=\"{class}\""),
            };
            text += &format!("<td{class}>{}</td>", escape(cell));
        }
        text += "</tr>\n";
    }
    text + "</tbody></table>\n"
}

/// A [plot](plot::plot) with a heading, the names of its lines in their order, and a note.
pub fn figure(title: &str, names: &[String], svg: &str, note: &str) -> String {
    let mut keys = String::from("<p class=\"keys\">");
    for (index, name) in names.iter().enumerate() {
        let _ = write!(keys, "<span><i class=\"c{}\"></i>{}</span>", index % plot::COLOURS, escape(name));
    }
    let (title, note) = (escape(title), escape(note));
    format!("<section><h2>{title}</h2>{keys}</p><figure>{svg}</figure><p class=\"note\">{note}</p></section>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_markup() {
        let cells = [vec!["a<b>".to_owned(), "\"&".to_owned()]];
        let text = table(&["<i>".to_owned()], &cells, |row, column| if row + column == 1 { "bad" } else { "" });
        assert!(text.contains("<th>&lt;i&gt;</th>"), "{text}");
        assert!(text.contains("<td>a&lt;b&gt;</td><td class=\"bad\">&quot;&amp;</td>"), "{text}");
        let page = page("a & b", &figure("<f>", &["<n>".to_owned()], "<svg></svg>", "<o>"));
        assert!(page.contains("<title>a &amp; b</title>") && page.contains("<svg></svg>"), "{page}");
        for text in ["<f>", "<n>", "<o>"] {
            assert!(!page.contains(text), "{text} in {page}");
        }
    }
}
