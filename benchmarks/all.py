"""Every benchmark, one after the other, into benchmarks/results: about an hour and a half on two cores.

python benchmarks/all.py [NAME ...]
"""

import subprocess
import sys
from pathlib import Path

NAMES = (
    "span",
    "int8",
    "stream",
    "prefill",
    "concurrency",
    "load",
    "priorities",
    "routing",
    "tuning",
    "receipts",
    "footprint",
    "gas",
    "selfdealing",
    "placement",
    "hostile",
    "lookups",
    "soak",
    "gpu_span",
)
HERE = Path(__file__).parent


def main() -> None:
    import torch

    failed = []
    for name in sys.argv[1:] or NAMES:
        if name == "gpu_span" and not torch.cuda.is_available():
            print("gpu_span: skipped, there is no GPU")
            continue
        print(f"== {name}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(HERE / "results" / f"{name}.json")]
        if subprocess.run(command).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
