"""The files of the hostile suite: images, arrays, masks, feature networks and runs that are wrong."""

import json
import os
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

GOOD = np.arange(64, dtype=np.uint8).reshape(8, 8)


def write_images(root: Path) -> None:
    Image.fromarray(GOOD).save(root / "good.png")
    whole = (root / "good.png").read_bytes()
    contents = {
        "empty.png": b"",
        "words.png": b"these are words",
        "cut.png": whole[:40],
        "signature.png": whole[:8],
        "zeros.png": b"\0" * 999,
        "half.jpg": b"\xff\xd8\xff\xe0" + b"\0" * 20,
        "giant.png": whole[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + whole[24:],
        "page.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(ran) (w) file closefile\nshowpage\n",
        "script.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
        "rle.bmp": b"BM" + b"\xff" * 60,
        "loop.gif": b"GIF89a" + b"\xff" * 40,
        "bits.tif": b"II*\0\x08\0\0\0" + b"\xff" * 40,
        "big.pgm": b"P5 99999999 99999999 255\n",
        "few.pgm": b"P5 8 8 255\nabc",
        "riff.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 30,
    }
    for name, content in contents.items():
        (root / name).write_bytes(content)
    Image.fromarray(GOOD.astype(np.float32)).save(root / "float.tif")
    Image.fromarray(GOOD.astype(np.int32)).save(root / "wide.tif")
    Image.fromarray(np.repeat(np.repeat(GOOD, 4, 0), 4, 1)).save(root / "tga.png", "TGA")
    os.mkfifo(root / "pipe.png")
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "self.png").symlink_to("self.png")
    (root / "folder.png").mkdir()
    (root / "none").mkdir()
    for a, b in (("one", "two"), ("two", "one")):
        (root / "circle" / a).mkdir(parents=True)
        (root / "circle" / a / f"to-{b}").symlink_to(root / "circle" / b)


