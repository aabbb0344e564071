//! The view of a case in three dimensions, by NiiVue, whose script the user passes: scan, prediction and reference as NIfTI within the page.

use super::ReportPage;
use crate::palette::colour;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use maud::{Markup, PreEscaped, html};
use serde_json::json;

/// What NiiVue's licence asks to be kept with it.
const LICENCE: &str = include_str!("niivue-licence.txt");

/// What a case's page needs for it.
#[derive(Debug)]
pub(crate) struct Viewer<'a> {
    /// `niivue.umd.js`.
    pub script: &'a str,
    /// Scan, prediction and reference, as `.nii.gz`.
    pub volumes: [Vec<u8>; 3],
}

impl Viewer<'_> {
    /// The section; its scripts come with it.
    pub(super) fn section(&self, page: &ReportPage) -> Markup {
        let ids = ["volume-scan", "volume-prediction", "volume-reference"];
        let boxes = [("Scan", "scan", false), ("Prediction", "prediction", true), ("Reference", "reference", false)];
        html! {
            details #in-3d {
                summary { "In three dimensions" }
                p.choices {
                    @for (volume, (label, value, checked)) in boxes.into_iter().enumerate() {
                        label { input type="checkbox" data-volume=(volume) value=(value) checked[checked]; " " (label) }
                    }
                    label { input type="radio" name="view" value="surface" checked; " Volume" }
                    label { input type="radio" name="view" value="slices"; " Three planes" }
                }
                div.volume { canvas data-colours=(self.colours(page)) aria-label="Organs in three dimensions" {} }
                p.note { "Drag to turn, roll the wheel to move the cutting plane or the slices. Drawn by NiiVue (© 2021 Niivue, BSD 2-Clause)." }
            }
            @for (id, volume) in ids.into_iter().zip(&self.volumes) {
                script id=(id) type="text/plain" { (PreEscaped(BASE64_STANDARD.encode(volume))) }
            }
            script id="niivue-licence" type="text/plain" { (PreEscaped(LICENCE)) }
            // A script ends where its end tag would stand, even within a text.
            script { (PreEscaped(self.script.replace("</script", "<\\/script"))) }
            script { (PreEscaped(include_str!("../viewer.js"))) }
        }
    }

    /// A table of NiiVue's for labels: colours and names by class.
    fn colours(&self, page: &ReportPage) -> String {
        let classes = 0..=page.class_names.len().min(254);
        let channel = |at: usize| classes.clone().map(|class| colour(page.palette, class as u8)[at]).collect::<Vec<u8>>();
        let names = std::iter::once("").chain(page.class_names.iter().map(String::as_str));
        json!({
            "R": channel(0),
            "G": channel(1),
            "B": channel(2),
            "A": classes.clone().map(|class| if class == 0 { 0 } else { 255 }).collect::<Vec<u8>>(),
            "I": classes.clone().collect::<Vec<usize>>(),
            "labels": names.take(classes.clone().count()).collect::<Vec<&str>>(),
        })
        .to_string()
    }
}
