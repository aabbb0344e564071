//! Our pages in headless Chromium: they have no errors, and every mark is drawn. `make test-pages` runs these tests and keeps the pictures in
//! `target/pages/`.

mod browser;

use browser::{Browser, Page, View};
use sam_ladder_eval::plot::{self, Axis, BoxPlot, BoxSeries, HeatMap, Line, LineChart, Paint, Size};
use sam_ladder_eval::{
    CaseMasks, CasePrediction, Evaluation, EvaluationConfig, GreySlice, MaskView, Palette, Protocol, RunCurves, RunFact, Scored,
    Scoring,
};
use sam_ladder_schemas::classes::SYNAPSE_ORGANS;
use sam_ladder_schemas::orientation::Turn;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Keeps a picture, and checks that it is a PNG file.
fn keep(png: &[u8], name: &str) {
    let decoder = png::Decoder::new(std::io::Cursor::new(png)).read_info().expect("a PNG");
    assert!(decoder.info().width > 100 && decoder.info().height > 100, "{name}: {:?}", decoder.info().size());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pages");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name), png).unwrap();
}

/// Writes a page around a body, opens it in light and in dark, and keeps pictures of both.
fn look(name: &str, body: &str, check: impl Fn(&mut Page)) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    let style = "body { margin: 16px; background: #fff } @media (prefers-color-scheme: dark) { body { background: #12161c } } div { width: 640px }";
    let page = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title><style>{style}{}</style></head><body>{body}</body></html>",
        plot::STYLE
    );
    std::fs::write(&path, page).unwrap();
    let mut browser = Browser::start();
    for dark in [false, true] {
        let mut page = browser.open(&path, View { width: 720, dark });
        check(&mut page);
        keep(&page.screenshot(), &format!("{name}-{}.png", if dark { "dark" } else { "light" }));
    }
}

#[test]
#[ignore = "needs Chromium: make test-pages"]
fn every_chart_draws_its_marks_in_light_and_dark() {
    let size = Size { width: 640.0, height: 320.0 };
    let axis = |label| Axis { label, ..Axis::default() };
    let curve = |offset: f64| -> Vec<[f64; 2]> {
        (0..60).map(|step| [f64::from(step), (-f64::from(step) / 15.0).exp() + offset]).collect()
    };
    let (loss, dice) = (curve(0.1), curve(0.3));
    let lines = [
        Line { name: "cross-entropy", paint: Paint::Series(0), points: &loss, dots: false },
        Line { name: "Dice loss", paint: Paint::Series(1), points: &dice, dots: true },
    ];
    let line_chart = plot::line_chart(&LineChart { size, label: "loss", x: axis("step"), y: axis("loss"), lines: &lines });

    let categories =
        ["Aorta", "Gallbladder", "Kidney(L)", "Kidney(R)", "Liver", "Pancreas", "Spleen", "Stomach"].map(String::from);
    let values: Vec<Vec<f64>> =
        (0..8).map(|organ| (0..12).map(|case| 95.0 - f64::from(organ * 3) - f64::from(case * case) / 3.0).collect()).collect();
    let series: Vec<BoxSeries> = (["full", "CNN only"].iter().zip([&[Paint::Series(0)], &[Paint::Series(1)]]))
        .map(|(name, paints)| BoxSeries { name, paints, values: &values })
        .collect();
    let box_plot =
        plot::box_plot(&BoxPlot { size, label: "Dice", y: axis("Dice, percent"), categories: &categories, series: &series });

    let cells: Vec<Vec<Option<f64>>> =
        (0..4).map(|row| (0..6).map(|column| (row + column != 4).then(|| f64::from(row * column) / 15.0)).collect()).collect();
    let heat_map = plot::heat_map(&HeatMap {
        size,
        label: "Dice by learning rate and λ",
        x_label: "learning rate",
        y_label: "λ",
        columns: &["1e-5", "3e-5", "1e-4", "3e-4", "1e-3", "3e-3"].map(String::from),
        rows: &["0.2", "0.5", "0.8", "1.0"].map(String::from),
        values: &cells,
        limits: None,
        decimals: 2,
    });

    let body = [line_chart, box_plot, heat_map].map(|svg| format!("<div>{}</div>", svg.into_string())).concat();
    look("charts", &body, |page| {
        assert_eq!(page.count("svg.plot"), 3);
        assert_eq!((page.count(".line-chart .mark-line"), page.count(".line-chart .mark-point")), (2, 60));
        assert_eq!((page.count(".box-plot .mark-box"), page.count(".box-plot .mark-point")), (16, 192));
        assert_eq!(page.count(".heat-map .mark-cell"), 4 * 6 - 4);
        assert!(page.texts(".heat-map .tick").contains(&"3e-4".to_string()));
        // Marks lie within the chart.
        let outside = "[...document.querySelectorAll('[class^=mark]')].filter(m => { const a = m.getBoundingClientRect(), \
                       b = m.ownerSVGElement.getBoundingClientRect(); return a.x < b.x || a.y < b.y || a.right > b.right || a.bottom > b.bottom }).length";
        assert_eq!(page.evaluate(outside), 0);
    });
}

