"""Times the metrics of eight organs of a 512 × 512 × 150 scan: ours and MedPy's, on the same masks, in the same run.

    python bench/time_metrics.py [ORGANS]

MedPy measures ORGANS of the eight (default 2: spleen and right kidney; all eight take minutes). Its values are compared with ours, and its time is
given per organ.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from medpy.metric import binary

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (150, 512, 512)


def main():
    organs = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as temporary:
        output = subprocess.run([ROOT / "target/release/examples/time_metrics", temporary], check=True, capture_output=True, text=True).stdout
        print(output, end="")
        masks = {name: np.fromfile(Path(temporary) / name, np.uint8).reshape(SHAPE) for name in ("reference", "moved")}
    ours = [float(value) for value in re.search(r"moved, Dice and HD95: .* HD95 (.*) voxels", output).group(1).split()]
    start = time.perf_counter()
    for label in range(1, organs + 1):
        prediction, reference = masks["moved"] == label, masks["reference"] == label
        binary.dc(prediction, reference)
        found = binary.hd95(prediction, reference)
        assert abs(found - ours[label - 1]) < 1e-6, f"organ {label}: MedPy {found}, ours {ours[label - 1]}"
    seconds = (time.perf_counter() - start) / organs
    print(f"moved, MedPy's dc and hd95: {seconds:.2f} s per organ ({organs} measured), {8 * seconds:.1f} s for eight; values equal ours")


if __name__ == "__main__":
    main()
