//! The report's pictures of slices, the worst first.

use super::ReportPage;
use crate::display::Difference;
use crate::folder::CASE_PAGES;
use crate::page::section;
use crate::palette::hex;
use crate::scores::Scores;
use crate::slice_picture::{OrganLook, SlicePicture, enlarged, lines_legend};
use crate::table_text::{number, percent};
use maud::{Markup, html};

impl ReportPage<'_> {
    /// A picture with its caption; a click enlarges it.
    fn figure(&self, picture: &SlicePicture, id: &str) -> Markup {
        html! {
            figure.slice {
                button.panels type="button" title="Enlarge" { (picture.panels(self.look(), id)) }
                figcaption { span.tag { (picture.chosen.choice.name()) } span.what { (picture.text()) } }
            }
        }
    }

    /// How organs are drawn.
    pub(super) fn look(&self) -> OrganLook<'_> {
        OrganLook { class_names: self.class_names, palette: self.palette }
    }

    /// Each case's pictures, the worst case and in it the worst slice first.
    pub(super) fn slices_section(&self) -> Markup {
        let scores = Scores::new(self.cases, self.context.organs, |row| row.dice);
        let distances = Scores::new(self.cases, self.context.organs, |row| row.hd95);
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
            let figures = pictures.iter().enumerate().map(|(at, picture)| self.figure(picture, &format!("scan-{index}-{at}")));
            cases.push(html! {
                h3 {
                    "Case " (case) span.scores { (heading(case)) }
                    @if self.case_pages { " " a.all href={ (CASE_PAGES) "/" (encoded(case)) ".html" } { "all slices" } }
                }
                div.slices { @for figure in figures { (figure) } }
            });
        }
        let body = html! {
            (self.legend())
            p.note { (self.how_slices_are_shown()) }
            @for case in cases { (case) }
            (enlarged())
        };
        section("slices", "Slices", body)
    }

    pub(super) fn legend(&self) -> Markup {
        let classes = self.classes();
        html! {
            ul.legend aria-label="Lines and colours of the pictures" {
                (lines_legend("prediction", "reference"))
                @for difference in Difference::ALL {
                    li { span.swatch style={ "background:" (hex(difference.colour())) } {} (difference.name()) }
                }
            }
            ul.legend aria-label="Colours of the organs" { @for class in &classes { li { (self.name_of(class)) } } }
        }
    }

    fn how_slices_are_shown(&self) -> String {
        let placed = self.pictures.iter().any(|picture| picture.is_placed());
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
