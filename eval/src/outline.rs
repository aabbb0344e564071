//! The outlines of a plane's classes as paths of SVG, along the edges of the pixels.

use std::fmt::Write;

/// Steps to the right, down, to the left and up.
const STEPS: [(i32, i32); 4] = [(1, 0), (0, 1), (-1, 0), (0, -1)];

/// The outline of each class but 0 that a plane `[h, w]` has, in ascending order: closed loops with the class on their right hand, in
/// pixels from the plane's upper left corner. A hole is a loop of its own.
pub(crate) fn outlines(plane: &[u8], size: [usize; 2]) -> Vec<(u8, String)> {
    let mut is_there = [false; 256];
    plane.iter().for_each(|&class| is_there[usize::from(class)] = true);
    (1..=u8::MAX).filter(|&class| is_there[usize::from(class)]).map(|class| (class, outline(plane, size, class))).collect()
}

fn outline(plane: &[u8], [height, width]: [usize; 2], class: u8) -> String {
    let is_class = |x: i32, y: i32| {
        let inside = x >= 0 && y >= 0 && (x as usize) < width && (y as usize) < height;
        inside && plane[y as usize * width + x as usize] == class
    };
    // Of each corner of a pixel, bits of the directions in which an edge leaves it.
    let mut leaving = vec![0u8; (height + 1) * (width + 1)];
    let corner = |x: i32, y: i32| y as usize * (width + 1) + x as usize;
    for (y, x) in (0..height as i32).flat_map(|y| (0..width as i32).map(move |x| (y, x))).filter(|&(y, x)| is_class(x, y)) {
        // Above, to the right, below, to the left of the pixel: the edge there and where it begins.
        let edges = [((0, -1), (0, 0)), ((1, 0), (1, 0)), ((0, 1), (1, 1)), ((-1, 0), (0, 1))];
        for (direction, ((dx, dy), (from_x, from_y))) in edges.into_iter().enumerate() {
            if !is_class(x + dx, y + dy) {
                leaving[corner(x + from_x, y + from_y)] |= 1 << direction;
            }
        }
    }
    let mut path = String::new();
    for start in 0..leaving.len() {
        while leaving[start] != 0 {
            let (x, y) = ((start % (width + 1)) as i32, (start / (width + 1)) as i32);
            trace(&mut leaving, corner, (x, y), &mut path);
        }
    }
    path
}

/// Writes the loop that begins at a corner, and takes its edges away.
fn trace(leaving: &mut [u8], corner: impl Fn(i32, i32) -> usize, start: (i32, i32), path: &mut String) {
    let (mut x, mut y) = start;
    let mut direction = leaving[corner(x, y)].trailing_zeros() as usize;
    let mut length = 0;
    let _ = write!(path, "M{x} {y}");
    loop {
        leaving[corner(x, y)] &= !(1 << direction);
        let (dx, dy) = STEPS[direction];
        (x, y, length) = (x + dx, y + dy, length + 1);
        let here = leaving[corner(x, y)];
        // Where two pixels touch at a corner, the loop stays at its own.
        let next = [1, 0, 3].map(|turn| (direction + turn) % 4).into_iter().find(|next| here & 1 << next != 0);
        let is_closed = (x, y) == start;
        if is_closed || next != Some(direction) {
            // The last edge is drawn by closing the path.
            if !is_closed {
                let _ = match direction {
                    0 | 2 => write!(path, "h{}", dx * length),
                    _ => write!(path, "v{}", dy * length),
                };
            }
            length = 0;
        }
        match next.filter(|_| !is_closed) {
            Some(next) => direction = next,
            None => break,
        }
    }
    path.push('z');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[&str]) -> Vec<(u8, String)> {
        let plane: Vec<u8> = rows.concat().bytes().map(|digit| digit - b'0').collect();
        outlines(&plane, [rows.len(), rows[0].len()])
    }

    #[test]
    fn outlines_run_along_the_pixels_edges() {
        assert_eq!(of(&["000", "010", "000"]), [(1, "M1 1h1v1h-1z".to_string())]);
        assert_eq!(of(&["11", "11"]), [(1, "M0 0h2v2h-2z".to_string())], "also at the plane's own edge");
        assert_eq!(of(&["120", "110"]), [(1, "M0 0h1v1h1v1h-2z".to_string()), (2, "M1 0h1v1h-1z".to_string())]);
        assert!(of(&["00", "00"]).is_empty());
    }

    #[test]
    fn a_hole_is_a_loop_and_pixels_that_touch_at_a_corner_are_two() {
        assert_eq!(of(&["111", "101", "111"]), [(1, "M0 0h3v3h-3zM1 1v1h1v-1z".to_string())]);
        assert_eq!(of(&["10", "01"]), [(1, "M0 0h1v1h-1zM1 1h1v1h-1z".to_string())]);
    }

    /// The area that the loops enclose, by the shoelace formula, is the number of pixels, whatever the plane.
    #[test]
    fn an_outline_encloses_exactly_its_pixels() {
        let mut state = 1u32;
        let plane: Vec<u8> = (0..37 * 23)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 30) as u8
            })
            .collect();
        for (class, path) in outlines(&plane, [37, 23]) {
            let mut doubled = 0i64;
            for part in path.split('z').filter(|part| !part.is_empty()) {
                let numbers = part[1..].split(['h', 'v']).next().unwrap();
                let (x, y) = numbers.split_once(' ').unwrap();
                let first: (i64, i64) = (x.parse().unwrap(), y.parse().unwrap());
                let mut points = vec![first];
                let moves = &part[1 + numbers.len()..];
                let mut at = first;
                for step in moves.replace('h', " h").replace('v', " v").split_whitespace() {
                    let by: i64 = step[1..].parse().unwrap();
                    at = if step.starts_with('h') { (at.0 + by, at.1) } else { (at.0, at.1 + by) };
                    points.push(at);
                }
                points.push(first);
                doubled += points.windows(2).map(|pair| pair[0].0 * pair[1].1 - pair[1].0 * pair[0].1).sum::<i64>();
            }
            assert_eq!(doubled, 2 * plane.iter().filter(|&&found| found == class).count() as i64, "class {class}");
        }
    }
}