#[test]
#[ignore = "needs Chromium: make test-pages"]
fn the_browser_finds_what_is_wrong_in_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let mut browser = Browser::start();
    for (name, body) in [
        ("exception", "<script>nothing.there()</script>"),
        ("console", "<script>console.error('no')</script>"),
        ("request", "<img src=\"file:///nothing-there.png\">"),
        ("wide", "<div style=\"width: 3000px\">wide</div>"),
    ] {
        let path = folder.path().join(format!("{name}.html"));
        std::fs::write(&path, format!("<!DOCTYPE html><title>{name}</title>{body}")).unwrap();
        let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            browser.open(&path, View::default());
        }));
        assert!(opened.is_err(), "{name} was not noticed");
    }
    // A page without errors passes.
    let path = folder.path().join("sound.html");
    std::fs::write(&path, "<!DOCTYPE html><title>sound</title><p>one</p><p>two</p>").unwrap();
    assert_eq!(browser.open(&path, View::default()).texts("p"), ["one", "two"]);
}

/// Shape of the scans below.
const SCAN: [usize; 3] = [12, 64, 64];

/// Eight balls in a ring, moved by `shift` pixels; the classes of `without` are missing.
fn balls(shift: usize, without: &[u8]) -> Vec<u8> {
    let mut voxels = vec![0u8; SCAN.iter().product()];
    for (index, voxel) in voxels.iter_mut().enumerate() {
        let (z, y, x) = (index / (64 * 64), index / 64 % 64, (index + shift) % 64);
        for class in 1..=8u8 {
            let angle = f64::from(class) * std::f64::consts::FRAC_PI_4;
            let centre = [6.0, 32.0 + 20.0 * angle.sin(), 32.0 + 20.0 * angle.cos()];
            let far = (z as f64 - centre[0]).powi(2) + (y as f64 - centre[1]).powi(2) + (x as f64 - centre[2]).powi(2);
            if far < 25.0 && !without.contains(&class) {
                *voxel = class;
            }
        }
    }
    voxels
}

/// The widths of a telephone, a small window, a screen and a large one.
const WIDTHS: [u32; 4] = [390, 700, 1280, 1920];

fn curves() -> RunCurves {
    let curve =
        |scale: f64| (0..300).map(|step| [f64::from(step), scale * (0.1 + 1.0 / f64::from(step + 3))]).collect::<Vec<_>>();
    RunCurves {
        loss: curve(2.0),
        ce: curve(1.0),
        dice: curve(2.5),
        lr: curve(1e-3),
        gate: curve(1.5),
        rung_gates: [2, 5, 8, 11].map(|block| (format!("block {block}"), curve(1.0 / f64::from(block)))).to_vec(),
        epoch_loss: curve(2.0).into_iter().step_by(30).collect(),
        val_dice: curve(1.0).into_iter().step_by(30).map(|[step, value]| [step, 0.9 - value]).collect(),
    }
}

