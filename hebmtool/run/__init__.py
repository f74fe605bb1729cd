"""A run: the folder in which one recipe is trained, and everything written there.

`folder` is the run itself, its lock and its records; `header` what a checkpoint says of itself; `checkpoint` reads and
writes their tensors; `open` makes generators, priors and labels of them; `info` says what a run is; `imported` makes
one of a published NVAE checkpoint.  The layout of the folder and of the headers is known here alone, and may be changed
here alone as long as what older versions wrote is still read; `folder` and `header` import no torch.
"""
