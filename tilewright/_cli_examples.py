"""Examples of every command, shown below its help; the tests check that their options exist."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "compile": (
        "tilewright compile model.onnx -o model.so",
        "tilewright compile bert.onnx -o bert.so --shape ids=1,128 --shape mask=1,128",
        "tilewright compile model.onnx -o pi.so --target aarch64:cortex-a72",
        "tilewright compile model.onnx -o model.so --target cuda:sm_90 --precision fp16",
        "tilewright compile model.onnx -o model.so --log tuned.jsonl --require-tuned 0.9",
    ),
    "run": (
        "tilewright run model.so --random",
        "tilewright run model.so --input x.npz --output y.npz --threads 2",
    ),
    "inspect": (
        "tilewright inspect model.onnx",
        "tilewright inspect model.onnx --layouts --svg layouts.svg",
        "tilewright inspect model.so --json",
    ),
    "targets": ("tilewright targets",),
    "bench": (
        "tilewright bench model.onnx --against onnxruntime,openvino",
        "tilewright bench model.onnx --threads 2 --rounds 50 -o result.json",
    ),
    "bench-ops": (
        "tilewright bench-ops --suite quick",
        "tilewright bench-ops --ops C2D,GMM-2 --against ansor --trials 64 -o result.json",
    ),
    "report": (
        "tilewright report model.so -o report.html",
        "tilewright report model.so tuned.jsonl quantized.json -o report.html",
        "tilewright report result.json -o report.md",
    ),
    "quantize": (
        "tilewright quantize model.onnx --calibration samples.npz -o quantized.onnx",
        "tilewright quantize model.onnx --calibration samples -o q.onnx --method mse",
        "tilewright quantize model.onnx --weights int4 --group 32 -o w4.onnx",
        "tilewright quantize model.onnx --calibration samples.npz -o q.onnx --bits w4a8",
        "tilewright quantize model.onnx --calibration samples.npz -o q.onnx --bits auto "
        "--max-drop 0.001 --curve curve.svg",
    ),
    "profile": (
        "tilewright profile model.so",
        "tilewright profile model.so --threads 2 --json",
    ),
    "explain": (
        "tilewright explain model.so",
        "tilewright explain model.so --against before.so",
        "tilewright explain model.onnx --top 30",
    ),
    "size": ("tilewright size model.so",),
    "tune": (
        "tilewright tune model.onnx --trials 2000",
        "tilewright tune model.onnx --time 30m --log tuned.jsonl --seed 1",
        "tilewright tune model.onnx --target aarch64:cortex-a72 --device ssh://pi@board",
    ),
    "tune-op": (
        "tilewright tune-op conv2d --data 1,64,56,56 --weight 64,64,3,3 --pad 1 --trials 64",
        "tilewright tune-op matmul --data 128,768 --weight 768,3072 --time 2m",
    ),
    "tune-gpu": (
        "tilewright tune-gpu model.onnx --target cuda:sm_90 --precision fp16 --trials 64",
        "tilewright tune-gpu model.onnx --target cuda:sm_90 --measure estimate --json",
    ),
    "doctor": ("tilewright doctor", "tilewright doctor --json"),
    "verify": (
        "tilewright verify model.so model.onnx",
        "tilewright verify model.so model.onnx --against onnx --input x.npz",
    ),
    "debug-accuracy": (
        "tilewright debug-accuracy model.onnx --against onnxruntime",
        "tilewright debug-accuracy model.onnx --output reproducer",
    ),
    "baseline install": ("tilewright baseline install ansor",),
    "baseline ls": ("tilewright baseline ls",),
    "baseline remove": ("tilewright baseline remove ansor",),
    "logs ls": ("tilewright logs ls",),
    "logs show": ("tilewright logs show tuned.jsonl",),
    "logs merge": ("tilewright logs merge all.jsonl monday.jsonl tuesday.jsonl",),
    "logs prune": ("tilewright logs prune tuned.jsonl --keep 2",),
    "logs doctor": (
        "tilewright logs doctor tuned.jsonl",
        "tilewright logs doctor tuned.jsonl --repair",
    ),
    "device serve": (
        "tilewright device serve --port 9090",
        "tilewright device serve --tracker farm:9190 --key pi4",
    ),
}


def epilog(words: str) -> str | None:
    """Return what stands below the help of a command, such as "logs show"."""
    examples = EXAMPLES.get(words)
    if examples is None:
        return None
    return "\n\n".join(["Examples:", *(f"$ {line}" for line in examples)])
