"""Image decoding: images/s of one core with Pillow alone, with `decode`, and with `draft`.

    python -m bench.decode [--images 12] [--rounds 5] [--size 224] [--scenes 100] [--json] [--formats]

Each image is decoded in all three ways before the next one, in rotating order, so that drift of the machine affects all
alike. Pillow alone is the minimal code with the same pixels for a plain photograph. It also measures how much `draft`
changes pixels, and how many of the demo model's answers about enlarged held-out scenes stay the same.

A second table compares `decode`, by format, with what it did before decoding was bounded, in processor time;
`--formats` makes only that one.
"""

import argparse
import functools
import hashlib
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image

from bench.machine import machine
from paliscribe.demo.answers import scene_items
from paliscribe.demo.drawing import draw
from paliscribe.images.decode import FORMATS, MAX_PIXELS, decode
from paliscribe.images.pixels import ORIENTATION, TRANSPOSITIONS

TASKS = ("caption", "answer", "ocr", "detect", "all")
SIDES = ((640, 480), (1280, 960), (1920, 1440))
QUALITY = 90
GRAIN = 4.0  # standard deviation of the noise added to enlarged images, of 255
FORMS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": QUALITY},
    "JPEG progressive": {"quality": QUALITY, "progressive": True},
    "PNG": {"compress_level": 1},
    "WEBP": {"method": 0},
    "TIFF": {},
    "TIFF LZW": {"compression": "tiff_lzw"},
    "TIFF deflate": {"compression": "tiff_adobe_deflate"},
    "TIFF JPEG": {"compression": "jpeg"},
    "AVIF": {"speed": 10},
    "GIF": {},
    "BMP": {},
    "PPM": {},
}
FORM_SIDES = ((64, 64), (128, 128), (224, 224), (640, 480))
SCENE_SIDE = 1920  # longer side of an enlarged scene, in pixels

Figures = dict[str, float]


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12, help="photographs of each size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224, help="side length of the decoded image, in pixels")
    parser.add_argument("--scenes", type=int, default=100, help="scenes for the comparison of answers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--formats", action="store_true", help="only the table of formats")
    arguments = parser.parse_args(words)
    if arguments.formats:
        print("{processor}, {cores} cores, commit {commit}".format(**machine()))
        print(by_format(formats(arguments.images, arguments.rounds, arguments.size)))
        return

    figures, ratios = speed(arguments.images, arguments.rounds, arguments.size)
    figures |= agreement(arguments.scenes)
    ratios |= formats(arguments.images, arguments.rounds, arguments.size)
    described = machine()
    print(f"{described['processor']}, {described['cores']} cores, commit {described['commit']}")
    source = "enlarged from two of scikit-learn's" if _photographs() else "synthetic"
    print(f"{arguments.images} photographs ({source}) to {arguments.size} px, {arguments.rounds} rounds, medians:")
    print("                images/s of one core                ratios         draft's difference, of 255")
    print("                pillow    ours   draft    ours/pillow  draft/ours      mean   max")
    for width, height in SIDES:
        at = f"@{width}x{height}"
        print(
            f"  {width:4} x {height:4}  {figures['pillow' + at]:8.1f}{figures['ours' + at]:8.1f}"
            f"{figures['draft' + at]:8.1f}    {ratios['ours/pillow' + at]:11.2f}{ratios['draft/ours' + at]:12.2f}"
            f"    {figures['mean_difference' + at]:6.2f}{figures['max_difference' + at]:6.0f}"
        )
    print(by_format(ratios))
    print(f"the demo model's answers about {arguments.scenes} scenes of {SCENE_SIDE} px that draft does not change:")
    for task in TASKS:
        if (asked := figures[f"asked@{task}"]) > 0:
            print(f"  {task:8} {figures[f'agreement@{task}']:7.2%} of {asked:.0f}")
    if arguments.json:
        print(json.dumps({"machine": described, "figures": figures, "ratios": ratios}))


def by_format(ratios: Figures) -> str:
    """The table of formats."""
    lines = ["ours/before, processor time:  " + "".join(f"{f'{width} x {height}':>11}" for width, height in FORM_SIDES)]
    for name in FORMS:
        shown = "".join(f"{ratios[f'{name}@{width}x{height}']:11.3f}" for width, height in FORM_SIDES)
        lines.append(f"  {name:28}{shown}")
    return "\n".join(lines)


def speed(count: int, rounds: int, size: int) -> tuple[Figures, Figures]:
    """Images/s of each way at each size, pixel differences of draft, and ratios of the rates."""
    ways: dict[str, Callable[[bytes], Any]] = {
        "pillow": lambda data: pillow(data, size),
        "ours": lambda data: decode(data, size),
        "draft": lambda data: decode(data, size, draft=True),
    }
    figures: Figures = {}
    ratios: Figures = {}
    for width, height in SIDES:
        at = f"@{width}x{height}"
        pictures = [photograph(number, width, height) for number in range(count)]
        off = np.array([difference(data, size) for data in pictures])  # also warms up
        rates = [_round(pictures, ways, number) for number in range(rounds)]
        figures |= {name + at: statistics.median(rate[name] for rate in rates) for name in ways}
        figures |= {"mean_difference" + at: float(off[:, 0].mean()), "max_difference" + at: float(off[:, 1].max())}
        for one, other in (("ours", "pillow"), ("draft", "ours")):
            ratios[f"{one}/{other}{at}"] = statistics.median(rate[one] / rate[other] for rate in rates)
    return figures, ratios


