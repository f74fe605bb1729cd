"""What is wrong, what it ends with, and what is said: (arguments, exit status, pattern of the sentence).

`RUNS` is where the damaged runs of `files` lie; other words are files of `files` in the working directory, or none.
"""

from hostile.files import HEADERS, RECORDS, TENSORS

Entry = tuple[tuple[str, ...], int, str]

PICTURES = {
    "empty.png": "none in the formats PNG",
    "words.png": "none in the formats PNG",
    "cut.png": "cannot be read as an image",
    "signature.png": "cannot be read as an image",
    "zeros.png": "none in the formats PNG",
    "half.jpg": "cannot be read as an image",
    "giant.png": "none in the formats PNG|pixels",
    "page.png": "none in the formats PNG",
    "script.svg": "none in the formats PNG",
    "rle.bmp": "cannot be read as an image",
    "loop.gif": "cannot be read as an image",
    "bits.tif": "cannot be read as an image",
    "big.pgm": "pixels|cannot be read",
    "few.pgm": "cannot be read as an image",
    "riff.webp": "cannot be read as an image",
    "float.tif": "floating-point",
    "wide.tif": "32 bits",
    "tga.png": "none in the formats PNG",
    "pipe.png": "no regular file",
    "gone.png": "does not exist",
    "self.png": "cannot be read as an image",
    "none": "no images in none|no regular file",
    "circle": "no images in circle|no regular file",
    "absent.png": "does not exist",
    "absent": "does not exist",
    "": "does not exist|no regular file|cannot be read",
    "a\x00b.png": "cannot be read as an image|null",
    "x" * 300 + ".png": "File name too long",
    "\x1b]0;title\x07.png": r"\\x1b\]0;title\\x07",
    ":smile:.png": ":smile:.png",
    "[red]a.png": r"\[red\]a.png",
    "~nosuchuser/a.png": "does not exist",
}
READERS = (("ood-score", "--layer", "0"), ("reconstruct", "--fit"), ("hier-sample", "--layer", "1", "--from"))
"""Commands that read pictures, all by one decoder: every picture is read by one of them, in turn, and the `LIKELY` ones
by each."""
LIKELY = ("words.png", "cut.png", "none", "absent.png", "absent", "")
ARRAYS = {
    "float.npz": "must be uint8",
    "empty-x.npz": "N of at least 1",
    "strings.npz": "must be uint8",
    "objects.npz": "holds Python objects",
    "names.npz": "holds the arrays pictures",
    "nothing.npz": r"\(none\)",
    "deep.npz": "must be uint8",
    "five.npz": "C 1 or 3",
    "tiny.npz": "at least 4",
    "void.npz": "must be uint8",
    "objects.npy": "holds Python objects",
    "cut.npy": "cannot be read as an .npz or .npy",
    "liar.npy": "cannot be read as an .npz or .npy",
    "vast.npy": "cannot be read as an .npz or .npy",
    "words.npy": "cannot be read as an .npz or .npy",
    "empty.npz": "cannot be read as an .npz or .npy",
    "zip.npz": "cannot be read as an .npz or .npy",
    "members.npz": "cannot be read as an .npz or .npy|must be uint8",
    "pipe.npz": "does not exist|no regular file",
    "absent.npz": "does not exist",
}
LABELS = {
    "labels-huge.npz": "from 0 to 65535",
    "labels-negative.npz": "from 0 to 65535",
    "labels-large.npz": "from 0 to 65535",
    "labels-fraction.npz": "must be integers",
    "labels-few.npz": "must be integers of shape",
    "labels-square.npz": "must be integers of shape",
    "labels-text.npz": "must be integers",
    "classes.npz": "indices of classes",
    "differ.npz": "differ in size",
}
MASKS = {
    "mask-all.npy": "hides every pixel",
    "mask-no.npy": "hides no pixel",
    "mask-other.npy": "9x9",
    "mask-deep.npy": "must be numbers of shape",
    "mask-text.npy": "must be numbers of shape",
    "mask-none.npy": "must be numbers of shape",
    "mask-many.npy": "holds 99 masks",
    "mask-complex.npy": "must be numbers of shape",
    "mask-words.npy": "cannot be read as an .npy",
    "mask-nothing.npz": "cannot be read as an .npy",
    "mask-object.npy": "cannot be read as an .npy",
    "absent.npy": "does not exist",
    "absent.png": "does not exist",
    "words.png": "none in the formats PNG",
    "pipe.png": "no regular file",
    "good.npy": "12 masks|hides",
    "folder.png": "no images|no regular file",
}
MASK_WORDS = (
    "centre",
    "center:",
    "center:0",
    "center:1",
    "center:nan",
    "center:1e999",
    "random:-1",
    "random:x",
    "left:1",
)
FEATURES = {
    "words.pt": "reading any other runs what is in it",
    "words.pt2": "reading any other runs what is in it",
    "good.png": "reading any other runs what is in it",
    "odd.safetensors": "is not a safetensors file",
    "empty.safetensors": "is not a safetensors file",
    "long.safetensors": "is not a safetensors file",
    "features-other.safetensors": "not of a feature network",
    "features-word.safetensors": "not of a feature network",
    "features-unknown.safetensors": "known are residual",
    "features-version.safetensors": "upgrade hebmtool",
    "features-keys.safetensors": "does not fit the architecture",
    "absent.pt": "no feature network at",
    "absent.safetensors": "no feature network at",
    "/": "no feature network at",
    "": "no feature network at",
    "pipe.png": "no feature network at",
}
OVERRIDES = {
    "prior": "malformed|must be a mapping",
    "=": "malformed",
    "prior.=1": "malformed",
    ".levels=1": "malformed",
    "prior..levels=1": "malformed",
    "prior.levels": "malformed",
    "prior.levels=": "prior.levels is null",
    "prior.levels=1": "at least 2",
    "prior.levels=1025": "at most 1024",
    "prior.levels=3.5": "whole number",
    "prior.levels=1e400": "whole number",
    "prior.levels=yes": "whole number",
    "prior.levels=[": "not valid YAML",
    "prior.levels={a: 1, a: 2}": "twice",
    "prior.levels=!!python/object/apply:os.system [ls]": "tag",
    "prior.levels=" + "9" * 5000: "limit|digits",
    "prior.levels=&a [*a]": "values once its aliases",
    "prior.levels=2024-13-45": "month",
    "prior.levels.more=3": "prior.levels is a mapping",
    "prior=3": "mapping with the keys",
    "prior=null": "mapping with the keys",
    "nosuch=1": "unknown key nosuch",
    "seed=-1": "at least 0",
    "seed=4294967296": "at most 4294967295",
    "name=": "name is null",
    "name=../up": "name is",
    "name=.hidden": "name is",
    "name=a/b": "name is",
    "name=a b": "name is",
    "data.size=3": "at least 4",
    "data.size=100000": "at most 1024",
    "data.crop=99999999": "at most",
    "data.bits=9": "at most 8",
    "data.test_fraction=0": "above 0",
    "data.test_fraction=.nan": "above 0|must be a number",
    "data.source=nosuch": "one of digits",
    "data.channels=2": "one of 1, 3",
    "data.missing=2": "data.missing is 2",
    "data.attributes={'../x': [a]}": "names an attribute",
    "data.attributes={class: [a]}": "names an attribute",
    "data.attributes=[a]": "mapping",
    "generator.scales=9": "at most 5",
    "generator.latent_channels=1000000": "at most 1024",
    "generator.decoder_channels=1000000000": "at most 1024",
    "generator.layers_per_scale=99999": "at most 64",
    "generator.cells=nosuch": "generator.cells",
    "generator.cells={normal_enc: [mconv_e999999999k9g0]}": "generator.cells",
    "generator.mixtures=0": "at least 1",
    "generator.preprocess_blocks=7": "at most 6",
    "generator.preprocess_blocks=2": "must be equal",
    "train_vae.iterations=1e300": "at most 1000000000",
    "train_vae.batch_size=1": "at least 2",
    "train_vae.batch_size=1e9": "at most 65536",
    "train_vae.lr=0": "above 0",
    "train_vae.lr=.inf": "train_vae.lr",
    "train_vae.lr=fast": "train_vae.lr is 'fast'",
    "train_vae.precision=float8": "one of",
    "prior.fast=[1]": "for each of the",
    "prior.fast=[-1, 0, 0]": "prior.fast",
    "prior.chain=nosuch": "prior.chain",
    "prior.theta=2": "below 1.6",
    "prior.labels=[[]]": "prior.labels",
    "prior.label_layers=[]": "prior.label_layers",
    "prior.energy.layers=[]": "prior.energy.layers",
    "prior.copies=0": "prior.copies",
    "flow.transforms=100000": "at most 256",
    "flow.latent=1": "at least 2",
    "evaluate.samples=1": "at least 2",
    "evaluate.features=3": "evaluate.features",
}
NUMBERS = [
    (("sample", "-n", "0"), "1"),
    (("sample", "-n", "1e3"), "integer"),
    (("sample", "-n", "９９９x"), "integer"),
    (("sample", "--seed", "-1"), "0"),
    (("sample", "--temperature", "-1"), "above 0"),
    (("sample", "--temperature", "inf"), "finite"),
    (("sample", "--temperature", "nan"), "finite"),
    (("sample", "--steps", "-1"), "0"),
    (("sample", "--theta", "nan"), "prior.theta"),
    (("sample", "--theta", "-1"), "prior.theta"),
    (("sample", "--h", "inf"), "prior.h"),
    (("sample", "--eta", "0"), "prior.eta"),
    (("sample", "--persistence", "1"), "prior.persistence"),
    (("sample", "--renew", "1.5"), "prior.renew"),
    (("sample", "--batch-size", "0"), "1"),
    (("sample", "--device", "tpu"), "--device"),
    (("sample", "--device", "cuda:-1"), "--device"),
    (("sample", "--nosuch"), "--nosuch"),
    (("sample", "word"), "word"),
    (("sample", "--prior", ""), "kind"),
    (("sample", "--out", ""), "--out"),
    (("sample", "--out", "a.jpg"), "--out"),
    (("hier-sample", "--layer", "0"), "layer"),
    (("hier-sample", "--layer", "99"), "layer"),
    (("hier-sample", "--layer", ":"), "layer"),
    (("hier-sample", "--layer", "1" * 5000), "layer|digits"),
    (("hier-sample", "--all", "-n", "0"), "1"),
    (("controllable", "--attribute", "="), "NAME=VALUE"),
    (("controllable", "--run", "digits", "--attribute", "class=1:x"), "class=1:x"),
    (("controllable", "--run", "digits", "--attribute", "class=1:nan"), "finite|weight|malformed"),
    (("controllable", "--class", "3", "-n", "0"), "1"),
    (("ood-score", "good.png", "--layer", "-1"), "0"),
    (("ood-score", "good.png", "--draws", "0"), "1"),
    (("ood-score", "good.png", "--level", "0"), "1"),
    (("ood-score", "good.png", "-0"), "--null"),
    (("ood-score",), "say what to score"),
    (("reconstruct", "good.png", "--steps", "-1"), "0"),
    (("inpaint", "good.png", "--draws", "0"), "1"),
    (("evaluate", "--samples", "1"), "2"),
    (("evaluate", "--repeats", "0"), "1"),
    (("evaluate", "--fid", "x"), "--fid"),
    (("evaluate", "--trust-features"), "--features"),
    (("train-prior", "digits", "--trust-features"), "evaluate.features"),
    (("diagnose", "--samples", "1"), "20"),
    (("diagnose", "--steps", "0"), "1"),
    (("diagnose", "--only", "x"), "--only"),
    (("report", "--out", "a.pdf"), "html"),
    (("report", "--seed", "-1"), "0"),
    (("flow-match", "-n", "1"), "16"),
    (("compare",), "RUN"),
    (("recipes", "show", "nosuch"), "nosuch"),
    (("recipes", "show", "../digits"), "no built-in recipe"),
    (("train-vae",), "RECIPE"),
    (("train-vae", ""), "recipe"),
    (("train-vae", "/"), "is not a file"),
    (("train-vae", "pipe.png"), "is not a file"),
    (("train-vae", "good.png"), "is not a recipe"),
    (("train-vae", "absent.yaml"), "there is no recipe file"),
    (("train-vae", "self.png"), "recipe"),
    (("nosuch",), "nosuch"),
    (("",), "command"),
]
"""All of them are wrong requests, and end with 2."""


