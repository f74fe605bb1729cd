"""Numbers and what they mean: functions of features, scores and latents, none of which knows a run.

Of images seen by a feature network (`features`, `embedded`, `inception`; `cache` keeps what they saw): `distances` has
FD, KID and neighbourhoods.  Of scores: `detection` has AUROC and its kin.  Of latents under a prior: `evidence` bounds
log p(x), ELBO <= IW-K <= log p(x), with log Z by annealed importance sampling; `two_sample` tests tell q(u) from p(u)
by layer; `mixing` says what chains do, tau = 1 + 2 sum_k rho(k); `flow_match` how far inferred latents are from a
flow, SW(q, p).  A number is told as a `figures.Figure`, with its uncertainty.  How one is computed may be changed here
alone; what is measured of which images, and beside what, is `hebmtool.judge`'s.
"""