def formats(count: int, rounds: int, size: int) -> Figures:
    """Ratios of the rates with those of `before`, by format and size."""
    ways: dict[str, Callable[[bytes], Any]] = {
        "before": lambda data: before(data, size),
        "ours": lambda data: decode(data, size),
    }
    ratios: Figures = {}
    for width, height in FORM_SIDES:
        plain = [Image.open(io.BytesIO(photograph(number, width, height))) for number in range(count)]
        for name, options in FORMS.items():
            pictures = [_encoded(image, name.split()[0], **options) for image in plain]
            _round(pictures, ways, 0)  # warms up
            rates = [_round(pictures, ways, number, time.process_time) for number in range(rounds)]
            ratios[f"{name}@{width}x{height}"] = statistics.median(rate["ours"] / rate["before"] for rate in rates)
    return ratios


def pillow(data: bytes, size: int) -> np.ndarray[Any, Any]:
    """Decode with the minimal Pillow code: uint8 [size, size, 3]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def before(data: bytes, size: int) -> tuple[np.ndarray[Any, Any], str]:
    """What commit c63eeeb did with an opaque picture: open, check, load, turn, convert, resize, hash."""
    if data[4:8] == b"ftyp":  # by a thread for each core
        AvifImagePlugin.DEFAULT_MAX_THREADS = 0
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError("too many pixels")
    image.load()
    turn = TRANSPOSITIONS.get(image.getexif().get(ORIENTATION, 1))
    upright = image if turn is None else image.transpose(turn)
    assert not upright.has_transparency_data
    small = upright.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    return np.asarray(small), hashlib.sha256(data).hexdigest()


def difference(data: bytes, size: int) -> tuple[float, int]:
    """Mean and maximum difference between draft and exact pixels, of 255."""
    exact, draft = decode(data, size).pixels, decode(data, size, draft=True).pixels
    assert np.array_equal(exact, pillow(data, size))
    off = np.abs(exact.astype(int) - draft)
    return float(off.mean()), int(off.max())


def agreement(scenes: int) -> Figures:
    """Share of requests that the demo model answers with the same text under draft, by task and overall."""
    import torch

    from paliscribe.config import ModelSpec
    from paliscribe.demo.evaluation import EVALUATION_SEEDS
    from paliscribe.demo.sampling import sample_scene
    from paliscribe.engine import Engine
    from paliscribe.grammar.tasks import parse_task
    from paliscribe.model import paligemma as model
    from paliscribe.records import Request

    torch.set_num_threads(1)
    loaded = model.load(ModelSpec(), device="cpu")
    tasks: list[str] = []
    requests: dict[bool, list[Request]] = {False: [], True: []}
    for number in range(scenes):
        scene = sample_scene(EVALUATION_SEEDS + number)
        scale = SCENE_SIDE / max(scene.width, scene.height)
        data = _jpeg(draw(scene), round(scene.width * scale), round(scene.height * scale), number)
        decoded = {draft: decode(data, loaded.image_size, draft=draft) for draft in requests}
        for item in (item for item in scene_items(scene) if item.task in TASKS):
            task = parse_task(item.prompt)
            for draft, image in decoded.items():
                request = Request(str(len(tasks)), task.render({}), image.pixels, image.sha256, task.max_tokens)
                requests[draft].append(request)
            tasks.append(item.task)
    # Separate engines: one engine would use the same cached embedding for both, since the image hash is the same.
    answers = {draft: [answer.text for answer in Engine(loaded).run(asked)] for draft, asked in requests.items()}
    same: dict[str, list[bool]] = {name: [] for name in TASKS}
    for name, one, other in zip(tasks, answers[False], answers[True], strict=True):
        same[name].append(one == other)
        same["all"].append(one == other)
    figures: Figures = {f"asked@{name}": len(found) for name, found in same.items()}
    return figures | {f"agreement@{name}": statistics.fmean(found or [True]) for name, found in same.items()}


def photograph(number: int, width: int, height: int) -> bytes:
    """A JPEG: a random crop of a real photograph, enlarged, with grain; without scikit-learn, multi-scale noise."""
    rng = np.random.default_rng(number)
    if real := _photographs():
        whole = real[number % len(real)]
        tall = int(rng.integers(300, whole.height))
        wide = min(whole.width, tall * width // height)
        left, top = int(rng.integers(0, whole.width - wide + 1)), int(rng.integers(0, whole.height - tall + 1))
        return _jpeg(whole.crop((left, top, left + wide, top + tall)), width, height, number)
    total = np.zeros((480, 640, 3))
    for octave in range(7):
        noise = rng.integers(0, 256, (3 * 2**octave, 4 * 2**octave, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)) / 2 ** (octave + 1)
    return _jpeg(Image.fromarray(total.clip(0, 255).astype(np.uint8)), width, height, number)


@functools.cache
def _photographs() -> list[Image.Image]:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        return []
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def _jpeg(picture: Image.Image, width: int, height: int, seed: int) -> bytes:
    """Enlarge an image, add grain, and encode it as a JPEG."""
    large = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
    grainy = large + np.random.default_rng(seed).normal(0, GRAIN, (height, width, 1))
    return _encoded(Image.fromarray(grainy.round().clip(0, 255).astype(np.uint8)), "JPEG", quality=QUALITY)


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _round(
    pictures: list[bytes],
    ways: dict[str, Callable[[bytes], Any]],
    turn: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Figures:
    """Images/s of each way over all pictures; the order of the ways rotates."""
    names = list(ways)
    spent = dict.fromkeys(names, 0.0)
    for number, data in enumerate(pictures):
        first = (turn + number) % len(names)
        for name in names[first:] + names[:first]:
            begun = clock()
            ways[name](data)
            spent[name] += clock() - begun
    return {name: len(pictures) / seconds for name, seconds in spent.items()}


if __name__ == "__main__":
    main()