OTHERS = [
    (("plan",), 2, "RECIPE"),
    (("plan", "nosuch"), 2, "no recipe file"),
    (("plan", "digits", "--set", "prior.levels=1"), 2, "at least 2"),
    (("demo", "--device", "tpu"), 2, "--device"),
    (("runs", "word"), 2, "word"),
    (("runs", "--runs", "absent"), -1, ""),
    (("models", "word"), 2, "word"),
    (("export", "absent"), 1, "no run"),
    (("export", "digits", "--out", "good.png"), 1, "exists"),
    (("export", "header-format", "--out", "given"), 1, "hebm: "),
    (("push", "absent", "somebody/model"), 1, "no run|hebm: "),
    (("push", "digits", "not an address"), 2, "hebm: "),
    (("pull",), 2, "hebm: "),
    (("pull", ""), 2, "hebm: "),
    (("pull", "not an address"), 2, "hebm: "),
    (("pull", "hf://"), 2, "hebm: "),
    (("recipes", "keys", "["), 2, "hebm: "),
    (("recipes", "keys", "(" * 999), 2, "hebm: "),
    (("recipes", "new"), 2, "hebm: "),
    (("recipes", "new", "../up"), 2, "hebm: "),
    (("recipes", "new", "a/b"), 2, "hebm: "),
    (("recipes", "check", "good.png"), 2, "not a recipe"),
    (("recipes", "check", "absent.yaml"), 2, "no recipe file"),
    (("recipes", "check", "digits", "--set", "seed=x"), 2, "seed is 'x'"),
    (("recipes", "schema", "word"), 2, "word"),
    (("fid",), 2, "A"),
    (("fid", "good.npy"), 2, "B"),
    (("fid", "good.npy", "absent"), 1, "no run"),
    (("fid", "absent:test", "good.npy"), 1, "no run"),
    (("fid", "good.npy", "good.npy", "--mode", "new"), 2, "--mode is 'new'"),
    (("fid", "good.npy", "good.npy", "--mode", "clean", "--features", "x"), 2, "leave out either"),
    (("fid", "good.npy", "good.npy", "--features", "words.pt"), 1, "reading any other runs what is in it"),
    (("fid", "good.npy", "good.npy", "--features", "absent.safetensors"), 1, "no feature network"),
    (("fid", "words.png", "good.npy", "--features", "absent.safetensors"), 1, "none in the formats PNG"),
    (("info", "words.png"), 1, "cannot be read as a PNG"),
    (("info", "cut.png"), 1, "cannot be read as a PNG"),
    (("info", "pipe.png"), 1, "no regular file"),
    (("info", "good.png"), 1, "does not say how it was made"),
    (("sample", "-n", "1", "--format", "adm", "--out", "new.png"), 2, "writes an .npz"),
    (("sample", "-n", "1", "--format", "tar", "--out", "new.npz"), 2, "--format is 'tar'"),
    (("report", "tensors-nan"), 1, "not finite"),
    (("report", "header-recipe-list"), 1, "hebm: "),
    (("diagnose", "tensors-inf"), 1, "not finite"),
    (("diagnose", "tensors-cut", "--only", "chains"), 1, "cut short"),
    (("evaluate", "tensors-nan"), 1, "not finite"),
    (("evaluate", "header-kind"), 1, "hebm: "),
    (("flow-match", "digits"), -1, "hebm: "),
    (("flow-match", "absent"), 1, "no run"),
    (("train-prior", "absent.yaml"), 2, "recipe"),
    (("train-prior", "digits", "--set", "prior.kind=gaussian"), 2, "no training"),
    (("train-prior", "digits", "--set", "prior.h=1e10"), 2, "prior.h is 10000000000, but must be .* at most 30"),
    (("train-prior", "digits", "--set", "train_prior.lr=1e38"), 2, "train_prior.lr .* at most 1e\\+30"),
    (("train-vae", "digits", "--set", "train_vae.lr=1e38"), 2, "train_vae.lr .* at most 1e\\+30"),
    (("recipes", "check", "digits", "--set", "seed=0x" + "f" * 5000), 2, "seed is a number of more than 60 digits"),
    (("train-prior", "digits", "--set", "evaluate.features=words.pt"), 1, "hebm: "),
]


