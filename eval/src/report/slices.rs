//! The report's pictures of slices: the scan with both masks' outlines, and next to it where they differ, sharp at any size.

use super::ReportPage;
use crate::display::{Difference, ShownSlice};
use crate::folder::CASE_PAGES;
use crate::outline::outlines;
use crate::overlay::{encode_grey, reference_colour};
use crate::page::{png_url, section};
use crate::palette::{colour, hex};
use crate::picture_choice::ChosenSlice;
use crate::scores::Scores;
use crate::table_text::{number, percent};
use maud::{Markup, html};

/// A slice's picture: the scan, and lines over it.
#[derive(Debug, Clone)]
pub(crate) struct SlicePicture {
    case: String,
    chosen: ChosenSlice,
    /// The scan, as a PNG file.
    grey: Vec<u8>,
    /// Each class' outlines in the reference and in the prediction, and those of each kind of difference.
    reference: Vec<(u8, String)>,
    prediction: Vec<(u8, String)>,
    differences: Vec<(u8, String)>,
    /// Height and width of the masks, in pixels.
    size: [usize; 2],
    /// The same in millimetres.
    extent: [f64; 2],
    /// The sides of the body at the left, right, top and bottom.
    sides: Option<[char; 4]>,
}

impl SlicePicture {
    /// # Errors
    /// If the scan is no picture.
    pub fn new(case: &str, chosen: ChosenSlice, shown: &ShownSlice) -> Result<Self, png::EncodingError> {
        Ok(SlicePicture {
            case: case.into(),
            chosen,
            grey: encode_grey(shown.grey.as_ref())?,
            reference: outlines(&shown.reference, shown.size),
            prediction: outlines(&shown.prediction, shown.size),
            differences: outlines(&shown.differences(), shown.size),
            size: shown.size,
            extent: [0, 1].map(|axis| shown.size[axis] as f64 * shown.spacing_mm[axis]),
            sides: shown.sides,
        })
    }

    /// Length of what is drawn of its differences: the more of them, the longer.
    pub(super) fn differing(&self) -> usize {
        self.differences.iter().map(|(_, path)| path.len()).sum()
    }

    /// What it is.
    pub(super) fn text(&self) -> String {
        let ChosenSlice { slice, dice, .. } = self.chosen;
        format!("Case {}, slice {slice}: DSC in the slice {} percent", self.case, percent(dice))
    }

    /// Both panels; the second uses the first one's scan, so that the page holds it once.
    pub(super) fn panels(&self, page: &ReportPage, id: &str) -> Markup {
        let ([height, width], [tall, wide]) = (self.size, self.extent);
        let panel = |label: String, drawn: Markup| {
            html! {
                span.panel style={ "aspect-ratio:" (format!("{wide:.2}/{tall:.2}")) } {
                    svg viewBox={ "0 0 " (width) " " (height) } preserveAspectRatio="none" role="img" aria-label=(label) { (drawn) }
                    @if let Some([left, right, top, bottom]) = self.sides {
                        span.side.left { (left) } span.side.right { (right) } span.side.top { (top) } span.side.bottom { (bottom) }
                    }
                }
            }
        };
        let line = |class: u8, path: &str, kind: &str, rgb: [u8; 3], of: &str| {
            let organ = page.context.class_names.get(usize::from(class) - 1).map_or("", String::as_str);
            html! { path class=(kind) d=(path) stroke=(hex(rgb)) { title { (organ) ", " (of) } } }
        };
        let outlined = html! {
            image id=(id) href=(png_url(&self.grey)) width=(width) height=(height) preserveAspectRatio="none" {}
            @for (class, path) in &self.prediction { (line(*class, path, "prediction", colour(page.palette, *class), "prediction")) }
            @for (class, path) in &self.reference { (line(*class, path, "reference", reference_colour(page.palette, *class), "reference")) }
        };
        let different = html! {
            use href={ "#" (id) } {}
            @for difference in Difference::ALL {
                @for (_, path) in self.differences.iter().filter(|(kind, _)| *kind == difference as u8) {
                    path.difference d=(path) fill=(hex(difference.colour())) { title { (difference.name()) } }
                }
            }
        };
        let name = format!("Case {}, slice {}", self.case, self.chosen.slice);
        html! {
            (panel(format!("{name}: scan with the outlines of reference and prediction"), outlined))
            (panel(format!("{name}: where reference and prediction differ"), different))
        }
    }

