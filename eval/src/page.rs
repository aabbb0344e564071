//! Common parts of our pages: a self-contained document, its sections, tables and lists.

use crate::plot;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// The frame of a page.
pub(crate) struct Document<'a> {
    pub title: &'a str,
    /// What the page may load in addition to its styles, as directives of a Content-Security-Policy; all else is forbidden.
    pub allows: &'a str,
    /// CSS, in addition to that of the charts.
    pub style: &'a str,
    /// JavaScript; may be empty.
    pub script: &'a str,
}

impl Document<'_> {
    /// The whole page: `header` comes below the title, `body` below the header.
    pub fn html(&self, header: Markup, body: Markup) -> String {
        let policy = format!("default-src 'none'; {}; style-src 'unsafe-inline'", self.allows);
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    title { (self.title) }
                    style { (PreEscaped(plot::STYLE)) (PreEscaped(self.style)) }
                }
                body {
                    main {
                        header { h1 { (self.title) } (header) }
                        (body)
                    }
                    @if !self.script.is_empty() { script { (PreEscaped(self.script)) } }
                }
            }
        };
        page.into_string() + "\n"
    }
}

/// A section under a heading; `id` is the heading's.
pub(crate) fn section(id: &str, heading: &str, body: Markup) -> Markup {
    html! { section aria-labelledby=(id) { h2 id=(id) { (heading) } (body) } }
}

/// A table that scrolls within the page; `label` is for screen readers.
pub(crate) fn scrolling(label: &str, table: Markup) -> Markup {
    html! { div.scroll tabindex="0" role="region" aria-label=(label) { (table) } }
}

/// Names and values.
pub(crate) fn facts(facts: &[(String, String)]) -> Markup {
    html! { dl.facts { @for (name, value) in facts { dt { (name) } dd { (value) } } } }
}

/// A PNG file as a data URL.
pub(crate) fn png_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_stands_in_its_url() {
        assert_eq!(png_url(b"fooba"), "data:image/png;base64,Zm9vYmE=");
    }

    #[test]
    fn text_is_escaped_everywhere() {
        let document = Document { title: "a <b>", allows: "img-src data:", style: "", script: "" };
        let body = section("x", "S & T", facts(&[("a \"name\"".into(), "<i>".into())]));
        let page = document.html(html! {}, scrolling("\"label\"", body));
        assert!(page.contains("<title>a &lt;b&gt;</title>") && page.contains("<h1>a &lt;b&gt;</h1>"), "{page}");
        assert!(page.contains("S &amp; T") && page.contains("<dt>a &quot;name&quot;</dt><dd>&lt;i&gt;</dd>"), "{page}");
        assert!(page.contains("aria-label=\"&quot;label&quot;\"") && !page.contains("<script"), "{page}");
    }
}
