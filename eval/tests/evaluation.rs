//! The driver, from masks to files: what is written, that it can be read, and what is refused.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sam_ladder_eval::{
    CASE_PAGES, CASES_TABLE, CaseMasks, CasePrediction, EVALUATION_JSON, Evaluation, EvaluationConfig, EvaluationFolder,
    GreySlice, MASKS, MaskView, OVERLAYS, Palette, Protocol, REPORT, RunCurves, RunFact, SUMMARY_TABLE, Scored, TABLE_MARKDOWN,
};
use sam_ladder_formats::nifti::read_image;
use sam_ladder_formats::rows::read_rows;
use sam_ladder_schemas::orientation::Turn;
use sam_ladder_schemas::tables::{CaseRow, SummaryRow};
use std::collections::BTreeSet;
use std::path::Path;

const SHAPE: [usize; 3] = [5, 12, 10];

fn config(out_dir: &Path) -> EvaluationConfig {
    EvaluationConfig {
        out_dir: out_dir.into(),
        class_names: ["liver", "spleen <left>"].map(String::from).to_vec(),
        regions: Vec::new(),
        scoring: Protocol::Standard.into(),
        scored: Scored::default(),
        method: "ladder & <script>alert(1)</script>".into(),
        run_info: vec![
            RunFact::new("Training", "seed", "1234"),
            RunFact::caution("Training", "note", "a \"quoted\" <b>name</b>"),
        ],
        greys: "window <-125 to 275> HU".into(),
        curves: None,
        extreme_slices: 2,
        ignored: None,
        palette: Palette::Distinct,
        save_nifti: true,
        case_pages: false,
        viewer: None,
        overwrite: false,
    }
}

/// A block of liver in both masks, one column apart, and a spleen that the prediction misses.
fn masks() -> (Vec<u8>, Vec<u8>) {
    let mut prediction = vec![0u8; SHAPE.iter().product()];
    let mut reference = prediction.clone();
    let index = |z: usize, y: usize, x: usize| (z * SHAPE[1] + y) * SHAPE[2] + x;
    for (z, y, x) in (1..4).flat_map(|z| (2..6).flat_map(move |y| (1..5).map(move |x| (z, y, x)))) {
        reference[index(z, y, x)] = 1;
        prediction[index(z, y, x + 1)] = 1;
    }
    reference[index(2, 9, 9)] = 2;
    (prediction, reference)
}

fn case<'a>(case: &'a str, prediction: &'a [u8], reference: &'a [u8]) -> CaseMasks<'a> {
    let mask = |voxels| MaskView { voxels, shape: SHAPE };
    CaseMasks { case, prediction: mask(prediction), reference: mask(reference), spacing_mm: Some([5.0, 0.5, 2.0]) }
}

fn grey(slice: usize) -> Result<GreySlice, Box<dyn std::error::Error + Send + Sync>> {
    Ok(GreySlice { size: [8, 8], values: vec![slice as f32 / SHAPE[0] as f32; 64] })
}

fn evaluate(config: EvaluationConfig) -> sam_ladder_eval::EvaluationOutputs {
    let (prediction, reference) = masks();
    let mut evaluation = Evaluation::new(config).unwrap();
    for name in ["0001", "0002"] {
        let rows = evaluation
            .add_case(&CasePrediction {
                masks: case(name, &prediction, &reference),
                images: Some(&grey),
                geometry: None,
                turn: Turn::NONE,
                orientation: None,
            })
            .unwrap();
        assert_eq!(rows.len(), 2);
    }
    evaluation.finish().unwrap()
}

fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn set(expected: &[&str]) -> BTreeSet<String> {
    expected.iter().map(|name| name.to_string()).collect()
}

#[test]
fn an_evaluation_writes_every_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/folder");
    let outputs = evaluate(config(&out));
    assert_eq!(names(&out), set(&[CASES_TABLE, SUMMARY_TABLE, TABLE_MARKDOWN, EVALUATION_JSON, REPORT, OVERLAYS, MASKS]));
    assert_eq!(names(&out.join(MASKS)), set(&["0001.nii.gz", "0002.nii.gz"]));
    // Slice 2 misses the spleen and is the worst, and the fullest; 1 and 3 are equal.
    let pictures = [
        "0001_slice001.png",
        "0001_slice002.png",
        "0001_slice003.png",
        "0002_slice001.png",
        "0002_slice002.png",
        "0002_slice003.png",
    ];
    assert_eq!(names(&out.join(OVERLAYS)), set(&pictures));
    assert_eq!(std::fs::read_to_string(out.join(TABLE_MARKDOWN)).unwrap(), outputs.table);

    // 3 of 4 columns overlap, 2 mm apart; the spleen is missed.
    let liver = &outputs.summary[0];
    assert_eq!((liver.organ.as_str(), liver.dice, liver.hd95, liver.missed), ("liver", Some(0.75), Some(2.0), 0));
    let spleen = &outputs.summary[1];
    assert_eq!((spleen.dice, spleen.hd95, spleen.hd95_cases, spleen.missed), (Some(0.0), None, 0, 2));
    assert_eq!(outputs.summary[2].dice, Some(0.375));
    assert_eq!((liver.hd95_mm, liver.hd95_voxels, liver.hd95_larger_mm), (Some(2.0), Some(1.0), Some(2.0)));
    // One column apart is 2 mm, which is the tolerance.
    assert_eq!((liver.surface_dice, spleen.surface_dice), (Some(1.0), Some(0.0)));
    assert_eq!((liver.volume_difference_ml, spleen.volume_difference_ml), (Some(0.0), Some(-0.005)));
    let folder = EvaluationFolder::open(&out).unwrap();
    assert_eq!((&folder.cases, &folder.info.class_names), (&outputs.cases, &config(&out).class_names));
}

