"""Time of a draw of noise per image, [batch, D]: torch's streams, drawn on the CPU and copied over, against philox's,
computed on the device.

    python benchmarks/noise.py                       # this machine's CPU, one thread
    python benchmarks/noise.py --device cuda

Every Langevin step needs one.  D = 960 is MNIST's recipe, 153,600 are 30 layers of 20 channels on 16x16.  Medians over
the rounds, the two taking turns; the CUDA side has not been run on a GPU yet.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from hebmtool.compute import device_name, pick_device
from hebmtool.noise import STREAMS, Noise, streams

SIZES, BATCHES = (960, 153_600), (8, 32, 100)


def seconds(noise: Noise, device: torch.device) -> float:
    """Of one draw, the device done with it."""
    start = time.perf_counter()
    noise()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--device", default="cpu")
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--rounds", type=int, default=7)
    asked.add_argument("--json", type=Path, help="write the figures here")
    asked = asked.parse_args()
    torch.set_num_threads(asked.threads)
    device, found = pick_device(asked.device), []
    print(f"{device_name(device)}, torch {torch.__version__}; milliseconds of a draw, medians of {asked.rounds}\n")
    print("| D | batch | numbers | " + " | ".join(STREAMS) + " |\n|" + "---|" * (3 + len(STREAMS)))
    for D in SIZES:
        for batch in BATCHES:
            noises = {}
            for word in STREAMS:
                with streams(word):
                    noises[word] = Noise(0, range(batch), D, device)
            for noise in noises.values():
                seconds(noise, device)
            times = {word: [] for word in STREAMS}
            for _ in range(asked.rounds):
                for word, noise in noises.items():
                    times[word].append(seconds(noise, device))
            row = {"D": D, "batch": batch} | {word: 1e3 * median(each) for word, each in times.items()}
            found.append(row)
            shown = " | ".join(f"{row[word]:.3g}" for word in STREAMS)
            print(f"| {D:,} | {batch} | {batch * D:,} | {shown} |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"device": device_name(device), "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
