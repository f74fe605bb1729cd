"""Judging: what needs a whole run, with its data, its generator and every prior of it.

`evaluate` holds all its priors against held-out images, made of `sources` (the sets of images) and `spaces` (the
feature networks they are seen by); `evaluation` is what that yields and keeps, `compare` puts several side by side, and
neither needs torch.  `closure` has the number the whole is about, (FD_gaussian - FD_prior) / (FD_gaussian -
FD_reconstruction); `diagnose` says where a prior falls short; `ood` how well scores tell other images, those of
`battery`, from the run's own; `labels`, with its `classifier`, whether samples are as asked; `trained` what a training
has just reached, `one_stage` where it had no encoder.  The numbers themselves are `hebmtool.metrics`': what is
measured, of which images and beside what, may be changed here alone, names of figures excepted, which stand in kept
figures.json.
"""
