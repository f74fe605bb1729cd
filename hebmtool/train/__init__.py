"""Learning: what a recipe asks for is learned into a run.

`vae` learns the generator by the evidence lower bound, `prior` a prior on its frozen latents (HEBM's Algorithm 1),
`joint` such a prior together with its generator, `one_stage` one with a generator of its own, `labels` what couples a
prior to classes; `loop` is what all five share, in which the number of an update is the whole random state, so that
resuming is exact.  What is minimised is the prior's own business (`Prior.loss`), and what became of it is judged
elsewhere (`hebmtool.judge`): learning rates, the log and what is saved may be changed here alone, as long as a training
that was saved before still resumes.
"""
