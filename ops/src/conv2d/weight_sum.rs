//! The end of a gradient of the weight: the sum of its parts, in the weight's layout.

use rayon::prelude::*;

/// Output channels that one task works on.
const CHANNELS: usize = 32;

/// The sum over the parts `[parts][rows][columns]`, in order, as `[co][places]`; `rows` says which row each place has, and a column is an output channel.
pub(super) fn weight_of_parts(partial: &[f32], part_len: usize, columns: usize, (co, rows): (usize, &[usize])) -> Vec<f32> {
    let places = rows.len();
    let mut out = vec![0.0; co * places];
    out.par_chunks_mut((CHANNELS * places).max(1)).enumerate().for_each(|(chunk, out)| {
        let first = chunk * CHANNELS;
        let count = CHANNELS.min(co - first);
        for (place, row) in rows.iter().enumerate() {
            let mut sums = [0f32; CHANNELS];
            for part in partial.chunks_exact(part_len) {
                sums.iter_mut().zip(&part[row * columns + first..][..count]).for_each(|(sum, value)| *sum += value);
            }
            for (lane, sum) in sums[..count].iter().enumerate() {
                out[lane * places + place] = *sum;
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_added_and_rows_become_places() {
        // Two parts of three rows and 48 columns, of which 40 are channels; the middle row is not asked for.
        let partial: Vec<f32> = (0..2 * 3 * 48).map(|i| i as f32).collect();
        let got = weight_of_parts(&partial, 3 * 48, 48, (40, &[2, 0]));
        let want = |row: usize, channel: usize| (row * 48 + channel) as f32 + (144 + row * 48 + channel) as f32;
        let want: Vec<f32> = (0..40).flat_map(|channel| [want(2, channel), want(0, channel)]).collect();
        assert_eq!(got, want);
    }
}
