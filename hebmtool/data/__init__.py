"""Images x, uint8 at rest: from a source, in batches whose order is a function of (seed, step) alone.

    load(data, "train")   which images                   -> Images
    batch_indices(...)    the images of one update        a function of seed and step alone
    images.batch(...)     uint8 [n, C, H, W]              as they are at rest
    prepare(...)          float32 [n, C, H, W] in [0, 1]  as the model reads them

`images` is the set of images and what the model reads of it; `sources` the places they come from; `splits` which are
for training and which for testing; `decode` (with `files`) and `arrays` the only readers of image and array files;
`feed` has the images of updates read before they are asked for; `anywhere` images that are not of the recipe's source;
`masks` which pixels are hidden.  A source or a reader is changed here alone: the rest of the package sees `Images`.
"""

from hebmtool.data.anywhere import given_sets, read
from hebmtool.data.arrays import read_array
from hebmtool.data.decode import ENDINGS, fit_to, paths_in, read_image
from hebmtool.data.feed import Feed, seed_of
from hebmtool.data.images import Images, Split, batch_indices, order, prepare, prepare_each
from hebmtool.data.sources import SOURCES, load, source

__all__ = [
    "ENDINGS",
    "SOURCES",
    "Feed",
    "Images",
    "Split",
    "batch_indices",
    "fit_to",
    "given_sets",
    "load",
    "order",
    "paths_in",
    "prepare",
    "prepare_each",
    "read",
    "read_array",
    "read_image",
    "seed_of",
    "source",
]
