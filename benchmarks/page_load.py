"""Ten people on one page for ten minutes, a model of 1,500 layers, one matrix of 30,000 x 30,000: time and memory.

    python -m benchmarks.page_load [--only sessions,layers,matrix] [--minutes 10] [--sessions 10] [--pause 15] [--folder FOLDER]

sessions: a real `loraxs app` and real Chromium contexts, one a session, each of which goes from page to page with a pause between,
as a reader does. Told are the server's memory (its own process and what it started; proportional set size, so that shared pages
count once) after the first session has seen every page, with all of them, every minute, and after they have left; and how long a
page took. layers: what the commands take on a synthetic LLaMA of 1,500 decoder layers (10,500 matrices). matrix: `loraxs scan --top 16`
of one 30,000 x 30,000 bfloat16 matrix (1.8 GB, heavy-tailed, written to FOLDER).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from benchmarks.make_checkpoint import bfloat16_bits

MIB = 1 << 20
PAGES = ("Spectra", "Plan", "Cost", "Adapters", "Compare", "Model")
DEPTH, WIDTH = 1_500, 32
SIDE = 30_000
LIMIT_SECONDS = 3600  # for one command


def memory(process: psutil.Process) -> int:
    """Bytes of the process and its children that are theirs, shared pages by their share."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_full_info().pss if psutil.LINUX else one.memory_info().rss
        except psutil.Error:
            continue
    return total


# -- sessions -----------------------------------------------------------------------------------------------------------------


def sessions(number: int, minutes: float, pause: float) -> None:
    """Prints the memory of a server that `number` browsers use for so many minutes, each doing something every `pause` seconds."""
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import serving
    from tests.browser.install import find

    path = find()  # before Playwright is started, which it asks itself
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), "--no-token") as address,
        sync_playwright() as playwright,
    ):
        server = next(child for child in psutil.Process().children() if "app" in child.cmdline())
        places = {"LORAXS_CACHE": f"{folder}/cache", "LORAXS_DATA": f"{folder}/data"}
        subprocess.run(
            [sys.executable, "-m", "app.cli", "scan", "minilm"], env=os.environ | places, stdout=subprocess.DEVNULL, check=True
        )
        began = memory(server)
        print(f"server without a session: {began / MIB:.0f} MiB", flush=True)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        waits: list[float] = []
        with _opened(browser, address) as first:
            for name in PAGES:
                _go(first, name, waits)
        one = memory(server)
        print(f"after the first has seen {len(PAGES)} pages (libraries loaded): {one / MIB:.0f} MiB", flush=True)
        contexts = [browser.new_context(viewport={"width": 1440, "height": 900}) for _ in range(number)]
        pages = [_page(context, address) for context in contexts]
        waits.clear()
        for page in pages:
            for name in PAGES:
                _go(page, name, waits)
        every = memory(server)
        each = (every - one) / MIB / number
        print(f"{number} sessions, every page seen by each: {every / MIB:.0f} MiB, {each:+.2f} MiB a session", flush=True)
        _minutes(server, pages, minutes, pause, waits, every)
        for context in contexts:
            context.close()
        browser.close()
        _left(server, every)