def runs() -> list[Entry]:
    """Damaged runs, by what they are opened for."""
    found: list[Entry] = []
    for name in HEADERS:
        for command in ("info", "sample")[name == "kind" :]:
            found.append((_of(command, f"header-{name}"), 1, "checkpoint|header|header-|safetensors"))
    for name in TENSORS:
        found.append((_of("sample", f"tensors-{name}"), 1, "generator.safetensors"))
    for file, contents in RECORDS.items():
        for i in range(len(contents)):
            name = f"{file.partition('.')[0]}-{i}"
            for command in ("info", "compare", "sample"):
                found.append((_of(command, name), -1, ""))
    for name in ("a-file", "nothing", "circle", "absent", "", ".", "..", "/", "\x00", "~nosuchuser", "x" * 300):
        found.append((("info", name), 1, "run|hebm: "))
        found.append((("sample", "--run", name), 1, "run|hebm: "))
    return found


def _of(command: str, name: str) -> tuple[str, ...]:
    return ("sample", "-n", "1", "--run", name) if command == "sample" else (command, name)


def entries() -> list[Entry]:
    found: list[Entry] = []
    for i, (name, words) in enumerate(PICTURES.items()):
        ways = READERS if name in LIKELY else READERS[i % len(READERS) :][:1]
        found += [((*way, name), 1, words) for way in ways]
    for name, words in ARRAYS.items():
        found.append((("ood-score", name, "--layer", "0"), 1, words))
        found.append((("train-vae", "digits", *_sets("name=new", "data.source=array", f"data.path={name}")), 1, words))
    for name, words in LABELS.items():
        found.append((("train-vae", "digits", *_sets("name=new", "data.source=array", f"data.path={name}")), 1, words))
    for name, words in MASKS.items():
        found.append((("inpaint", "good.png", "--mask", name, "--draws", "1"), 1, words))
    for word in MASK_WORDS:
        found.append((("inpaint", "good.png", "--mask", word, "--draws", "1"), 2, "mask"))
    for name, words in FEATURES.items():
        found.append((("evaluate", "digits", "--prior", "gaussian", "--features", name), 1, words))
    for name in ("words.pt", "words.pt2"):
        found.append(
            (("evaluate", "digits", "--features", name, "--trust-features"), 1, "is not a TorchScript network")
        )
    for text, words in OVERRIDES.items():
        found.append((("train-vae", "digits", "--set", text), 2, words))
    found += [(arguments, 2, words) for arguments, words in NUMBERS]
    found += [
        (("import-nvae", name), 1, "NVAE|checkpoint|hebm: ")
        for name in ("words.pt", "good.png", "absent.pt", "pipe.png", "good.npz", "/")
    ]
    found += [
        (("decode", name, "--out", "decoded.png"), 1, "")
        for name in ("good.npz", "words.png", "absent.npz", "objects.npz", "pipe.npz")
    ]
    found += [(("encode", name, "--out", "latents.npz"), 1, "") for name in ("words.png", "absent.png")]
    found += [(("interpolate", "good.png", name), 1, "") for name in ("words.png", "absent.png")]
    found += [
        (("sample", "-n", "1", "--out", out), 1, words)
        for out, words in {
            "good.png": "exists",
            "good.png/a.png": "folder",
            "pipe.png": "hebm: ",
        }.items()
    ]
    return found + runs() + OTHERS


def _sets(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--set", text)]
