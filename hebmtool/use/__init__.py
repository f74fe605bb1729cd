"""What a trained prior is for, each use a module of functions of a prior (and a recipe, where images are read).

`sample` draws (HEBM's Algorithm 2), `hierarchy` draws some layers given the others, `controllable` under conditions on
labels; `infer` finds latents of images, whole or masked, of which `reconstruct` and `inpaint` make images again;
`score` says how likely images are at every cut of the hierarchy.  None asks what kind of prior it has, but what that
prior can do; a new use is a module here, and nothing below needs to know of it.
"""