def write_arrays(root: Path) -> None:
    images = GOOD[None].repeat(12, 0)
    np.savez(root / "good.npz", x=images, y=np.arange(12) % 3)
    np.savez(root / "float.npz", x=images / 255)
    np.savez(root / "empty-x.npz", x=images[:0])
    np.savez(root / "strings.npz", x=np.array(["a", "b"]))
    np.savez(root / "objects.npz", x=np.array([{}, []], dtype=object))
    np.savez(root / "names.npz", pictures=images)
    np.savez(root / "nothing.npz")
    np.savez(root / "deep.npz", x=images[:, None, None])
    np.savez(root / "five.npz", x=np.zeros((2, 5, 8, 8), np.uint8))
    np.savez(root / "tiny.npz", x=np.zeros((2, 3, 3), np.uint8))
    np.savez(root / "void.npz", x=np.zeros(3, dtype=[("a", "i4")]))
    for name, labels in {
        "huge": [10**9] * 12,
        "negative": [-1] * 12,
        "large": [2**63 - 1] * 12,
        "fraction": [0.5] * 12,
        "few": [0, 1],
        "square": [[0, 1]] * 12,
        "text": ["a"] * 12,
    }.items():
        np.savez(root / f"labels-{name}.npz", x=images, y=np.array(labels))
    np.savez(root / "classes.npz", x=images, y=np.arange(12), classes=np.array(["a"]))
    np.savez(root / "differ.npz", x_train=images, x_test=np.zeros((3, 9, 9), np.uint8))
    np.save(root / "good.npy", images)
    np.save(root / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    whole = (root / "good.npy").read_bytes()
    (root / "cut.npy").write_bytes(whole[:-100])
    (root / "liar.npy").write_bytes(whole.replace(b"(12, 8, 8)", b"(9**9, 8, 8)"[:10].ljust(10)))
    (root / "vast.npy").write_bytes(whole[:128].replace(b"(12, 8, 8), }", b"(10**9,), }  "[:13]))
    (root / "words.npy").write_bytes(b"words")
    (root / "empty.npz").write_bytes(b"")
    (root / "zip.npz").write_bytes((root / "good.npz").read_bytes()[:200])
    with zipfile.ZipFile(root / "members.npz", "w") as file:
        file.writestr("x.npy", b"no array")
    os.mkfifo(root / "pipe.npz")


def write_masks(root: Path) -> None:
    for name, mask in {
        "all": np.ones((8, 8)),
        "no": np.zeros((8, 8)),
        "other": np.eye(9),
        "deep": np.ones((1, 1, 8, 8)),
        "text": np.array(["a"]),
        "none": np.zeros((0, 8, 8)),
        "many": np.stack([np.eye(8)] * 99),
        "complex": np.eye(8) * 1j,
    }.items():
        np.save(root / f"mask-{name}.npy", mask)
    (root / "mask-words.npy").write_bytes(b"words")
    np.savez(root / "mask-nothing.npz")
    np.save(root / "mask-object.npy", np.array([[{}]], dtype=object), allow_pickle=True)


def write_features(root: Path) -> None:
    (root / "words.pt").write_text("words")
    (root / "words.pt2").write_text("words")
    (root / "odd.safetensors").write_text("words")
    (root / "empty.safetensors").write_bytes(b"")
    (root / "long.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    tensors = {"a": torch.zeros(2)}
    headers = {"other": {"format": "pt"}, "word": {"format": "hebmtool-features", "format_version": "1"}}
    headers["unknown"] = headers["word"] | {"architecture": "inception"}
    headers["version"] = headers["unknown"] | {"format_version": "9"}
    headers["keys"] = headers["word"] | {"architecture": "residual"}
    for name, header in headers.items():
        safetensors.torch.save_file(tensors, root / f"features-{name}.safetensors", header)


# Runs -----------------------------------------------------------------------------------------------------------------


def header_of(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, header: dict, tensors: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.unlink()  # it is a link to the file of another run
    path.write_bytes(len(text).to_bytes(8, "little") + text + tensors)


def linked(tiny: Path, root: Path, name: str, of: str = "digits") -> Path:
    """A run that shares its files with the tiny one, to damage some."""
    return Path(shutil.copytree(tiny / of, root / name, copy_function=os.link))


def replaced(path: Path, content: bytes | str) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


HEADERS = {
    "format": {"format": "pt"},
    "version": {"format_version": "99"},
    "version-word": {"format_version": "one"},
    "step": {"step": "many"},
    "step-digits": {"step": "9" * 5000},
    "recipe-list": {"recipe": "[]"},
    "recipe-null": {"recipe": "null"},
    "recipe-words": {"recipe": "words"},
    "recipe-key": {"recipe": '{"generatr": {}}'},
    "recipe-deep": {"recipe": "[" * 9999},
    "extra-list": {"extra": "[]"},
    "extra-null": {"extra": "null"},
    "extra-words": {"extra": "words"},
    "shape-word": {"extra": '{"image_shape": "wide"}'},
    "shape-two": {"extra": '{"image_shape": [1, 2]}'},
    "shape-vast": {"extra": '{"image_shape": [1, 99999999, 99999999]}'},
    "shape-minus": {"extra": '{"image_shape": [1, -8, -8]}'},
    "kind": {"kind": "prior"},
}
"""What is said in the header of a generator's checkpoint, by the name of the run."""

TENSORS = ("nan", "inf", "int8", "double", "lacking", "more", "shape", "cut", "empty", "words", "long", "folder")

RECORDS = {
    "figures.json": [
        "",
        "words",
        "[]",
        "null",
        "{",
        '{"closure": 3}',
        '{"evaluate": []}',
        '{"evaluate": {"figures": 3}}',
    ],
    "recipe.yaml": ["", "words: [", "[]", "data: {source: nosuch}", "\x00", "seed: &a [*a]"],
    "metrics.jsonl": ["words", "[]", '{"stage": 3}', '{"step": "x"}\n{', "\xff\xfe"],
}
"""What stands in a run's records, by number."""


def damage(path: Path, how: str) -> None:
    """A generator's checkpoint."""
    header, tensors = header_of(path)
    key = next(key for key in sorted(header) if key != "__metadata__" and header[key]["dtype"] == "F32")
    begin, end = header[key]["data_offsets"]
    if how in ("nan", "inf"):
        number = struct.pack("<f", float(how))
        write_header(path, header, tensors[:begin] + number + tensors[begin + 4 :])
    elif how in ("int8", "double"):
        kind, size = {"int8": ("I8", 1), "double": ("F64", 8)}[how]
        header[key] |= {"dtype": kind, "shape": [(end - begin) // size]}
        write_header(path, header, tensors)
    elif how == "lacking":
        header["another"] = header.pop(key)
        write_header(path, header, tensors)
    elif how == "more":
        header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(tensors), len(tensors) + 4]}
        write_header(path, header, tensors + b"\0" * 4)
    elif how == "shape":
        header[key]["shape"] = [1, *header[key]["shape"]]
        write_header(path, header, tensors)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        whole = path.read_bytes()
        replaced(path, {"cut": whole[:-9], "empty": b"", "words": b"words", "long": b"\xff" * 8 + whole[8:]}[how])


def write_runs(root: Path, tiny: Path) -> None:
    for name, fields in HEADERS.items():
        path = linked(tiny, root, f"header-{name}") / "generator.safetensors"
        header, tensors = header_of(path)
        header["__metadata__"] |= fields
        write_header(path, header, tensors)
    for name in TENSORS:
        damage(linked(tiny, root, f"tensors-{name}") / "generator.safetensors", name)
    for file, contents in RECORDS.items():
        for i, content in enumerate(contents):
            replaced(linked(tiny, root, f"{Path(file).stem}-{i}") / file, content)
    (root / "a-file").write_text("no run")
    (root / "nothing").mkdir()
    (root / "circle").symlink_to("circle")