/// The report of some cases, each a pixel farther from the reference than the one before; the third misses the gallbladder.
fn report(folder: &Path, class_names: Vec<String>, cases: usize, viewer: Option<String>) -> PathBuf {
    let mut evaluation = Evaluation::new(EvaluationConfig {
        out_dir: folder.to_path_buf(),
        class_names,
        regions: Vec::new(),
        scoring: Scoring::of(Protocol::Standard),
        scored: Scored::default(),
        method: "SAM-Ladder".into(),
        run_info: vec![
            RunFact::new("Store", "place", "a-store-with-a-long-name-".repeat(12)),
            RunFact::new("Model", "SHA-256", "0123456789abcdef".repeat(4)),
            RunFact::caution("SAM's image encoder", "SAM's weights", "random (seed 1)"),
        ],
        greys: "window -125 to 275 HU".into(),
        curves: Some(curves()),
        extreme_slices: 2,
        ignored: None,
        palette: Palette::Distinct,
        save_nifti: false,
        case_pages: true,
        viewer,
        overwrite: false,
    })
    .unwrap();
    let grey = |slice: usize| -> Result<GreySlice, Box<dyn std::error::Error + Send + Sync>> {
        Ok(GreySlice { size: [64, 64], values: (0..64 * 64).map(|pixel| ((pixel / 64 + slice) % 64) as f32 / 128.0).collect() })
    };
    for case in 0..cases {
        let (prediction, reference) = (balls(case, if case == 2 { &[4] } else { &[] }), balls(0, &[]));
        let mask = |voxels| MaskView { voxels, shape: SCAN };
        let name = format!("{case:04}");
        let masks = CaseMasks {
            case: &name,
            prediction: mask(&prediction),
            reference: mask(&reference),
            spacing_mm: Some([3.0, 0.8, 0.8]),
        };
        let orientation = Some("LPS".parse().unwrap());
        evaluation
            .add_case(&CasePrediction { masks, images: Some(&grey), geometry: None, turn: Turn::NONE, orientation })
            .unwrap();
    }
    evaluation.finish().unwrap().report
}

#[test]
#[ignore = "needs Chromium: make test-pages"]
fn the_report_shows_every_case_organ_and_curve_at_every_width() {
    let folder = tempfile::tempdir().unwrap();
    let cases = 4;
    let report = report(folder.path(), SYNAPSE_ORGANS.map(String::from).to_vec(), cases, None);
    let mut browser = Browser::start();
    for (width, dark) in WIDTHS.into_iter().flat_map(|width| [(width, false), (width, true)]) {
        let mut page = browser.open(&report, View { width, dark });
        page.assert_fits();
        assert_eq!(page.count("svg.box-plot"), 4);
        // HD95 has no value in the case that misses the gallbladder, the other metrics have.
        assert_eq!((page.count(".mark-box"), page.count(".box-plot .mark-point")), (4 * 8, 4 * 8 * cases - 1));
        assert_eq!((page.count("svg.line-chart"), page.count(".mark-line")), (5, 7 + 4));
        // Two maps, with a mean in front; the worst case is on top.
        assert_eq!((page.count("td.mark-cell"), page.count("td.mean"), page.count("td.empty")), (2 * 8 * cases, 2 * cases, 1));
        assert_eq!(page.texts(".heat tbody th")[..cases], ["0003", "0002", "0001", "0000"]);
        // Two tables with organs as rows, the mean first, under the organs' own names.
        assert_eq!(page.count(".organs tbody tr"), 2 * 9);
        assert_eq!(page.texts(".organs tbody th")[..4], ["mean", "aorta", "gallbladder", "left kidney"]);
        assert_eq!(page.evaluate("document.body.textContent.includes('Kidney(L)')"), false);
        // Of fewer than six cases there are no intervals.
        assert_eq!(page.evaluate("/interval [0-9]/.test(document.body.textContent)"), false);
        assert_eq!(page.texts("dd.caution"), ["random (seed 1)"]);
        assert!(page.texts(".tiles dd").contains(&"1".to_string()), "one organ is missed");
        assert_eq!(page.style("body", "background-color"), if dark { "rgb(18, 22, 28)" } else { "rgb(255, 255, 255)" });
        look_at_slices(&mut page, cases);
        assert_eq!(page.count("#slices ~ h3 a.all[href^='cases/']"), cases);
        keep(&page.screenshot(), &format!("report-{width}-{}.png", if dark { "dark" } else { "light" }));
    }
}

