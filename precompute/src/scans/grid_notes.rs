//! What the user should know of where scans lie, before their voxels are read.

use super::grid::{Grid, SAME_GRID};
use sam_ladder_schemas::counted::counted;
use sam_ladder_schemas::orientation::Orientation;
use std::path::Path;

/// Sides of voxels that a scan of a body may have, in millimetres: others come of a wrong unit.
const PROBABLE_MM: std::ops::RangeInclusive<f64> = 0.01..=100.0;

/// A case, its first file and its grid.
type Placed<'a> = (&'a str, &'a Path, &'a Grid);

/// What the user should know of where scans lie: `scans` are the case, its first file and its grid. `wanted` is the orientation that scans
/// are turned to; with `as_published` none is turned.
pub fn grid_notes<'a>(
    scans: impl IntoIterator<Item = Placed<'a>>,
    wanted: Option<Orientation>,
    as_published: bool,
) -> Vec<String> {
    let scans: Vec<Placed> = scans.into_iter().collect();
    let mut notes: Vec<String> = scans.iter().filter_map(|(_, path, grid)| contradicting_pixdim(path, grid)).collect();
    notes.extend(of_several(&scans, improbable_size, "voxels of an improbable size", "check unit (xyzt_units) and affine"));
    notes.extend(of_several(
        &scans,
        sheared,
        "a sheared affine",
        "nothing is measured in millimetres there, unless `eval --spacing` states the spacing",
    ));
    notes.extend(of_several(
        &scans,
        contradicting_qform,
        "an sform and a qform that contradict each other",
        "the sform counts, but other programs may take the qform",
    ));
    notes.extend(of_several(
        &scans,
        halfway,
        "an affine nearly halfway between two orientations",
        "the nearest one is taken, but slices that lie so much askew are unlike those of other scans",
    ));
    notes.extend(of_several(
        &scans,
        |grid| grid.orientation().is_none().then(String::new),
        "no affine (codes of sform and qform are 0, or it cannot be used)",
        "slices are taken as they lie",
    ));
    notes.extend(wanted.and_then(|wanted| turned(&scans, wanted, as_published)));
    notes
}

/// A warning that names the scans of which something is found, with what it is of the first.
fn of_several(scans: &[Placed], what: impl Fn(&Grid) -> Option<String>, name: &str, consequence: &str) -> Option<String> {
    let found: Vec<(&str, String)> = scans.iter().filter_map(|(case, _, grid)| Some((*case, what(grid)?))).collect();
    let cases: Vec<&str> = found.iter().map(|(case, _)| *case).collect();
    let (first, detail) = found.first()?;
    let detail = if detail.is_empty() { String::new() } else { format!(" ({first}: {detail})") };
    let (count, all) = (cases.len(), counted(scans.len(), "scan"));
    Some(format!("warning: {name} in {count} of {all}{detail}; {consequence}: {}", listed(&cases)))
}

fn contradicting_pixdim(path: &Path, grid: &Grid) -> Option<String> {
    let [z, y, x] = grid.geometry.contradicting_pixdim_mm()?;
    let [dz, dy, dx] = grid.geometry.spacing_mm();
    let path = path.display();
    Some(format!(
        "warning: {path}: its pixdim says voxels of {x} × {y} × {z} mm, its affine of {dx} × {dy} × {dz} mm; the affine counts"
    ))
}

fn improbable_size(grid: &Grid) -> Option<String> {
    let sides @ [z, y, x] = grid.geometry.spacing_mm();
    let improbable = sides.iter().any(|side| !PROBABLE_MM.contains(side));
    improbable.then(|| format!("{x} × {y} × {z} mm, expected sides from {} to {} mm", PROBABLE_MM.start(), PROBABLE_MM.end()))
}

fn sheared(grid: &Grid) -> Option<String> {
    let degrees = grid.geometry.sheared_to_deg()?;
    Some(format!("an angle of {degrees:.1} degrees between its axes, expected 90.0"))
}

fn halfway(grid: &Grid) -> Option<String> {
    Some(format!("turned by {:.1} degrees from {}", grid.geometry.halfway_deg()?, grid.orientation()?))
}

/// Programs disagree where a scan lies if its two affines are more than a voxel apart, or name the axes otherwise. The same affine, rounded
/// otherwise, may have other names halfway between two orientations.
fn contradicting_qform(grid: &Grid) -> Option<String> {
    let other = Grid::new(grid.geometry.with_qform()?, None);
    let distance = grid.geometry.corner_distance_mm(&other.geometry)?;
    let (sform, qform) = (grid.orientation()?, other.orientation()?);
    let voxel = grid.geometry.spacing_mm().into_iter().fold(f64::INFINITY, f64::min);
    let is_elsewhere = distance > voxel || (sform != qform && distance > SAME_GRID * voxel);
    is_elsewhere.then(|| format!("{sform} and {qform}, corners up to {distance:.1} mm apart"))
}

/// Which scans lie otherwise than wanted.
fn turned(scans: &[Placed], wanted: Orientation, as_published: bool) -> Option<String> {
    let lies_otherwise = |grid: &Grid| grid.orientation().is_some_and(|found| found != wanted);
    let cases: Vec<&str> = scans.iter().filter(|(_, _, grid)| lies_otherwise(grid)).map(|(case, ..)| *case).collect();
    let (count, all, names) = (cases.len(), counted(scans.len(), "scan"), listed(&cases));
    (count > 0).then(|| match as_published {
        false => format!("turned to the orientation {wanted}: {count} of {all}: {names}"),
        true => format!(
            "warning: another orientation than {wanted}, which the first training scan has, in {count} of {all}; slices are taken as they \
             lie, as published: {names}"
        ),
    })
}

/// The first few names.
fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 6;
    let more = if names.len() > SHOWN { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}