#[test]
fn tables_read_back_as_written() {
    let dir = tempfile::tempdir().unwrap();
    let outputs = evaluate(config(dir.path()));
    let cases: Vec<CaseRow> = read_rows(&dir.path().join(CASES_TABLE)).unwrap();
    assert_eq!(cases, outputs.cases);
    let summary: Vec<SummaryRow> = read_rows(&dir.path().join(SUMMARY_TABLE)).unwrap();
    assert_eq!(summary, outputs.summary);
    assert_eq!((summary[2].organ.as_str(), summary[2].dice), ("mean", Some(0.375)));
}

#[test]
fn the_report_is_whole_escaped_and_refers_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = evaluate(config(dir.path()));
    let page = std::fs::read_to_string(out.report).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert_balanced(&page);

    // What names and run information hold is text, never markup; the page has one script, its own.
    assert!(page.matches("<script").count() == 1 && page.contains("<script>// Enlarges a slice's picture"));
    assert!(!page.contains("<b>") && !page.contains("<left>") && !page.contains("<-125"));
    assert!(page.contains("ladder &amp; &lt;script&gt;") && page.contains("spleen &lt;left&gt;"));
    assert!(
        page.contains("<dd class=\"caution\">a &quot;quoted&quot; &lt;b&gt;name&lt;/b&gt;</dd>")
            && page.contains("<dd>1234</dd>")
    );

    // The page refers to nothing outside it.
    for outside in ["http:", "https:", "url(", "@import", "<link", "<iframe", "src="] {
        assert!(!page.contains(outside), "the report contains {outside}");
    }
    let references: Vec<&str> = page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    // The PNG signature in base64. Three slices of two cases: the scan, and once more next to it.
    let is_png = |reference: &&&str| reference.starts_with("data:image/png;base64,iVBORw0KGgo");
    assert_eq!((references.len(), references.iter().filter(is_png).count()), (12, 6));
    for own in references.iter().filter(|reference| !is_png(reference)) {
        assert!(page.contains(&format!("<image id=\"{}\"", &own[1..])), "{own}");
    }
}

/// The worst slice is first. In it liver and spleen are outlined in the reference, only the liver in the prediction; the liver is missed on one
/// side and added on the other, the spleen is missed.
#[test]
fn pictures_show_outlines_the_worst_first() {
    let dir = tempfile::tempdir().unwrap();
    let page = std::fs::read_to_string(evaluate(config(dir.path())).report).unwrap();
    let first = page.split("<figure class=\"slice\">").nth(1).unwrap().split("</figure>").next().unwrap();
    assert!(first.contains("worst") && first.contains("Case 0001, slice 2: DSC in the slice 37.50 percent"), "{first}");
    assert!(
        first.contains("<path class=\"prediction\" d=\"M2 2h4v4h-4z\" stroke=\"#e69f00\"><title>liver, prediction</title>"),
        "{first}"
    );
    for (outline, name) in [("M1 2h4v4h-4z", "liver, reference"), ("M9 9h1v1h-1z", "spleen &lt;left&gt;, reference")] {
        assert!(
            first.contains(&format!("<path class=\"reference\" d=\"{outline}\""))
                && first.contains(&format!("<title>{name}</title>")),
            "{name}"
        );
    }
    assert!(first.contains("d=\"M1 2h1v4h-1zM9 9h1v1h-1z\"") && first.contains("d=\"M5 2h1v4h-1z\""), "{first}");
    // Pixels of 0.5 mm by 2 mm; nothing says how the scan lies.
    assert!(first.contains("aspect-ratio:20.00/6.00") && !first.contains("class=\"side"), "{first}");
    assert!(page.contains("slices are shown as they lie in the array"));
}