/// Pixels of the view in three dimensions that are not its black ground.
fn drawn_pixels(page: &mut Page) -> usize {
    let place = page.evaluate(
        "(r => [r.left + scrollX, r.top + scrollY, r.width, r.height].map(Math.round))(document.querySelector('#in-3d canvas').getBoundingClientRect())",
    );
    let [left, top, width, height] = [0, 1, 2, 3].map(|at| place[at].as_u64().unwrap() as usize);
    let screenshot = page.screenshot();
    let mut reader = png::Decoder::new(std::io::Cursor::new(&screenshot)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let (bytes, line) = (info.color_type.samples(), info.line_size);
    let at = |y: usize, x: usize| pixels[y * line + x * bytes..][..3].iter().any(|&channel| channel > 40);
    (top..top + height).flat_map(|y| (left..left + width).map(move |x| (y, x))).filter(|&(y, x)| at(y, x)).count()
}

#[test]
#[ignore = "needs Chromium and NiiVue: make test-pages"]
fn a_cases_organs_are_drawn_in_three_dimensions() {
    let folder = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/viewer/niivue.umd.js");
    let script = std::fs::read_to_string(&script).unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    report(folder.path(), SYNAPSE_ORGANS.map(String::from).to_vec(), 1, Some(script));
    let mut browser = Browser::start();
    for (width, dark) in [(1280, true), (700, false)] {
        let mut page = browser.open(&folder.path().join("cases/0000.html"), View { width, dark });
        page.evaluate("document.getElementById('in-3d').open = true");
        let shown = |page: &mut Page, expected: &str| {
            for _ in 0..600 {
                if page.evaluate("document.getElementById('in-3d').dataset.shown") == expected {
                    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 200)))");
                    return drawn_pixels(page);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            panic!("{expected} is not shown: {:?}", page.texts("#in-3d .note"));
        };
        let prediction = shown(&mut page, "prediction surface");
        page.assert_fits();
        keep(&page.screenshot(), &format!("case-3d-{width}-{}.png", if dark { "dark" } else { "light" }));
        let click = |page: &mut Page, value: &str| {
            page.evaluate(&format!("document.querySelector('#in-3d input[value={value}]').click()"))
        };
        click(&mut page, "prediction");
        let nothing = shown(&mut page, "surface");
        assert!(prediction > nothing + 2000, "{prediction} {nothing}");
        click(&mut page, "scan");
        click(&mut page, "slices");
        let planes = shown(&mut page, "scan slices");
        assert!(planes > nothing + 2000, "{planes} {nothing}");
        page.assert_sound();
    }
}

#[test]
#[ignore = "needs Chromium: make test-pages"]
fn the_slider_of_a_cases_page_moves_through_its_slices() {
    let folder = tempfile::tempdir().unwrap();
    report(folder.path(), SYNAPSE_ORGANS.map(String::from).to_vec(), 2, None);
    let path = folder.path().join("cases/0001.html");
    let mut browser = Browser::start();
    for (width, dark) in WIDTHS.into_iter().zip([false, true, true, false]) {
        let mut page = browser.open(&path, View { width, dark });
        page.assert_fits();
        assert_eq!((page.count("#slice .panel"), page.count("#slice image"), page.count("template")), (2, 1, SCAN[0]));
        assert!(page.count("#slice path.reference") == 8 && page.count("#slice path.prediction") == 8, "the balls' middle");
        keep(&page.screenshot(), &format!("case-{width}-{}.png", if dark { "dark" } else { "light" }));
        let move_to = |page: &mut Page, slice: usize| {
            page.evaluate(&format!(
                "(s => {{ s.value = {slice}; s.dispatchEvent(new Event('input')) }})(document.getElementById('position'))"
            ));
            page.texts("output").remove(0)
        };
        assert_eq!(move_to(&mut page, 0), "Case 0001, slice 0: DSC in the slice – percent (1 of 12)");
        assert_eq!(page.count("#slice path"), 0);
        assert!(move_to(&mut page, 6).starts_with("Case 0001, slice 6: DSC in the slice "));
        assert_eq!(page.count("#slice path.reference"), 8);
        page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft' }))");
        assert!(page.texts("output")[0].starts_with("Case 0001, slice 5: "));
        page.assert_sound();
    }
}