def _minutes(server: psutil.Process, pages: list, minutes: float, pause: float, waits: list[float], every: int) -> None:
    """What happens in the minutes asked for: one page after another goes on, as fast as `pause` says for each."""
    waits.clear()
    start, turn, told = time.monotonic(), 0, 0
    points = [(0.0, every / MIB)]
    while (passed := time.monotonic() - start) < 60 * minutes:
        began = time.monotonic()
        _go(pages[turn % len(pages)], PAGES[(turn // len(pages) + turn) % len(PAGES)], waits)
        turn += 1
        time.sleep(max(0.0, pause / len(pages) - (time.monotonic() - began)))
        if passed // 60 > told:
            told = int(passed // 60)
            points.append((passed / 60, memory(server) / MIB))
            print(f"  minute {told:2}: {points[-1][1]:.0f} MiB after {turn} pages", flush=True)
    points.append((minutes, memory(server) / MIB))
    half = [point for point in points if point[0] >= minutes / 2]
    slope = np.polyfit(*zip(*half, strict=True), 1)[0] if len(half) > 1 else float("nan")
    waits.sort()
    print(
        f"{minutes:g} minutes, {turn} pages by {len(pages)} sessions: {points[-1][1]:.0f} MiB, {points[-1][1] - points[0][1]:+.1f} MiB; "
        f"{slope:+.2f} MiB a minute in the second half; a page took {statistics.median(waits):.2f} s (median), "
        f"{waits[int(0.95 * (len(waits) - 1))]:.2f} s (95 %), {waits[-1]:.2f} s at most",
        flush=True,
    )


def _left(server: psutil.Process, every: int) -> None:
    """What stays when everybody has gone; Streamlit keeps a session for two minutes, in case its browser comes back."""
    time.sleep(150)
    left = memory(server)
    print(f"150 s after they left: {left / MIB:.0f} MiB, {(left - every) / MIB:+.0f} MiB", flush=True)


@contextmanager
def _opened(browser, address: str) -> Iterator:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield _page(context, address)
    context.close()


def _page(context, address: str):
    page = context.new_page()
    page.set_default_timeout(300_000)
    page.goto(f"{address}/?model=minilm")
    _settled(page)
    return page


def _go(page, name: str, waits: list[float]) -> None:
    """To the page of that name, until it is whole."""
    began = time.monotonic()
    page.get_by_test_id("stTopNavLink").filter(has_text=name).click()
    page.get_by_role("heading", name=name, exact=True, level=1).wait_for()
    _settled(page)
    waits.append(time.monotonic() - began)


def _settled(page) -> None:
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    failed = page.get_by_test_id("stException")
    if failed.count():
        raise SystemExit(f"The page fell over: {failed.first.inner_text()[:500]}")


# -- commands on large models -------------------------------------------------------------------------------------------------


def told(words: list[str]) -> None:
    """Runs ``loraxs`` with these words and prints its time and the most memory it had."""
    began, most = time.monotonic(), [0.0, 0.0]
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "said", "w+") as said:
        places = {"LORAXS_CACHE": f"{folder}/cache", "LORAXS_DATA": f"{folder}/data", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", *words], env=os.environ | places, stdout=said, stderr=subprocess.STDOUT
        )
        threading.Thread(target=_watch, args=(process.pid, most), daemon=True).start()
        try:
            code = process.wait(LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = f"unfinished after {LIMIT_SECONDS} s"
        seconds = time.monotonic() - began
        said.seek(0)
        last = (said.read().strip().splitlines() or [""])[-1]
    shown = " ".join("FOLDER" if os.sep in word else word for word in words)
    print(
        f"loraxs {shown}: {seconds:.1f} s ({most[1]:.1f} s of processor time), {most[0] / MIB:.0f} MiB at most, exit code {code}"
        + (f": {last}" if code else ""),
        flush=True,
    )


def _watch(number: int, most: list[float]) -> None:
    """Keeps in `most` the largest memory in bytes and the processor seconds so far."""
    try:
        process = psutil.Process(number)
        while process.is_running():
            most[0] = max(most[0], process.memory_info().rss)
            most[1] = sum(process.cpu_times()[:2])
            time.sleep(0.05)
    except psutil.Error:
        return


def layers(folder: Path) -> None:
    """A model of 1,500 decoder layers: small ones, so that it is their number that is measured."""
    model = many_layers(folder / "layers")
    for words in (["inspect"], ["plan", "--like-rank", "4"], ["size", "--rank", "4"], ["memory", "--rank", "4"], ["scan"]):
        told([words[0], str(model), *words[1:]])


def many_layers(folder: Path, depth: int = DEPTH, width: int = WIDTH) -> Path:
    """Writes a LLaMA of `depth` layers `width` wide, one file of about 7 x depth x width² x 2 bytes, and returns its folder."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return generator.normal(0, 0.02, shape).astype(np.float16)

    modules = {f"self_attn.{name}_proj": (width, width) for name in "qkvo"} | {
        "mlp.gate_proj": (2 * width, width), "mlp.up_proj": (2 * width, width), "mlp.down_proj": (width, 2 * width),
    }  # fmt: skip
    tensors = {
        "model.embed_tokens.weight": weight(64, width),
        "lm_head.weight": weight(64, width),
        "model.norm.weight": weight(width),
    }
    for layer in range(depth):
        tensors |= {f"model.layers.{layer}.{name}.weight": weight(*shape) for name, shape in modules.items()}
        tensors |= {f"model.layers.{layer}.{name}_layernorm.weight": weight(width) for name in ("input", "post_attention")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "num_hidden_layers": depth,
        "intermediate_size": 2 * width, "num_attention_heads": 4, "num_key_value_heads": 4, "torch_dtype": "float16", "vocab_size": 64,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def matrix(folder: Path) -> None:
    """One matrix larger than any model's, through the command."""
    told(["scan", str(one_matrix(folder / "matrix")), "--top", "16"])


def one_matrix(folder: Path, side: int = SIDE) -> Path:
    """Writes one bfloat16 matrix of `side` x `side` with rows and columns of unlike scale and a few strong directions; its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    columns = np.exp(0.22 * generator.standard_normal(side, dtype=np.float32))
    strong = generator.standard_normal((8, side), dtype=np.float32) / np.sqrt(side)
    raw = json.dumps({"layer.weight": {"dtype": "BF16", "shape": [side, side], "data_offsets": [0, 2 * side * side]}}).encode()
    raw += b" " * (-len(raw) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for start in range(0, side, 1000):
            rows = generator.standard_normal((min(1000, side - start), side), dtype=np.float32) * columns
            rows *= np.exp(0.22 * generator.standard_normal(len(rows), dtype=np.float32))[:, None]
            rows += (
                generator.standard_normal((len(rows), 8), dtype=np.float32) * np.linspace(5, 2.5, 8, dtype=np.float32) @ strong
            )
            bfloat16_bits(0.02 * rows).tofile(file)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="sessions,layers,matrix", help="parts, comma-separated")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--pause", type=float, default=15, help="seconds from one page to the next, of each session")
    parser.add_argument("--folder", type=Path, help="where the large files go; a temporary folder when left out")
    asked = parser.parse_args()
    parts: dict[str, Callable[[Path], None]] = {
        "sessions": lambda folder: sessions(asked.sessions, asked.minutes, asked.pause),
        "layers": layers,
        "matrix": matrix,
    }
    chosen = asked.only.split(",")
    if unknown := sorted(set(chosen) - set(parts)):
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(parts)}")
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen:
            print(f"-- {name}", flush=True)
            parts[name](asked.folder or Path(temporary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
