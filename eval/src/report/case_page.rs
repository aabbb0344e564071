//! A case's page: all its slices under a slider, so that nobody needs a second program to look through a mask.

use super::{ReportPage, Viewer};
use crate::page::Document;
use crate::slice_picture::SlicePicture;
use maud::{Markup, html};

impl ReportPage<'_> {
    /// The page of a case, with the pictures of its slices from the first to the last, and the view in three dimensions.
    pub fn case_html(&self, case: &str, pictures: &[SlicePicture], viewer: Option<&Viewer>) -> String {
        let document = Document {
            title: &format!("{} · case {case}", self.context.method),
            // NiiVue makes pictures of its own and its fonts from data URLs, and compiles what it needs.
            allows: match viewer {
                Some(_) => {
                    "img-src data: blob:; connect-src data: blob:; worker-src blob:; script-src 'unsafe-inline' 'wasm-unsafe-eval'"
                }
                None => "img-src data:; script-src 'unsafe-inline'",
            },
            style: include_str!("../report.css"),
            script: include_str!("../case_page.js"),
        };
        // The slice with the most difference is shown first.
        let first = (0..pictures.len()).max_by_key(|&slice| (pictures[slice].differing(), std::cmp::Reverse(slice))).unwrap_or(0);
        let header = html! { p.lead { "All slices. The arrow keys and the wheel step through them." } };
        let body = html! {
            (self.legend())
            div #slice.panels {}
            p.slider {
                input #position type="range" min="0" max=(pictures.len().saturating_sub(1)) step="1" value=(first) aria-label="Slice";
                output for="position" {}
            }
            p.note { (self.how_slices_lie(pictures.iter().any(SlicePicture::is_placed))) }
            @if let Some(viewer) = viewer { (viewer.section(self)) }
            @for (slice, picture) in pictures.iter().enumerate() { (template(self, picture, slice)) }
        };
        document.html(header, body)
    }
}

/// A slice that is not drawn until the slider is there.
fn template(page: &ReportPage, picture: &SlicePicture, slice: usize) -> Markup {
    html! { template data-text=(picture.text()) { (picture.panels(page.look(), &format!("scan-{slice}"))) } }
}