    fn figure(&self, page: &ReportPage, id: &str) -> Markup {
        html! {
            figure.slice {
                button.panels type="button" title="Enlarge" { (self.panels(page, id)) }
                figcaption { span.tag { (self.chosen.choice.name()) } span.what { (self.text()) } }
            }
        }
    }
}

impl ReportPage<'_> {
    /// Each case's pictures, the worst case and in it the worst slice first.
    pub(super) fn slices_section(&self, organs: &[String]) -> Markup {
        let scores = Scores::new(self.cases, self.context.class_names, |row| row.dice);
        let distances = Scores::new(self.cases, self.context.class_names, |row| row.hd95);
        let heading = |case: &str| {
            let index = scores.cases.iter().position(|name| name == case);
            let [dice, hd95] = [&scores, &distances].map(|scores| index.and_then(|index| scores.case_mean(index)));
            format!("mean DSC {} percent, mean HD95 {} {}", percent(dice), number(hd95), self.context.scoring.unit.name())
        };
        let mut cases = Vec::new();
        for (index, case) in self.cases_from_the_worst().iter().enumerate() {
            let mut pictures: Vec<&SlicePicture> = self.pictures.iter().filter(|picture| picture.case == *case).collect();
            let dice = |picture: &SlicePicture| picture.chosen.dice.unwrap_or(f64::INFINITY);
            pictures.sort_by(|a, b| dice(a).total_cmp(&dice(b)));
            let figures = pictures.iter().enumerate().map(|(at, picture)| picture.figure(self, &format!("scan-{index}-{at}")));
            cases.push(html! {
                h3 {
                    "Case " (case) span.scores { (heading(case)) }
                    @if self.case_pages { " " a.all href={ (CASE_PAGES) "/" (encoded(case)) ".html" } { "all slices" } }
                }
                div.slices { @for figure in figures { (figure) } }
            });
        }
        let body = html! {
            (self.legend(organs))
            p.note { (self.how_slices_are_shown()) }
            @for case in cases { (case) }
            dialog #enlarged aria-label="A slice, enlarged" {
                div.panels {}
                p.bar {
                    button.previous type="button" { "← previous" }
                    span.what {}
                    button.next type="button" { "next →" }
                    button.close type="button" { "close" }
                }
            }
        };
        section("slices", "Slices", body)
    }

    pub(super) fn legend(&self, organs: &[String]) -> Markup {
        html! {
            ul.legend aria-label="Lines and colours of the pictures" {
                li { svg.sample viewBox="0 0 30 8" aria-hidden="true" { path.prediction d="M0 4h30" {} } "prediction" }
                li { svg.sample viewBox="0 0 30 8" aria-hidden="true" { path.reference d="M0 4h30" {} } "reference" }
                @for difference in Difference::ALL {
                    li { span.swatch style={ "background:" (hex(difference.colour())) } {} (difference.name()) }
                }
            }
            ul.legend aria-label="Colours of the organs" { @for organ in organs { li { (self.name_of(organ)) } } }
        }
    }

    fn how_slices_are_shown(&self) -> String {
        let placed = self.pictures.iter().any(|picture| picture.sides.is_some());
        format!(
            "The worst case is first, and of each case the slice with the lowest DSC; then its other worst ones, the one with the most organ \
             voxels, and the best. The DSC of a slice is the mean over the organs that the reference or the prediction has in it. Slices with \
             less than a twentieth of the organ voxels of the fullest one are passed over. A click enlarges; the arrow keys step through the slices.{}",
            self.how_slices_lie(placed)
        )
    }

    /// What the greys are, and how the body lies.
    pub(super) fn how_slices_lie(&self, placed: bool) -> String {
        let greys = if self.greys.is_empty() { String::new() } else { format!(" Greys: {}.", self.greys) };
        let lie = if placed {
            " Radiological convention, by the scans' affines: the patient's right side is on the left."
        } else {
            " Nothing says how these scans lie in space: slices are shown as they lie in the array, without the sides of the body."
        };
        format!("{greys}{lie}")
    }
}

impl SlicePicture {
    /// Whether it is known how it lies in the body.
    pub(super) fn is_placed(&self) -> bool {
        self.sides.is_some()
    }
}

/// A name as a part of a URL (RFC 3986).
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn a_cases_name_is_encoded_in_its_address() {
        assert_eq!(encoded("brain_010.a-b~"), "brain_010.a-b~");
        assert_eq!(encoded("a b#?%\u{fc}"), "a%20b%23%3F%25%C3%BC");
    }
}
