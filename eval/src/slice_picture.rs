//! A slice's picture on a page: the scan with both masks' outlines, and next to it where they differ, sharp at any size.

use crate::display::{Difference, ShownSlice};
use crate::outline::outlines;
use crate::overlay::{encode_grey, reference_colour};
use crate::page::png_url;
use crate::palette::{colour, hex};
use crate::picture_choice::ChosenSlice;
use crate::table_text::percent;
use maud::{Markup, html};
use sam_ladder_schemas::eval::Palette;

/// A slice's picture: the scan, and lines over it.
#[derive(Debug, Clone)]
pub(crate) struct SlicePicture {
    pub case: String,
    pub chosen: ChosenSlice,
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

    /// The picture with other differences: numbers of [`Difference`], `[h, w]`.
    pub fn with_differences(self, differences: &[u8]) -> Self {
        SlicePicture { differences: outlines(differences, self.size), ..self }
    }

    /// Length of what is drawn of its differences: the more of them, the longer.
    pub fn differing(&self) -> usize {
        self.differences.iter().map(|(_, path)| path.len()).sum()
    }

    /// What it is.
    pub fn text(&self) -> String {
        let ChosenSlice { slice, dice, .. } = self.chosen;
        format!("Case {}, slice {slice}: DSC in the slice {} percent", self.case, percent(dice))
    }

    /// Both panels; the second uses the first one's scan, so that the page holds it once.
    pub fn panels(&self, look: OrganLook<'_>, id: &str) -> Markup {
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
            let organ = look.class_names.get(usize::from(class) - 1).map_or("", String::as_str);
            html! { path class=(kind) d=(path) stroke=(hex(rgb)) { title { (organ) ", " (of) } } }
        };
        let outlined = html! {
            image id=(id) href=(png_url(&self.grey)) width=(width) height=(height) preserveAspectRatio="none" {}
            @for (class, path) in &self.prediction { (line(*class, path, "prediction", colour(look.palette, *class), "prediction")) }
            @for (class, path) in &self.reference { (line(*class, path, "reference", reference_colour(look.palette, *class), "reference")) }
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

    /// Whether it is known how it lies in the body.
    pub fn is_placed(&self) -> bool {
        self.sides.is_some()
    }
}

/// What organs are called and how they are drawn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OrganLook<'a> {
    /// Names of the classes from 1.
    pub class_names: &'a [String],
    pub palette: Palette,
}

/// Items of a legend: what the outlines are of.
pub(crate) fn lines_legend(prediction: &str, reference: &str) -> Markup {
    html! {
        li { svg.sample viewBox="0 0 30 8" aria-hidden="true" { path.prediction d="M0 4h30" {} } (prediction) }
        li { svg.sample viewBox="0 0 30 8" aria-hidden="true" { path.reference d="M0 4h30" {} } (reference) }
    }
}

/// The dialog in which `report.js` shows a picture enlarged.
pub(crate) fn enlarged() -> Markup {
    html! {
        dialog #enlarged aria-label="A slice, enlarged" {
            div.panels {}
            p.bar {
                button.previous type="button" { "← previous" }
                span.what {}
                button.next type="button" { "next →" }
                button.close type="button" { "close" }
            }
        }
    }
}
