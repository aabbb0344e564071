"""Compares tests and bootstrap intervals with SciPy.

    python bench/parity/check_statistics.py [target/release/examples/parity]

Wilcoxon's signed-rank test (exact, with ties and zeros, and normal beyond 50 pairs), the paired permutation test (exact, and drawn), and the percentile
bootstrap. Exit status 1 if a value differs by more than rounding or, for drawn numbers, by more than four standard errors.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent.parent
DRAWS = 200_000


def make_samples():
    """Paired differences: without ties, with ties and zeros, few, many, far from 0 and not."""
    generator = np.random.default_rng(11)
    samples = [generator.standard_normal(size) * scale + shift for size, scale, shift in
               [(2, 1, 0), (5, 1, 0.5), (12, 0.1, 0.05), (12, 0.1, 0.0), (18, 1, 0.3), (30, 1, 0.4), (50, 1, 0.2), (51, 1, 0.2), (120, 2, 0.3)]]  # fmt: skip
    samples += [np.round(generator.standard_normal(size), 1) for size in (6, 10, 12, 13)]
    samples += [np.array([1.0]), np.array([0.0, 0.0, 1.0, -1.0, 2.0]), np.round(generator.standard_normal(80), 1)]
    return samples


def wilcoxon(sample):
    if not sample.any():
        return None
    # With ties and more than 13 pairs SciPy uses the normal distribution by default; ours is exact up to 50 pairs. So the method is chosen here.
    ties = len(np.unique(np.abs(sample[sample != 0]))) < np.count_nonzero(sample) or not sample.all()
    method = "auto" if not ties or len(sample) <= 13 or np.count_nonzero(sample) > 50 else stats.PermutationMethod(n_resamples=10**7)
    return stats.wilcoxon(sample, method=method)


def permutation(sample):
    if len(sample) < 2:
        # SciPy needs at least two pairs; with one pair both signs are equally extreme.
        return 1.0, True
    exact = np.count_nonzero(sample) <= 16
    count = np.inf if exact else DRAWS
    test = stats.permutation_test((sample, np.zeros_like(sample)), lambda a, b, axis: np.mean(a - b, axis=axis), permutation_type="samples",
                                  vectorized=True, n_resamples=count, batch=2000, rng=5)  # fmt: skip
    return test.pvalue, exact


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/release/examples/parity"
    samples = make_samples()
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "samples.json"
        path.write_text(json.dumps([sample.tolist() for sample in samples]))
        subprocess.run([program, "statistics", path, path.with_suffix(".out")], check=True)
        found = json.loads(path.with_suffix(".out").read_text())
    problems = []

    def check(what, value, expected, tolerance):
        if not abs(value - expected) <= tolerance:
            problems.append(f"{what} is {value}, SciPy says {expected} (tolerance {tolerance:.2g})")

    for index, (sample, ours) in enumerate(zip(samples, found, strict=True)):
        test = wilcoxon(sample)
        check(f"sample {index}: Wilcoxon's statistic", ours["statistic"], test.statistic, 1e-9)
        check(f"sample {index}: Wilcoxon's p", ours["wilcoxon_p"], test.pvalue, 1e-9)
        p, exact = permutation(sample)
        # Both may be drawn, so two independent standard errors count.
        check(f"sample {index}: permutation p", ours["permutation_p"], p, 1e-9 if exact else 4 * np.sqrt(2 * p * (1 - p) / DRAWS) + 2 / DRAWS)
        if len(sample) < 6:
            if ours["low"] is not None or ours["high"] is not None:
                problems.append(f"sample {index}: an interval of {len(sample)} cases")
        else:
            interval = stats.bootstrap((sample,), np.mean, method="percentile", n_resamples=100_000, batch=1000, rng=3).confidence_interval
            # Standard error of a 2.5 % quantile of 10 000 draws: √(0.025·0.975/10 000) over the density there, which a normal has as 0.0584/σ. Few
            # values make a coarse distribution: one step of it is allowed in addition.
            error = np.std(sample) / np.sqrt(len(sample))
            tolerance = 4 * np.sqrt(0.025 * 0.975 / 10_000) / 0.0584 * error + 0.5 * np.ptp(sample) / len(sample) ** 2
            check(f"sample {index}: lower end", ours["low"], interval.low, tolerance)
            check(f"sample {index}: upper end", ours["high"], interval.high, tolerance)
    print("\n".join(problems) or f"{len(samples)} samples: Wilcoxon's test, the permutation test and the bootstrap equal SciPy's")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