#[test]
#[ignore = "needs Chromium: make test-pages"]
fn the_page_of_a_folder_of_scans_fits_and_has_every_case() {
    let folder = tempfile::tempdir().unwrap();
    let (scans, path) = (folder.path().join("scans"), folder.path().join("scans.html"));
    let run = |words: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_sam-ladder")).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["phantom", "--out", scans.to_str().unwrap(), "--cases", "6", "--size", "48", "--depth", "5"]);
    run(&["inspect", "--scans", scans.to_str().unwrap(), "--voxels", "--no-time", "--out", path.to_str().unwrap()]);
    let mut browser = Browser::start();
    for (width, dark) in WIDTHS.into_iter().flat_map(|width| [(width, false), (width, true)]) {
        let mut page = browser.open(&path, View { width, dark });
        page.assert_fits();
        page.assert_sound();
        assert_eq!((page.count("#cases ~ table tbody tr"), page.count(".strips .mark-box")), (6, 6));
        assert_eq!(page.count("#organs ~ table tbody tr"), SYNAPSE_ORGANS.len());
        assert_eq!(page.count("#costs ~ table tbody tr"), 4);
        keep(&page.screenshot(), &format!("inspect-{width}-{}.png", if dark { "dark" } else { "light" }));
    }
}

/// Every picture is drawn, a click enlarges one, and the arrow keys step through them.
fn look_at_slices(page: &mut Page, cases: usize) {
    let pictures = page.count("figure.slice");
    assert!((3 * cases..=5 * cases).contains(&pictures), "{pictures}");
    assert_eq!(
        (page.count("figure.slice image"), page.count("figure.slice use"), page.count("figure.slice .panel")),
        (pictures, pictures, 2 * pictures)
    );
    assert!(page.count("path.reference") > 8 * cases && page.count("path.difference") > cases);
    let loaded = "Promise.all([...document.querySelectorAll('figure.slice image')].map(i => { const p = new Image(); \
                  p.src = i.href.baseVal; return p.decode().then(() => p.naturalWidth) })).then(w => w.every(w => w === 64))";
    assert_eq!(page.evaluate(loaded), true);
    assert_eq!(page.texts(".tag").iter().filter(|tag| *tag == "worst").count(), 2 * cases);
    // Both panels are as wide as high, and each has the sides of the body.
    let square = "[...document.querySelectorAll('figure.slice .panel')].every(p => { const r = p.getBoundingClientRect(); \
                  return r.width > 80 && Math.abs(r.width - r.height) < 1 })";
    assert_eq!(page.evaluate(square), true);
    assert_eq!(page.texts("figure.slice .side")[..4], ["R", "L", "A", "P"]);

    assert_eq!(page.count("dialog[open]"), 0);
    page.evaluate("document.querySelector('figure.slice button.panels').click()");
    page.assert_fits();
    let said = |page: &mut Page| page.texts("dialog .what").remove(0);
    assert!(said(page).starts_with(&format!("1 of {pictures}. Case 0003, slice ")), "{}", said(page));
    assert!(page.count("dialog[open] .panel path") > 8 && page.count("dialog[open] image") == 1);
    let press = |page: &mut Page, key: &str| {
        page.evaluate(&format!(
            "document.getElementById('enlarged').dispatchEvent(new KeyboardEvent('keydown', {{ key: '{key}' }}))"
        ));
    };
    press(page, "ArrowRight");
    assert!(said(page).starts_with("2 of "), "{}", said(page));
    press(page, "ArrowLeft");
    press(page, "ArrowLeft");
    assert!(said(page).starts_with(&format!("{pictures} of ")), "{}", said(page));
    page.evaluate("document.querySelector('dialog .close').click()");
    assert_eq!(page.count("dialog[open]"), 0);
    page.assert_sound();
}

#[test]
#[ignore = "needs Chromium: make test-pages"]
fn a_report_of_many_organs_fits_too_and_seven_cases_have_intervals() {
    let folder = tempfile::tempdir().unwrap();
    let organs = (0..30).map(|organ| format!("vertebra thoracica {organ} with a long name")).collect();
    let report = report(folder.path(), organs, 7, None);
    let mut browser = Browser::start();
    for width in WIDTHS {
        let mut page = browser.open(&report, View { width, dark: false });
        page.assert_fits();
        assert_eq!(page.count(".organs tbody tr"), 2 * 31);
        assert_eq!((page.count("td.mark-cell"), page.count("td.mean")), (2 * 30 * 7, 2 * 7));
        assert_eq!(page.evaluate("/interval [0-9]/.test(document.body.textContent)"), true);
        keep(&page.screenshot(), &format!("report-of-many-{width}.png"));
    }
}
