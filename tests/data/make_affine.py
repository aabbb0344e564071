"""The expected values of `ops/src/image/affine.rs`: SciPy's `affine_transform` of small planes. Prints Rust."""

import numpy as np
from scipy import ndimage

h, w = 6, 7
image = (((np.arange(h * w) * 37 + 11) % 53) / np.float64(53)).astype(np.float32).reshape(h, w)
label = np.arange(1, h * w + 1, dtype=np.uint8).reshape(h, w)
angle, factor, shift = np.deg2rad(17.0), 1.25, np.array([0.5, -0.85])
matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / factor
centre = (np.array([h, w]) - 1) / 2
offset = centre - matrix @ (centre + shift)
cubic = ndimage.affine_transform(image.astype(np.float64), matrix, offset, order=3)
nearest = ndimage.affine_transform(label, matrix, offset, order=0)


def rows(values, text):
    return "\n".join("        " + " ".join(f"{text(value)}," for value in row) for row in values)


print(f"    #[rustfmt::skip]\n    const EXPECTED_CUBIC: [f32; {h * w}] = [\n{rows(cubic, lambda value: f'{value:.6f}')}\n    ];")
print(f"    #[rustfmt::skip]\n    const EXPECTED_NEAREST: [u8; {h * w}] = [\n{rows(nearest, str)}\n    ];")
