"""Times SAM's image encoder by another program on the CPU: time_encoder.py ARCH SIZE BATCH [WAY] → prints the median seconds per image.

WAY: pytorch (eager, the default), pytorch-compiled, pytorch-bf16, pytorch-bf16-compiled, onnxruntime, openvino, openvino-bf16. ONNX Runtime and OpenVINO
run the encoder that PyTorch exports, with fixed sizes; the export is not timed.
"""

import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch_encoder import ImageEncoder

ROUNDS = 5


def by_pytorch(encoder, images, way):
    if "bf16" in way:
        encoder, images = encoder.bfloat16(), images.bfloat16()
    if way.endswith("compiled"):
        encoder = torch.compile(encoder, mode="max-autotune-no-cudagraphs")
    return lambda: encoder(images)


def exported(encoder, images, folder):
    path = Path(folder) / "encoder.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(encoder, (images,), str(path), input_names=["images"], output_names=["embeddings"], opset_version=17, dynamo=False)
    return path


def by_onnxruntime(encoder, images, threads, folder):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(exported(encoder, images, folder)), options, providers=["CPUExecutionProvider"])
    feed = {"images": images.numpy()}
    return lambda: session.run(None, feed)[0]


def by_openvino(encoder, images, threads, way, folder):
    import openvino

    core = openvino.Core()
    # Without a hint it takes bfloat16 where the processor has it.
    precision = "bf16" if way.endswith("bf16") else "f32"
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(str(exported(encoder, images, folder)), "CPU", settings).create_infer_request()
    feed = {"images": images.numpy()}
    return lambda: request.infer(feed)[0]


def main():
    arch, size, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    way = sys.argv[4] if len(sys.argv) > 4 else "pytorch"
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    encoder, images = ImageEncoder(arch, size).eval(), torch.rand(batch, 3, size, size)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        expected = encoder(images)
        if way.startswith("pytorch"):
            call = by_pytorch(encoder, images, way)
        elif way == "onnxruntime":
            call = by_onnxruntime(encoder, images, threads, folder)
        elif way in ("openvino", "openvino-bf16"):
            call = by_openvino(encoder, images, threads, way, folder)
        else:
            sys.exit(__doc__)
        found = torch.as_tensor(call()).float()
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    if not error < (5e-2 if "bf16" in way else 1e-4):
        sys.exit(f"{way} differs by {error} of the largest value from PyTorch in float32")
    print(f"differs by {error:.1e} of the largest value from PyTorch in float32")
    print(f"{statistics.median(times) / batch:.5f} s/image")


if __name__ == "__main__":
    main()
