//! Rows made even before they become whole numbers.
//!
//! What leaves a layer normalisation is n g + b in each column. The same few columns have a large g or b in every row, and the step between two whole numbers
//! of a row grows with its largest value. So b is taken away and its product with the weights added to the biases, which is exact, and the
//! square root of g goes from the column to its weights: Wei et al., "Outlier Suppression" (2022), moves all of it, which makes the weights uneven
//! instead; the root is from Xiao et al., "SmoothQuant" (2023). Of what whole numbers cost in exactness there, two fifths go (as one less the cosine of vectors,
//! all-MiniLM-L6-v2).

/// The least root of a scale, as a part of the largest: a column that is nearly zero everywhere stays so.
const LEAST_ROOT: f32 = 1e-3;

/// The least that the largest is taken for: its inverse is a number too.
const LEAST: f32 = 1e-15;

/// How columns are made even.
#[derive(Debug, Clone)]
pub(crate) struct Balance {
    shifts: Vec<f32>,
    roots: Vec<f32>,
    inverse_roots: Vec<f32>,
}

impl Balance {
    /// For rows that a layer normalisation with these scales and shifts has left, one of each for a column.
    pub(crate) fn after_layer_norm(scales: &[f32], shifts: &[f32]) -> Self {
        let largest = scales.iter().fold(LEAST, |largest, scale| largest.max(scale.abs().sqrt()));
        let roots: Vec<f32> = scales.iter().map(|scale| scale.abs().sqrt().max(LEAST_ROOT * largest)).collect();
        let inverse_roots = roots.iter().map(|root| 1.0 / root).collect();
        Self { shifts: shifts.to_vec(), roots, inverse_roots }
    }

    /// Writes the even row. Always inlined, so that the compiler uses the instructions of the function that calls it.
    #[inline(always)]
    pub(crate) fn apply(&self, row: &[f32], even: &mut [f32]) {
        let columns = self.shifts.iter().zip(&self.inverse_roots);
        for ((even, value), (shift, factor)) in even.iter_mut().zip(row).zip(columns) {
            *even = (value - shift) * factor;
        }
    }

    /// The weights, rows of them for each output, and biases whose product with even rows is what it was with the rows themselves.
    pub(crate) fn linear(&self, weights: &[f32], biases: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let rows = weights.chunks_exact(self.roots.len());
        let biases = rows
            .clone()
            .zip(biases)
            .map(|(weights, bias)| {
                let shifted: f64 =
                    weights.iter().zip(&self.shifts).map(|(weight, shift)| f64::from(*weight) * f64::from(*shift)).sum();
                (f64::from(*bias) + shifted) as f32
            })
            .collect();
        let weights = rows.flat_map(|weights| weights.iter().zip(&self.roots).map(|(weight, root)| weight * root)).collect();
        (weights, biases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_with_even_rows_are_those_with_the_rows() {
        let balance = Balance::after_layer_norm(&[0.5, -2.0, 0.0, 1.0], &[3.0, -0.25, 0.5, 0.0]);
        let (weights, biases) = ([0.5, -1.0, 0.25, 4.0, 1.5, 2.0, -3.0, 0.125], [0.75, -0.5]);
        let (even_weights, even_biases) = balance.linear(&weights, &biases);
        let row = [3.5, -4.0, 0.5, 0.25];
        let mut even = [f32::NAN; 4];
        balance.apply(&row, &mut even);
        let product = |row: &[f32], weights: &[f32], bias: f32| row.iter().zip(weights).map(|(a, b)| a * b).sum::<f32>() + bias;
        for output in 0..2 {
            let expected = product(&row, &weights[4 * output..][..4], biases[output]);
            let found = product(&even, &even_weights[4 * output..][..4], even_biases[output]);
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn columns_that_differ_by_their_scales_become_alike() {
        let balance = Balance::after_layer_norm(&[16.0, 1.0], &[10.0, 0.0]);
        let mut even = [0.0; 2];
        balance.apply(&[10.0 + 16.0, 1.0], &mut even);
        assert_eq!(even, [4.0, 1.0]);
    }
}
