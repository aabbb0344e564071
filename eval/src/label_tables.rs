//! Names and colours of a mask's classes, as files for viewers of medical images.

use crate::palette::colour;
use sam_ladder_formats::outputs::{HASH_COMMENT, sealed};
use sam_ladder_schemas::eval::Palette;
use std::fmt::Write;

/// Extension of ITK-SNAP's file.
pub const ITK_SNAP_ENDING: &str = "label";
/// Extension of 3D Slicer's file.
pub const SLICER_ENDING: &str = "ctbl";

/// ITK-SNAP's label descriptions (`Segmentation ▸ Import Label Descriptions…`); `class_names` names the classes from 1.
/// The last line is a comment by which the file is recognised.
///
/// One line per label: index, red, green, blue from 0 to 255, opacity from 0 to 1, whether it is visible, whether it has a mesh,
/// name.
pub fn itk_snap(class_names: &[String]) -> String {
    let mut text = String::from(
        "################################################\n\
         # ITK-SnAP Label Description File\n\
         # IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n\
         ################################################\n",
    );
    for (class, name) in classes(class_names) {
        let [red, green, blue] = colour(Palette::Distinct, class);
        let shown = u8::from(class > 0);
        // The name is in quotes, and so must not contain any.
        let name = if class == 0 { "Clear Label".into() } else { name.replace('"', "'") };
        let _ = writeln!(text, "{class:5} {red:5} {green:4} {blue:4} {shown:8} {shown:2} {shown:2}    \"{name}\"");
    }
    sealed(&text, HASH_COMMENT)
}

/// 3D Slicer's colour table. Open it together with the mask, or choose it as the colour node when importing the mask as a segmentation.
/// The last line is a comment by which the file is recognised.
///
/// One line per label: index, name without spaces, red, green, blue and opacity from 0 to 255.
pub fn slicer(class_names: &[String]) -> String {
    let mut text = format!("# Color table file, written by sam-ladder\n# {} values\n", class_names.len() + 1);
    for (class, name) in classes(class_names) {
        let [red, green, blue] = colour(Palette::Distinct, class);
        let opacity = if class > 0 { 255 } else { 0 };
        let name: String = name.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
        let _ = writeln!(text, "{class} {name} {red} {green} {blue} {opacity}");
    }
    sealed(&text, HASH_COMMENT)
}

/// Every class with its name, the background first; a mask has at most 255 others.
fn classes(class_names: &[String]) -> impl Iterator<Item = (u8, &str)> {
    (0..=u8::MAX).zip(std::iter::once("background").chain(class_names.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_list_every_class_with_its_colour() {
        let names = ["spleen", "right kidney"].map(String::from);
        let [red, green, blue] = colour(Palette::Distinct, 2);
        let snap = itk_snap(&names);
        let lines: Vec<Vec<&str>> =
            snap.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..7], ["0", "0", "0", "0", "0", "0", "0"]);
        let expected = ["2", &red.to_string(), &green.to_string(), &blue.to_string(), "1", "1", "1", "\"right", "kidney\""];
        assert_eq!(lines[2], expected);
        let slicer = slicer(&names);
        assert!(slicer.contains("# 3 values\n0 background 0 0 0 0\n1 spleen "), "{slicer}");
        assert!(slicer.contains(&format!("\n2 right_kidney {red} {green} {blue} 255\n# ")), "{slicer}");
    }
}