/// Every slice of a case is there, the page begins where the masks differ most, and the report leads to it.
#[test]
fn a_cases_page_has_all_its_slices() {
    let dir = tempfile::tempdir().unwrap();
    let out = evaluate(EvaluationConfig { case_pages: true, ..config(dir.path()) });
    assert_eq!(names(&dir.path().join(CASE_PAGES)), set(&["0001.html", "0002.html"]));
    let page = std::fs::read_to_string(dir.path().join(CASE_PAGES).join("0002.html")).unwrap();
    assert_balanced(&page);
    assert_eq!((page.matches("<template").count(), page.matches("<image ").count()), (SHAPE[0], SHAPE[0]));
    assert!(page.contains("max=\"4\" step=\"1\" value=\"2\""), "slice 2 misses the spleen, too");
    assert!(
        page.contains("data-text=\"Case 0002, slice 0: DSC in the slice – percent\"")
            && page.contains("spleen &lt;left&gt;, reference")
    );
    for outside in ["http:", "https:", "url(", "src="] {
        assert!(!page.contains(outside), "{outside}");
    }
    let report = std::fs::read_to_string(out.report).unwrap();
    assert!(report.contains("href=\"cases/0001.html\"") && report.contains("href=\"cases/0002.html\""));
    // With a viewer it has the volumes too, and the viewer's script and licence; the pages of other cases and the report do not.
    let script = Some("var niivue = '</script>'".to_string());
    evaluate(EvaluationConfig { overwrite: true, case_pages: true, viewer: script, ..config(dir.path()) });
    let page = std::fs::read_to_string(dir.path().join(CASE_PAGES).join("0002.html")).unwrap();
    assert_balanced(&page.replace("<\\/script>", ""));
    assert!(page.contains("var niivue = '<\\/script>'") && page.contains("Redistribution and use"), "{page}");
    for (id, expected) in [("volume-prediction", masks().0), ("volume-reference", masks().1)] {
        let text = page.split_once(&format!("<script id=\"{id}\" type=\"text/plain\">")).unwrap().1.split_once('<').unwrap().0;
        let file = dir.path().with_extension("nii.gz");
        std::fs::write(&file, BASE64_STANDARD.decode(text).unwrap()).unwrap();
        let volume = read_image(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!((volume.geometry.shape, volume.geometry.spacing_mm()), (SHAPE, [5.0, 0.5, 2.0]));
        assert_eq!(volume.voxels, expected.iter().map(|&class| f32::from(class)).collect::<Vec<_>>());
    }
    // Without the option it is gone.
    evaluate(EvaluationConfig { overwrite: true, ..config(dir.path()) });
    assert!(!dir.path().join(CASE_PAGES).exists());
}

/// Of a scan whose columns run to the patient's right side: they are reversed, and the sides are marked.
#[test]
fn pictures_follow_the_radiological_convention() {
    let dir = tempfile::tempdir().unwrap();
    let mut evaluation = Evaluation::new(config(dir.path())).unwrap();
    let (prediction, reference) = masks();
    let masks = case("0001", &prediction, &reference);
    let orientation = Some("RPS".parse().unwrap());
    evaluation.add_case(&CasePrediction { masks, images: Some(&grey), geometry: None, turn: Turn::NONE, orientation }).unwrap();
    let page = std::fs::read_to_string(evaluation.finish().unwrap().report).unwrap();
    // Columns 1 to 4 of 10 become 5 to 8.
    assert!(
        page.contains("<path class=\"reference\" d=\"M5 2h4v4h-4z\"") && page.contains("patient's right side is on the left")
    );
    let sides = "<span class=\"side left\">R</span><span class=\"side right\">L</span><span class=\"side top\">A</span>\
                 <span class=\"side bottom\">P</span>";
    assert_eq!(page.matches(sides).count(), 6, "two panels of three slices");
}

#[test]
fn the_report_shows_the_runs_course() {
    let dir = tempfile::tempdir().unwrap();
    let curve = |scale: f64| (0..50).map(|step| [f64::from(step), scale / f64::from(step + 1)]).collect::<Vec<_>>();
    let rung_gates = vec![("block 2".to_string(), curve(0.25)), ("block 11".to_string(), curve(0.75))];
    let curves = RunCurves { loss: curve(1.0), gate: curve(0.5), rung_gates, ..RunCurves::default() };
    let out = evaluate(EvaluationConfig { curves: Some(curves), palette: Palette::ItkSnap, ..config(dir.path()) });
    let page = std::fs::read_to_string(out.report).unwrap();
    assert_balanced(&page);
    // Loss, gate, and the gates of two rungs in one; no chart of values that the run did not record.
    assert_eq!((page.matches("<svg class=\"plot line-chart").count(), page.matches("class=\"mark-line\"").count()), (3, 4));
    assert!(page.contains("block 2") && page.contains("block 11"));
    assert!(page.contains("background:#ff0000"));
    // Four box plots of two organs; two cases each, of which the spleen has no HD95.
    assert_eq!(page.matches("class=\"mark-box\"").count(), 7);
    // Two maps of two cases and two organs; the spleen has no HD95.
    assert_eq!((page.matches("class=\"mark-cell\"").count(), page.matches("class=\"mark-cell empty\"").count()), (6, 2));
    let plain = tempfile::tempdir().unwrap();
    let page = std::fs::read_to_string(evaluate(config(plain.path())).report).unwrap();
    assert!(!page.contains("line-chart") && !page.contains("id=\"training\""));
}

/// Every tag that is opened is closed, in order.
fn assert_balanced(page: &str) {
    let mut open: Vec<&str> = Vec::new();
    for tag in page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap();
        match tag {
            _ if ["!DOCTYPE", "meta", "img", "input"].contains(&name) || tag.ends_with('/') => {}
            _ if tag.starts_with('/') => assert_eq!(open.pop(), Some(name), "</{name}> closes another tag"),
            _ => open.push(name),
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[test]
fn a_finished_evaluation_is_replaced_only_on_request() {
    let dir = tempfile::tempdir().unwrap();
    evaluate(config(dir.path()));
    let error = Evaluation::new(config(dir.path())).unwrap_err().to_string();
    assert!(error.contains("holds an evaluation already"), "{error}");

    let again = EvaluationConfig { overwrite: true, save_nifti: false, extreme_slices: 0, ..config(dir.path()) };
    let (prediction, reference) = masks();
    let mut evaluation = Evaluation::new(again).unwrap();
    // Until the new evaluation is finished, the old one stays.
    assert!(dir.path().join(CASES_TABLE).exists() && dir.path().join(MASKS).exists());
    evaluation
        .add_case(&CasePrediction {
            masks: case("0003", &prediction, &reference),
            images: None,
            geometry: None,
            turn: Turn::NONE,
            orientation: None,
        })
        .unwrap();
    evaluation.finish().unwrap();
    assert_eq!(names(dir.path()), set(&[CASES_TABLE, SUMMARY_TABLE, TABLE_MARKDOWN, EVALUATION_JSON, REPORT, OVERLAYS]));
    assert_eq!(names(&dir.path().join(OVERLAYS)), set(&["0003_slice002.png"]));
}

#[test]
fn a_bad_case_is_named_and_the_others_are_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let (prediction, reference) = masks();
    let mut evaluation = Evaluation::new(config(dir.path())).unwrap();
    let mut refused = |masks: CaseMasks| {
        let prediction = CasePrediction { masks, images: Some(&grey), geometry: None, turn: Turn::NONE, orientation: None };
        evaluation.add_case(&prediction).unwrap_err().to_string()
    };
    let mut different = case("0007", &prediction, &reference);
    different.prediction.shape = [5, 10, 12];
    assert!(refused(different).contains("case 0007: the prediction has shape [5, 10, 12]"));
    assert!(refused(case("../0007", &prediction, &reference)).contains("cannot name a file"));

    let no_picture = |slice: usize| Err(format!("chunk {slice} is damaged").into());
    let error = evaluation
        .add_case(&CasePrediction {
            masks: case("0008", &prediction, &reference),
            images: Some(&no_picture),
            geometry: None,
            turn: Turn::NONE,
            orientation: None,
        })
        .unwrap_err()
        .to_string();
    assert!(error.contains("case 0008, slice 1") && error.contains("chunk 1 is damaged"), "{error}");
    let short = |_: usize| Ok(GreySlice { size: [8, 8], values: vec![0.0; 3] });
    assert!(
        evaluation
            .add_case(&CasePrediction {
                masks: case("0008", &prediction, &reference),
                images: Some(&short),
                geometry: None,
                turn: Turn::NONE,
                orientation: None,
            })
            .is_err()
    );

    let good = CasePrediction {
        masks: case("0009", &prediction, &reference),
        images: Some(&grey),
        geometry: None,
        turn: Turn::NONE,
        orientation: None,
    };
    evaluation.add_case(&good).unwrap();
    assert!(evaluation.add_case(&good).unwrap_err().to_string().contains("case 0009 was evaluated already"));
    let outputs = evaluation.finish().unwrap();
    assert!(outputs.cases.iter().all(|row| row.case == "0009"));
    assert_eq!(names(&dir.path().join(MASKS)), set(&["0009.nii.gz"]));
}

#[test]
fn an_evaluation_without_cases_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let error = Evaluation::new(config(dir.path())).unwrap().finish().unwrap_err().to_string();
    assert!(error.contains("no case was evaluated"), "{error}");
    assert!(names(dir.path()).is_empty());
}
